"""Proximal policy optimization (Schulman et al., 2017) over a stack of members.

Every array has the member axis first, and nothing here ever reduces over it: a member does not
know how many others there are.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager
from time import perf_counter
from typing import Any

import gymnasium as gym
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from agents.config import PPOConfig
from agents.health import find_sick_members
from agents.inspection import Inspection, Inspector
from agents.networks import ActorCritic
from agents.optimizers.population import PopulationOptimizer
from agents.ppo_gradient import (
    MINIBATCH_STATISTICS,
    clip_gradient,
    compute_gradient,
    gaussian_log_probs,
)
from agents.random_streams import RandomStreams
from agents.report import Episode, IterationReport
from agents.rollout import Rollout, generalized_advantages
from envs import saving

INFERENCE_CHUNK = 512
"""Samples of a member that are evaluated at once: activations of this many stay in cache."""

APPROX_KL = MINIBATCH_STATISTICS.index("approx_kl")
GRADIENT_NORM = MINIBATCH_STATISTICS.index("gradient_norm")
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
        self.env = env
        self.networks = networks
        self.optimizer = optimizer
        self.streams = streams
        self.num_iterations = num_iterations
        self.inspector = inspector
        self.iteration = 0
        self.num_members = len(networks.parameters.data)
        self.envs_per_member = env.num_envs // self.num_members
        self.healthy = np.ones(self.num_members, dtype=bool)
        self.seconds: dict[str, float] = defaultdict(float)

        data = networks.parameters.data
        self.device = data.device
        self.initial_parameters = data.clone()
        self.previous_parameters = data.clone()
        self.gradient_norms = data.new_zeros(self.num_members)
        action_space = env.single_action_space
        observation_space = env.single_observation_space
        assert isinstance(action_space, gym.spaces.Box)
        assert observation_space.shape is not None
        self.action_low, self.action_high = action_space.low, action_space.high
        self.rollout = Rollout(
            self.num_members,
            config.rollout_steps,
            self.envs_per_member,
            observation_space.shape[0],
            action_space.shape[0],
            np.float64 if data.dtype == torch.float64 else np.float32,
        )
        self._episodes: list[Episode] = []
        self._simulator_errors: dict[int, str] = {}
        self.environment_seeds = list(environment_seeds)
        observations, _ = env.reset(seed=self.environment_seeds)  # type: ignore[arg-type]
        self.rollout.next_observations[:] = self._by_member(observations)
        self.rollout.next_dones[:] = 1.0

    def advance(self) -> IterationReport:
        """One iteration: anneal, collect a rollout, estimate advantages, update."""
        self.seconds.clear()
        self._episodes, self._simulator_errors = [], {}
        self.previous_parameters.copy_(self.networks.parameters.data)
        learning_rate = self.learning_rate
        self.optimizer.set_learning_rate(learning_rate)
        with np.errstate(invalid="ignore", over="ignore"):
            self.collect()
            advantages, returns = self.estimate_advantages()
            log = self.update(advantages, returns)
        self.iteration += 1
        halted = self._halt_sick_members(log)
        with self._timed("statistics"):
            inspection = self.inspect()
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
            episodes=self._episodes,
            halted=halted,
            seconds=dict(self.seconds),
            inspection=inspection,
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
        )

    @property
    def learning_rate(self) -> float:
        """The step size of the coming iteration."""
        if not self.config.anneal:
            return self.config.learning_rate
        return self.config.learning_rate * max(0.0, 1.0 - self.iteration / self.num_iterations)

    def collect(self) -> None:
        """Fill the rollout with T steps of the current policies, and evaluate them afterwards."""
        config, rollout = self.config, self.rollout
        weights = self.networks.numpy_views()
        std = np.exp(weights["actor.log_std"])[:, None, None]
        perturbations = self._action_noise() * std
        observations, dones = rollout.next_observations.copy(), rollout.next_dones.copy()
        time_limits: list[tuple[int, int, int, NDArray]] = []

        for step in range(config.rollout_steps):
            rollout.observations[:, step] = observations
            rollout.dones[:, step] = dones
            with self._timed("inference"):
                actions = self.networks.actor.infer(observations, weights)
                actions += perturbations[:, step]
                rollout.actions[:, step] = actions
                clipped = np.clip(self._by_env(actions), self.action_low, self.action_high)
            with self._timed("environment"):
                next_observations, rewards, terminations, truncations, infos = self.env.step(
                    clipped
                )
            observations = self._by_member(next_observations)
            ended = terminations | truncations
            rollout.rewards[:, step] = self._by_member(rewards)
            dones = self._by_member(ended).astype(dones.dtype)
            if ended.any():
                self._record_episodes(step, ended, terminations, infos)
                if config.bootstrap_time_limits:
                    for env in np.flatnonzero(truncations & ~terminations):
                        member, index = divmod(int(env), self.envs_per_member)
                        time_limits.append((member, step, index, infos["final_obs"][env]))
            if "simulation_error" in infos:
                self._note_simulation_errors(infos)

        rollout.next_observations[:] = observations
        rollout.next_dones[:] = dones
        with self._timed("evaluation"):
            self._evaluate_rollout()
            self._bootstrap_time_limits(time_limits)

    def estimate_advantages(self) -> tuple[NDArray, NDArray]:
        """Advantages and returns [S, T, N] of the collected rollout."""
        rollout = self.rollout
        with self._timed("advantages"):
            next_values = self._values(rollout.next_observations)
            advantages = generalized_advantages(
                rollout.rewards,
                rollout.values,
                rollout.dones,
                next_values,
                rollout.next_dones,
                self.config.gamma,
                self.config.gae_lambda,
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
            for start in range(0, minibatch_size * config.minibatches, minibatch_size):
                minibatch = {
                    name: values[:, start : start + minibatch_size]
                    for name, values in shuffled.items()
                }
                with self._timed("gradient"):
                    statistics = compute_gradient(self.networks, minibatch, config)
                    self.gradient_norms = statistics[:, GRADIENT_NORM].clone()
                if config.target_kl is not None:
                    active &= ~(statistics[:, APPROX_KL] > config.target_kl).cpu().numpy()
                    statistics[torch.from_numpy(~active)] = math.nan
                    if not active.any():
                        break
                log.append(statistics)
                with self._timed("optimizer"):
                    if config.max_grad_norm > 0:
                        clip_gradient(self.networks, self.gradient_norms, config.max_grad_norm)
                    self.optimizer.step(None if active.all() else active)
            if not active.any():
                break
        if not log:
            log.append(torch.full((self.num_members, len(MINIBATCH_STATISTICS)), math.nan))
        return torch.stack(log).cpu().numpy().astype(np.float64)

    def _action_noise(self) -> NDArray:
        """Standard normals [S, T, N, A], each member's from its own stream."""
        shape = self.rollout.actions.shape[1:]
        dtype = self.networks.parameters.data.dtype
        return np.stack(
            [
                torch.randn(shape, generator=generator, dtype=dtype).numpy()
                for generator in self.streams.action_noise
            ]
        )

    def _permutations(self, num_samples: int) -> Tensor:
        return torch.stack(
            [torch.randperm(num_samples, generator=g) for g in self.streams.minibatch_order]
        )

    def _evaluate_rollout(self) -> None:
        """Values and log-probabilities of the whole rollout, in one go after it."""
        rollout = self.rollout
        observations = rollout.samples("observations", self.device)
        actions = rollout.samples("actions", self.device)
        log_std = self.networks.log_std.unsqueeze(1)
        log_probs, values = [], []
        for chunk, taken in zip(
            observations.split(INFERENCE_CHUNK, 1), actions.split(INFERENCE_CHUNK, 1), strict=True
        ):
            z = (taken - self.networks.actor.forward(chunk)) * torch.exp(-log_std)
            log_probs.append(gaussian_log_probs(z, log_std))
            values.append(self.networks.critic.forward(chunk).squeeze(-1))
        shape = rollout.values.shape
        rollout.log_probs[:] = torch.cat(log_probs, 1).view(shape).cpu().numpy()
        rollout.values[:] = torch.cat(values, 1).view(shape).cpu().numpy()

    def _values(self, observations: NDArray) -> NDArray:
        """[S, B, O] → the critic's values [S, B]."""
        inputs = torch.from_numpy(observations).to(self.device)
        return self.networks.critic.forward(inputs).squeeze(-1).cpu().numpy()

    def _bootstrap_time_limits(self, time_limits: list[tuple[int, int, int, NDArray]]) -> None:
        """Add γ·V(last observation) to the reward of every step at which time ran out."""
        for member, step, index, observation in time_limits:
            inputs = np.zeros((self.num_members, 1, observation.size), self.rollout.rewards.dtype)
            inputs[member, 0] = observation
            value = self._values(inputs)[member, 0]
            self.rollout.rewards[member, step, index] += self.config.gamma * value

    def _record_episodes(
        self, step: int, ended: NDArray, terminations: NDArray, infos: dict[str, Any]
    ) -> None:
        steps = self.steps + (step + 1) * self.envs_per_member
        for env in np.flatnonzero(ended):
            member = int(env) // self.envs_per_member
            episode_return = float(infos["episode"]["r"][env])
            length = int(infos["episode"]["l"][env])
            if self.healthy[member]:
                self._episodes.append(
                    Episode(member, steps, episode_return, length, bool(terminations[env]))
                )

    def _note_simulation_errors(self, infos: dict[str, Any]) -> None:
        for env in np.flatnonzero(infos["_simulation_error"]):
            member = int(env) // self.envs_per_member
            self._simulator_errors.setdefault(
                member, f"simulator: {infos['simulation_error'][env]}"
            )

    def _halt_sick_members(self, log: NDArray) -> list[tuple[int, str]]:
        """Find members that became non-finite, and park them at their last good weights."""
        data = self.networks.parameters.data
        skips = self.config.target_kl is not None
        sick = {**find_sick_members(data, self.rollout, log, skips), **self._simulator_errors}
        halted = [(member, sick[member]) for member in sorted(sick) if self.healthy[member]]
        for member, _ in halted:
            self.healthy[member] = False
        if not self.healthy.all():
            parked = torch.from_numpy(~self.healthy)
            data[parked] = self.previous_parameters[parked]
            self._exclude_parked_members()
        return halted

    def state_dict(self) -> dict[str, Any]:
        """Everything the members are between two iterations, member axis first."""
        return {
            "iteration": self.iteration,
            "parameters": self.networks.parameters.data.clone(),
            "initial_parameters": self.initial_parameters.clone(),
            "optimizer": self.optimizer.state_dict(),
            "random_streams": self.streams.state_dict(),
            "environment": saving.state_dict(self.env),
            "next_observations": self.rollout.next_observations.copy(),
            "next_dones": self.rollout.next_dones.copy(),
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
        # Seeds of their own, so that the episodes are not the run's first ones again.
        seeds = [seed + self.iteration for seed in self.environment_seeds]
        observations = saving.load_state_dict(self.env, state["environment"], seeds)
        if observations is None:
            self.rollout.next_observations[:] = state["next_observations"]
            self.rollout.next_dones[:] = state["next_dones"]
        else:
            self.rollout.next_observations[:] = self._by_member(observations)
            self.rollout.next_dones[:] = 1.0
        self._exclude_parked_members()

    def _exclude_parked_members(self) -> None:
        saving.exclude(self.env, np.repeat(~self.healthy, self.envs_per_member))

    @property
    def steps(self) -> int:
        """Environment steps of each member at the last iteration's end."""
        return self.iteration * self.config.rollout_steps * self.envs_per_member

    def _by_member(self, values: NDArray) -> NDArray:
        """[S·N, …] → [S, N, …], in the learner's precision."""
        shaped = values.reshape(self.num_members, self.envs_per_member, *values.shape[1:])
        if shaped.dtype == np.float64:
            return shaped.astype(self.rollout.rewards.dtype)
        return shaped

    def _by_env(self, values: NDArray) -> NDArray:
        """[S, N, …] → [S·N, …]."""
        return values.reshape(-1, *values.shape[2:])

    @contextmanager
    def _timed(self, phase: str) -> Iterator[None]:
        start = perf_counter()
        yield
        self.seconds[phase] += perf_counter() - start


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
