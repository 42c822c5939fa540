"""Proximal policy optimization (Schulman et al., 2017) over a stack of members.

Every array has the member axis first, and nothing here ever reduces over it: a member does not
know how many others there are.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import gymnasium as gym
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from upgd_ppo.agents.learners.collector import Collector
from upgd_ppo.agents.learners.health import find_sick_members
from upgd_ppo.agents.learners.iteration_report import IterationReport
from upgd_ppo.agents.learners.learner import Scalar
from upgd_ppo.agents.learners.ppo_loss import (
    MINIBATCH_STATISTICS,
    MinibatchTerms,
    approx_kl,
    compute_gradient,
    gradient_parts,
    minibatch_statistics,
    normalize_minibatches,
    normalize_rollout,
)
from upgd_ppo.agents.learners.rollout import generalized_advantages
from upgd_ppo.agents.methods.acting import Methods
from upgd_ppo.agents.networks.actor_critic import ActorCritic
from upgd_ppo.agents.optimizers.population_optimizer import PopulationOptimizer
from upgd_ppo.agents.optimizers.separate import SeparateOptimizers
from upgd_ppo.agents.plasticity.inspection import Inspection
from upgd_ppo.agents.plasticity.inspector import Inspector
from upgd_ppo.agents.plasticity.population_statistics import Key
from upgd_ppo.agents.random_streams import RandomStreams
from upgd_ppo.agents.settings.config import PPOConfig

MAX_RATIO = MINIBATCH_STATISTICS.index("max_ratio")
APPROX_KL = MINIBATCH_STATISTICS.index("approx_kl")

# Tags are those of Stable-Baselines3 where it has one, with its signs and factors, so that its
# runs and these overlay: it logs the negative entropy, and a value loss without the factor ½.
SCALARS = (
    Scalar("policy_loss", "train/policy_gradient_loss"),
    Scalar("value_loss", "train/value_loss", factor=2.0),
    Scalar("entropy", "train/entropy_loss", factor=-1.0),
    Scalar("std", "train/std", band="policy std"),
    # Stable-Baselines3 logs the mean over the last epoch, whose policy has moved the furthest.
    Scalar("approx_kl_last_epoch", "train/approx_kl"),
    Scalar(
        "approx_kl",
        "train/approx_kl_mean",
        band="approximate KL of an iteration, mean over its epochs",
    ),
    Scalar("clip_fraction", "train/clip_fraction"),
    Scalar("explained_variance", "train/explained_variance"),
    Scalar("learning_rate", "train/learning_rate"),
    Scalar("gradient_norm", "train/gradient_norm"),
    Scalar("max_ratio", "train/max_ratio"),
    Scalar("units_renewed", "train/units_renewed"),  # where methods act
)


class PPO:
    """S learners in lockstep: collect → advantages → clipped update. A `Learner`.

    Args:
        seeds: the members' seeds.
        config: how they learn.
        env: S·N sub-environments, member-major, resetting in the step that ends an episode.
        environment_seeds: a reset seed for each sub-environment.
        networks: actor and critic of the S members.
        optimizer: steps the networks' parameters.
        streams: the members' random streams.
        total_iterations: iterations of the whole run, over which the learning rate is annealed.
        inspector: measures the networks, after the iterations in which that is due.
        clip_actions: to the box, before the environment and its reward see them.
        methods: act on the networks after every step of the optimizer.
    """

    name = "ppo"
    scalars = SCALARS
    performance = "return"

    def __init__(
        self,
        seeds: list[int],
        config: PPOConfig,
        env: gym.vector.VectorEnv,
        environment_seeds: list[int],
        networks: ActorCritic,
        optimizer: PopulationOptimizer | SeparateOptimizers,
        streams: RandomStreams,
        total_iterations: int,
        inspector: Inspector | None = None,
        clip_actions: bool = True,
        methods: Methods | None = None,
    ) -> None:
        self.seeds = seeds
        self.config = config
        self.networks = networks
        self.optimizer = optimizer
        self.streams = streams
        self.total_iterations = total_iterations
        self.inspector = inspector
        self.methods = methods
        if methods is not None and methods.wants_features:
            networks.keep_features()
        self.iteration = 0
        self.collector = Collector(
            env,
            environment_seeds,
            networks,
            streams.action_noise,
            config.rollout_steps,
            config.gamma if config.bootstrap_time_limits else 0.0,
            squash=config.squash_actions,
            clip=clip_actions,
        )
        self.rollout = self.collector.rollout

        data = networks.parameters.data
        self.device = data.device
        self.num_members = len(data)
        self.healthy = np.ones(self.num_members, dtype=bool)
        self.initial_parameters = data.clone()
        self.previous_parameters = data.clone()
        self.gradient_norms = data.new_zeros(
            self.num_members, len(gradient_parts(networks, config))
        )

    def advance(self) -> IterationReport:
        """One iteration: anneal, collect a rollout, estimate advantages, update."""
        # Anneal
        steps_before = self.steps
        self.previous_parameters.copy_(self.networks.parameters.data)
        learning_rate = self.learning_rate
        self.optimizer.set_learning_rate(learning_rate)
        with np.errstate(invalid="ignore", over="ignore"):
            # Collect a rollout
            self.collector.collect()
            # Estimate advantages
            advantages, returns = self.estimate_advantages()
            # Update
            with flushed_denormals():
                log = self.update(advantages, returns)
        # Report
        self.iteration += 1
        episodes = [
            episode._replace(step=steps_before + episode.step)
            for episode in self.collector.episodes
            if self.healthy[episode.member]
        ]
        return IterationReport(
            scalars={
                **dict(zip(MINIBATCH_STATISTICS, _minibatch_means(log), strict=True)),
                "approx_kl_last_epoch": _last_epoch_means(
                    log[..., APPROX_KL], self.config.minibatches
                ),
                "max_ratio": np.fmax.reduce(log[..., MAX_RATIO]),
                "explained_variance": explained_variance(
                    self.rollout.values.reshape(self.num_members, -1),
                    returns.reshape(self.num_members, -1),
                ),
                "std": self._stds().mean(1).cpu().numpy(),
                "learning_rate": np.full(self.num_members, learning_rate),
                **(self.methods.scalars if self.methods is not None else {}),
            },
            episodes=episodes,
            halted=self._halt_sick_members(log),
            inspection=self.inspect(),
        )

    def inspect(self) -> Inspection | None:
        """Plasticity statistics of the members' networks, if they are due; changes nothing."""
        if self.inspector is None:
            return None
        return self.inspector.inspect(
            self.iteration,
            {"actor": self.networks.actor, "critic": self.networks.critic},
            self.optimizer,
            self.rollout.samples("observations", self.device),
            initial=self.initial_parameters,
            previous=self.previous_parameters,
            gradient=self._unclipped_gradient(),
            own=self._action_stds,
            is_last=self.iteration == self.total_iterations,
        )

    def _stds(self) -> Tensor:
        """The policy's standard deviations [S, A]: what they are now or, where they depend on the
        state, their mean over the rollout as it was collected."""
        if self.networks.state_dependent_std:
            return self.collector.mean_stds
        return self.networks.log_std.exp()

    def _action_stds(self, observations: Tensor) -> dict[Key, Tensor]:
        """The policy's standard deviation [S] in each dimension of the action."""
        if self.networks.state_dependent_std:
            std = self.networks.mean_stds(observations).double()
        else:
            std = self.networks.log_std.double().exp()
        return {(self.name, "", f"std_{i}"): std[:, i] for i in range(std.shape[1])}

    def _unclipped_gradient(self) -> Tensor:
        """The last minibatch's gradient [S, D], scaled back to its norms before clipping."""
        parts = gradient_parts(self.networks, self.config)
        unclipped = []
        for part, norms in zip(parts, self.gradient_norms.T, strict=True):
            clipped = torch.linalg.vector_norm(part, dim=1)
            unclipped.append(part * torch.where(clipped > 0, norms / clipped, 1.0).unsqueeze(1))
        return torch.cat(unclipped, 1)

    @property
    def learning_rate(self) -> float:
        """The step size of the coming iteration."""
        if not self.config.anneal:
            return self.config.learning_rate
        return self.config.learning_rate * max(0.0, 1.0 - self.iteration / self.total_iterations)

    def estimate_advantages(self) -> tuple[NDArray, NDArray]:
        """Advantages and returns [S, T, N] of the collected rollout."""
        rollout, config = self.rollout, self.config
        advantages = generalized_advantages(
            rollout.rewards,
            rollout.values,
            rollout.dones,
            self.networks.values(rollout.next_observations),
            rollout.next_dones,
            config.gamma,
            config.gae_lambda,
        )
        return advantages, advantages + rollout.values

    def update(
        self, advantages: NDArray, returns: NDArray, permutations: Tensor | None = None
    ) -> NDArray:
        """Several epochs of minibatch steps on the rollout.

        Args:
            advantages: [S, T, N].
            returns: [S, T, N], the targets of the critic.
            permutations: [epochs, S, T·N], the order of the samples in each epoch; None draws it
                from the members' streams.

        Returns:
            [epochs · minibatches, S, len(MINIBATCH_STATISTICS)], NaN for the minibatches that a
            member skipped because of `target_kl`.
        """
        config, rollout, device = self.config, self.rollout, self.device
        # The rollout as samples [S, T·N, …]
        samples = {
            "observations": rollout.samples("observations", device),
            "actions": rollout.samples("actions", device),
            "log_probs": rollout.samples("log_probs", device),
            "values": rollout.samples("values", device),
            "advantages": torch.from_numpy(advantages).flatten(1, 2).to(device),
            "returns": torch.from_numpy(returns).flatten(1, 2).to(device),
        }
        if config.normalize_advantages == "rollout" and samples["advantages"].shape[1] > 1:
            samples["advantages"] = normalize_rollout(samples["advantages"])
        num_samples = samples["values"].shape[1]
        minibatch_size = num_samples // config.minibatches
        offsets = torch.arange(self.num_members).unsqueeze(1) * num_samples
        active = np.ones(self.num_members, dtype=bool)
        log: list[Tensor] = []

        for epoch in range(config.epochs):
            # Shuffle, every member in its own order
            order = self._permutations(num_samples) if permutations is None else permutations[epoch]
            rows = (order + offsets).flatten().to(device)
            shuffled = {
                name: values.flatten(0, 1).index_select(0, rows).view_as(values)
                for name, values in samples.items()
            }
            # Normalise advantages
            if config.normalize_advantages == "minibatch" and minibatch_size > 1:
                shuffled["advantages"] = normalize_minibatches(
                    shuffled["advantages"], config.minibatches
                )
            minibatches: list[MinibatchTerms] = []
            taken: list[NDArray] = []
            for start in range(0, num_samples, minibatch_size):
                # Gradient of the clipped loss
                minibatch = {
                    name: values[:, start : start + minibatch_size]
                    for name, values in shuffled.items()
                }
                terms = compute_gradient(self.networks, minibatch, config)
                self.gradient_norms = terms.gradient_norms
                # Leave out members whose policy has moved far enough
                if config.target_kl is not None:
                    active &= ~(approx_kl(terms.log_ratios) > config.target_kl).cpu().numpy()
                    if not active.any():
                        break
                minibatches.append(terms)
                taken.append(active.copy())
                # Step, and let methods act
                self.optimizer.step(None if active.all() else active)
                if self.methods is not None:
                    self.methods.after_step(active & self.healthy, self.networks.features)
            # What the minibatches were like
            if minibatches:
                log.append(minibatch_statistics(minibatches, config.clip_coef))
                log[-1][torch.from_numpy(~np.stack(taken))] = math.nan
            if not active.any():
                break
        if not log:
            log.append(torch.full((1, self.num_members, len(MINIBATCH_STATISTICS)), math.nan))
        return torch.cat(log).cpu().numpy().astype(np.float64)

    def _permutations(self, num_samples: int) -> Tensor:
        return torch.stack(
            [torch.randperm(num_samples, generator=g) for g in self.streams.minibatch_order]
        )

    def _halt_sick_members(self, log: NDArray) -> list[tuple[int, str]]:
        """Find members that became non-finite, and park them at their last good weights."""
        data = self.networks.parameters.data
        skips = self.config.target_kl is not None
        sick = {
            **find_sick_members(data, self.rollout, log, skips),
            **self.collector.simulator_errors,
        }
        halted = [(member, sick[member]) for member in sorted(sick) if self.healthy[member]]
        for member, _ in halted:
            self.healthy[member] = False
        if not self.healthy.all():
            parked = torch.from_numpy(~self.healthy)
            data[parked] = self.previous_parameters[parked]
            self.collector.exclude(~self.healthy)
        return halted

    def state_dict(self) -> dict[str, Any]:
        """Everything the members are between two iterations, member axis first."""
        return {
            "iteration": self.iteration,
            "parameters": self.networks.parameters.data.clone(),
            "initial_parameters": self.initial_parameters.clone(),
            "optimizer": self.optimizer.state_dict(),
            "random_streams": self.streams.state_dict(),
            **self.collector.state_dict(),
            "healthy": self.healthy.copy(),
            "methods": {} if self.methods is None else self.methods.state_dict(),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue from a state that `state_dict` gave.

        Where an environment cannot restore its state, its episode starts anew.
        """
        self.iteration = state["iteration"]
        self.networks.parameters.data.copy_(state["parameters"])
        self.initial_parameters.copy_(state["initial_parameters"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.streams.load_state_dict(state["random_streams"])
        if self.methods is not None:
            self.methods.load_state_dict(state["methods"])
        self.healthy[:] = state["healthy"]
        self.collector.load_state_dict(state, self.iteration)
        self.collector.exclude(~self.healthy)

    @property
    def steps(self) -> int:
        """Environment steps of each member at the last iteration's end."""
        return self.iteration * self.steps_per_iteration

    @property
    def total_steps(self) -> int:
        """Environment steps of each member in the end."""
        return self.total_iterations * self.steps_per_iteration

    @property
    def steps_per_iteration(self) -> int:
        """Environment steps of each member in one iteration."""
        return self.config.rollout_steps * self.collector.envs_per_member

    @property
    def exact_state(self) -> bool:
        """Whether the environments can be saved and restored bit for bit."""
        return getattr(self.collector.env.unwrapped, "exact_state", False)

    @property
    def why_no_kernels(self) -> str | None:
        """What keeps the compiled kernels from being used; None if nothing."""
        return self.networks.why_no_kernels

    def close(self) -> None:
        """Close the environments."""
        self.collector.env.close()


@contextmanager
def flushed_denormals() -> Iterator[None]:
    """Take numbers under 1e-38 for zero, where the processor can.

    The moments of weights whose gradient has become exactly zero, those of a dead ReLU unit, decay
    to such numbers, and a step on them takes up to twice as long. Only for the update: the physics
    must round as Gymnasium's does. Afterwards it is as the caller had it.
    """
    smallest_normal = torch.tensor(torch.finfo(torch.float32).tiny)
    flushed_before = (smallest_normal * 0.5).item() == 0
    torch.set_flush_denormal(True)
    try:
        yield
    finally:
        torch.set_flush_denormal(flushed_before)


def _minibatch_means(log: NDArray) -> NDArray:
    """[updates, S, n] → [n, S], over the minibatches that a member did not skip."""
    means = np.full(log.shape[1:], np.nan)
    for member in range(log.shape[1]):
        taken = log[~np.isnan(log[:, member]).all(-1), member]
        if len(taken):
            means[member] = taken.mean(0)
    return means.T


def _last_epoch_means(log: NDArray, minibatches: int) -> NDArray:
    """[updates, S] → [S], over the minibatches of the last epoch in which a member took any."""
    means = np.full(log.shape[1], np.nan)
    for member, values in enumerate(log.T):
        taken = np.flatnonzero(~np.isnan(values))
        if len(taken):
            first = taken[-1] // minibatches * minibatches
            means[member] = np.nanmean(values[first : first + minibatches])
    return means


def explained_variance(values: NDArray, returns: NDArray) -> NDArray:
    """1 − Var[returns − values] / Var[returns] over the last axis; NaN for constant returns."""
    variance = returns.var(-1)
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.where(variance > 0, 1 - (returns - values).var(-1) / variance, np.nan)
