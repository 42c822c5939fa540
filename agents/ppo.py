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

from agents.collector import Collector
from agents.config import PPOConfig
from agents.health import find_sick_members
from agents.inspection import Inspection, Inspector
from agents.networks import ActorCritic
from agents.optimizers.population import PopulationOptimizer
from agents.ppo_gradient import (
    MINIBATCH_STATISTICS,
    MinibatchTerms,
    approx_kl,
    compute_gradient,
    minibatch_statistics,
    normalize_minibatches,
)
from agents.random_streams import RandomStreams
from agents.report import IterationReport
from agents.rollout import generalized_advantages

MAX_RATIO = MINIBATCH_STATISTICS.index("max_ratio")


class PPO:
    """S learners in lockstep: collect → advantages → clipped update.

    Args:
        config: how they learn.
        env: S·N sub-environments, member-major, resetting in the step that ends an episode.
        environment_seeds: a reset seed for each sub-environment.
        networks: actor and critic of the S members.
        optimizer: steps the networks' parameters.
        streams: the members' random streams.
        num_iterations: iterations of the whole run, over which the learning rate is annealed.
        inspector: measures the networks, after the iterations in which that is due.
    """

    def __init__(
        self,
        config: PPOConfig,
        env: gym.vector.VectorEnv,
        environment_seeds: list[int],
        networks: ActorCritic,
        optimizer: PopulationOptimizer,
        streams: RandomStreams,
        num_iterations: int,
        inspector: Inspector | None = None,
    ) -> None:
        self.config = config
        self.networks = networks
        self.optimizer = optimizer
        self.streams = streams
        self.num_iterations = num_iterations
        self.inspector = inspector
        self.iteration = 0
        self.collector = Collector(
            env,
            environment_seeds,
            networks,
            streams.action_noise,
            config.rollout_steps,
            config.gamma if config.bootstrap_time_limits else 0.0,
        )
        self.rollout = self.collector.rollout

        data = networks.parameters.data
        self.device = data.device
        self.num_members = len(data)
        self.healthy = np.ones(self.num_members, dtype=bool)
        self.initial_parameters = data.clone()
        self.previous_parameters = data.clone()
        self.gradient_norms = data.new_zeros(self.num_members)

    def advance(self) -> IterationReport:
        """One iteration: anneal, collect a rollout, estimate advantages, update."""
        steps_before = self.steps
        self.previous_parameters.copy_(self.networks.parameters.data)
        learning_rate = self.learning_rate
        self.optimizer.set_learning_rate(learning_rate)
        with np.errstate(invalid="ignore", over="ignore"):
            self.collector.collect()
            advantages, returns = self.estimate_advantages()
            with flushed_denormals():
                log = self.update(advantages, returns)
        self.iteration += 1
        episodes = [
            episode._replace(step=steps_before + episode.step)
            for episode in self.collector.episodes
            if self.healthy[episode.member]
        ]
        return IterationReport(
            scalars={
                **dict(zip(MINIBATCH_STATISTICS, _minibatch_means(log), strict=True)),
                "max_ratio": np.fmax.reduce(log[..., MAX_RATIO]),
                "explained_variance": explained_variance(
                    self.rollout.values.reshape(self.num_members, -1),
                    returns.reshape(self.num_members, -1),
                ),
                "std": self.networks.log_std.exp().mean(1).cpu().numpy(),
                "learning_rate": np.full(self.num_members, learning_rate),
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
            self.networks,
            self.optimizer,
            self.rollout.samples("observations", self.device),
            initial=self.initial_parameters,
            previous=self.previous_parameters,
            gradient_norms=self.gradient_norms,
            is_last=self.iteration == self.num_iterations,
        )

    @property
    def learning_rate(self) -> float:
        """The step size of the coming iteration."""
        if not self.config.anneal:
            return self.config.learning_rate
        return self.config.learning_rate * max(0.0, 1.0 - self.iteration / self.num_iterations)

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
        samples = {
            "observations": rollout.samples("observations", device),
            "actions": rollout.samples("actions", device),
            "log_probs": rollout.samples("log_probs", device),
            "values": rollout.samples("values", device),
            "advantages": torch.from_numpy(advantages).flatten(1, 2).to(device),
            "returns": torch.from_numpy(returns).flatten(1, 2).to(device),
        }
        num_samples = samples["values"].shape[1]
        minibatch_size = num_samples // config.minibatches
        offsets = torch.arange(self.num_members).unsqueeze(1) * num_samples
        active = np.ones(self.num_members, dtype=bool)
        log: list[Tensor] = []

        for epoch in range(config.epochs):
            order = self._permutations(num_samples) if permutations is None else permutations[epoch]
            rows = (order + offsets).flatten().to(device)
            shuffled = {
                name: values.flatten(0, 1).index_select(0, rows).view_as(values)
                for name, values in samples.items()
            }
            if config.normalize_advantages and minibatch_size > 1:
                shuffled["advantages"] = normalize_minibatches(
                    shuffled["advantages"], config.minibatches
                )
            minibatches: list[MinibatchTerms] = []
            taken: list[NDArray] = []
            for start in range(0, num_samples, minibatch_size):
                minibatch = {
                    name: values[:, start : start + minibatch_size]
                    for name, values in shuffled.items()
                }
                terms = compute_gradient(self.networks, minibatch, config)
                self.gradient_norms = terms.gradient_norms
                if config.target_kl is not None:
                    active &= ~(approx_kl(terms.log_ratios) > config.target_kl).cpu().numpy()
                    if not active.any():
                        break
                minibatches.append(terms)
                taken.append(active.copy())
                self.optimizer.step(None if active.all() else active)
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
        self.healthy[:] = state["healthy"]
        self.collector.load_state_dict(state, self.iteration)
        self.collector.exclude(~self.healthy)

    @property
    def steps(self) -> int:
        """Environment steps of each member at the last iteration's end."""
        return self.iteration * self.config.rollout_steps * self.collector.envs_per_member


@contextmanager
def flushed_denormals() -> Iterator[None]:
    """Take numbers under 1e-38 for zero, where the processor can.

    The moments of weights whose gradient has become exactly zero, those of a dead ReLU unit, decay
    to such numbers, and a step on them takes up to twice as long. Only for the update: the physics
    must round as Gymnasium's does.
    """
    torch.set_flush_denormal(True)
    try:
        yield
    finally:
        torch.set_flush_denormal(False)


def _minibatch_means(log: NDArray) -> NDArray:
    """[updates, S, n] → [n, S], over the minibatches that a member did not skip."""
    means = np.full(log.shape[1:], np.nan)
    for member in range(log.shape[1]):
        taken = log[~np.isnan(log[:, member]).all(-1), member]
        if len(taken):
            means[member] = taken.mean(0)
    return means.T


def explained_variance(values: NDArray, returns: NDArray) -> NDArray:
    """1 − Var[returns − values] / Var[returns] over the last axis; NaN for constant returns."""
    variance = returns.var(-1)
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.where(variance > 0, 1 - (returns - values).var(-1) / variance, np.nan)
