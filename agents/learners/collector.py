"""Playing the current policies in their environments: how a rollout is filled."""

from __future__ import annotations

from typing import Any

import gymnasium as gym
import numpy as np
import torch
from numpy.typing import NDArray

from upgd_ppo.agents.learners.iteration_report import Episode
from upgd_ppo.agents.learners.rollout import Rollout
from upgd_ppo.agents.networks.actor_critic import ActorCritic
from upgd_ppo.agents.networks.distribution import (
    DRAW_LIMIT,
    gaussian_log_probs,
    squash,
    std_of_output_numpy,
)
from upgd_ppo.envs import wrapped as saving

INFERENCE_CHUNK = 512
"""Samples of a member that are evaluated at once: activations of this many stay in cache."""


class Collector:
    """Plays S members with N environments each, T steps at a time.

    Args:
        env: S·N sub-environments, member-major, resetting in the step that ends an episode.
        environment_seeds: a reset seed for each sub-environment.
        networks: actor and critic of the S members.
        action_noise: one generator per member.
        rollout_steps: T.
        time_limit_discount: γ, to add the discounted value of what would have followed to the
            reward of a step at which time ran out; 0 leaves the reward as it is.
        squash: squash actions into the box by tanh; what is kept of them is the draws before.
        clip: clip actions to the box.

    Attributes:
        mean_stds: [S, A], the policy's standard deviations averaged over the rollout.
        rollout: what was collected last.
        episodes: those that ended in it, in order, their steps counted from its beginning.
        simulator_errors: member → the first message that its simulations raised in it.
    """

    def __init__(
        self,
        env: gym.vector.VectorEnv,
        environment_seeds: list[int],
        networks: ActorCritic,
        action_noise: list[torch.Generator],
        rollout_steps: int,
        time_limit_discount: float,
        squash: bool = False,
        clip: bool = True,
    ) -> None:
        self.env = env
        self.environment_seeds = list(environment_seeds)
        self.networks = networks
        self.action_noise = action_noise
        self.time_limit_discount = time_limit_discount
        self.squash, self.clip = squash, clip
        data = networks.parameters.data
        self.device = data.device
        self.num_members = len(data)
        self.envs_per_member = env.num_envs // self.num_members
        action_space = env.single_action_space
        observation_space = env.single_observation_space
        assert isinstance(action_space, gym.spaces.Box)
        assert observation_space.shape is not None
        self.action_low, self.action_high = action_space.low, action_space.high
        self.rollout = Rollout(
            self.num_members,
            rollout_steps,
            self.envs_per_member,
            observation_space.shape[0],
            action_space.shape[0],
            np.float64 if data.dtype == torch.float64 else np.float32,
        )
        self.episodes: list[Episode] = []
        self.simulator_errors: dict[int, str] = {}
        observations, _ = env.reset(seed=self.environment_seeds)  # type: ignore[arg-type]
        self._begin_with(observations)

    def collect(self) -> None:
        """Fill the rollout with T steps of the current policies, and evaluate them afterwards."""
        # What every step needs: weights as arrays, noise, buffers
        rollout = self.rollout
        self.episodes, self.simulator_errors = [], {}
        layers = self.networks.actor.numpy_layers()
        perturbations = self._draw_action_noise()
        # Time first, while it passes: a step is then written in one place.
        shape = rollout.num_steps, self.num_members, self.envs_per_member
        all_observations = np.empty((*shape, rollout.observations.shape[-1]), rollout.rewards.dtype)
        all_actions = np.empty_like(perturbations)
        all_rewards, all_ended = np.empty((shape[0], self.env.num_envs)), np.empty(shape, bool)
        time_limits: list[tuple[int, int, int, NDArray]] = []
        observations = rollout.next_observations

        for step in range(rollout.num_steps):
            # Act
            all_observations[step] = observations
            outputs = self.networks.actor.infer(all_observations[step], layers)
            perturbation = perturbations[step]
            if self.networks.state_dependent_std:
                outputs, raw = np.split(outputs, 2, axis=-1)
                perturbation = perturbation * std_of_output_numpy(raw)
            actions = np.add(outputs, perturbation, out=all_actions[step])
            # Step the environments
            next_observations, rewards, terminations, truncations, infos = self.env.step(
                self._played(actions)
            )
            observations = self._by_member(next_observations)
            all_rewards[step] = rewards
            # Note what ended, and what the simulator says
            ended = np.logical_or(terminations, truncations)
            all_ended[step] = self._by_member(ended)
            if np.count_nonzero(ended):
                self._note_episodes(step, ended, terminations, infos)
                if self.time_limit_discount > 0:
                    for env in np.flatnonzero(truncations & ~terminations):
                        member, index = divmod(int(env), self.envs_per_member)
                        time_limits.append((member, step, index, infos["final_obs"][env]))
            if "simulation_error" in infos:
                self._note_simulation_errors(infos)

        # Store, member axis first
        rollout.observations[:] = all_observations.swapaxes(0, 1)
        rollout.actions[:] = all_actions.swapaxes(0, 1)
        rollout.rewards[:] = all_rewards.reshape(shape).swapaxes(0, 1)
        rollout.dones[:, 0] = rollout.next_dones
        rollout.dones[:, 1:] = all_ended[:-1].swapaxes(0, 1)
        rollout.next_observations[:] = observations
        rollout.next_dones[:] = all_ended[-1]
        # Evaluate: values and log-probabilities, and what would have followed a time limit
        self._evaluate_rollout()
        self._bootstrap_time_limits(time_limits)

    def _played(self, actions: NDArray) -> NDArray:
        """What the environments are given [S·N, A] for actions [S, N, A], of which those to be
        squashed are kept within bounds, in place."""
        if self.squash:
            np.minimum(np.maximum(actions, -DRAW_LIMIT, out=actions), DRAW_LIMIT, out=actions)
            return squash(self._by_env(actions), self.action_low, self.action_high)
        if self.clip:
            return np.minimum(np.maximum(self._by_env(actions), self.action_low), self.action_high)
        return self._by_env(actions)

    def state_dict(self) -> dict[str, Any]:
        """Where the environments stand, member axis first."""
        return {
            "environment": saving.state_dict(self.env),
            "next_observations": self.rollout.next_observations.copy(),
            "next_dones": self.rollout.next_dones.copy(),
        }

    def load_state_dict(self, state: dict[str, Any], iteration: int) -> None:
        """Continue from a state that `state_dict` gave.

        Where an environment cannot restore its state, its episode starts anew, with seeds of that
        iteration's own, so that the episodes are not the run's first ones again.
        """
        seeds = [seed + iteration for seed in self.environment_seeds]
        observations = saving.load_state_dict(self.env, state["environment"], seeds)
        if observations is None:
            self.rollout.next_observations[:] = state["next_observations"]
            self.rollout.next_dones[:] = state["next_dones"]
        else:
            self._begin_with(observations)

    def exclude(self, members: NDArray) -> None:
        """Stop playing these members, [S] bool."""
        saving.exclude(self.env, np.repeat(members, self.envs_per_member))

    def _begin_with(self, observations: NDArray) -> None:
        self.rollout.next_observations[:] = self._by_member(observations)
        self.rollout.next_dones[:] = 1.0

    def _draw_action_noise(self) -> NDArray:
        """What is added to the actions, [T, S, N, A], each member's from its own stream; in units
        of the standard deviation where that depends on the state."""
        shape = self.rollout.actions.shape[1:]
        dtype = self.networks.parameters.data.dtype
        std = np.ones((self.num_members, 1), self.rollout.actions.dtype)
        if not self.networks.state_dependent_std:
            std = self.networks.log_std.exp().cpu().numpy()
        return np.stack(
            [
                torch.randn(shape, generator=generator, dtype=dtype).numpy() * std[member]
                for member, generator in enumerate(self.action_noise)
            ],
            axis=1,
        )

    def _note_episodes(
        self, step: int, ended: NDArray, terminations: NDArray, infos: dict[str, Any]
    ) -> None:
        for env in np.flatnonzero(ended):
            self.episodes.append(
                Episode(
                    int(env) // self.envs_per_member,
                    (step + 1) * self.envs_per_member,
                    float(infos["episode"]["r"][env]),
                    int(infos["episode"]["l"][env]),
                    bool(terminations[env]),
                )
            )

    def _note_simulation_errors(self, infos: dict[str, Any]) -> None:
        for env in np.flatnonzero(infos["_simulation_error"]):
            member = int(env) // self.envs_per_member
            message = f"simulator: {infos['simulation_error'][env]}"
            self.simulator_errors.setdefault(member, message)

    def _evaluate_rollout(self) -> None:
        """Values and log-probabilities of the whole rollout, in one go after it."""
        rollout = self.rollout
        observations = rollout.samples("observations", self.device)
        actions = rollout.samples("actions", self.device)
        log_probs, values, stds = [], [], []
        for chunk, taken in zip(
            observations.split(INFERENCE_CHUNK, 1), actions.split(INFERENCE_CHUNK, 1), strict=True
        ):
            outputs = self.networks.actor.forward(chunk)
            if self.networks.state_dependent_std:
                means, std = self.networks.means_and_stds(outputs)
                log_std, inverse_std = std.log(), std.reciprocal()
                stds.append(std)
            else:
                means, log_std = outputs, self.networks.log_std.unsqueeze(1)
                inverse_std = torch.exp(-log_std)
            log_probs.append(gaussian_log_probs((taken - means) * inverse_std, log_std))
            values.append(self.networks.critic.forward(chunk).squeeze(-1))
        shape = rollout.values.shape
        rollout.log_probs[:] = torch.cat(log_probs, 1).view(shape).cpu().numpy()
        rollout.values[:] = torch.cat(values, 1).view(shape).cpu().numpy()
        self.mean_stds = torch.cat(stds, 1).mean(1) if stds else self.networks.log_std.exp()

    def _bootstrap_time_limits(self, time_limits: list[tuple[int, int, int, NDArray]]) -> None:
        """Add γ·V(last observation) to the reward of every step at which time ran out."""
        for member, step, index, observation in time_limits:
            inputs = np.zeros((self.num_members, 1, observation.size), self.rollout.rewards.dtype)
            inputs[member, 0] = observation
            value = self.networks.values(inputs)[member, 0]
            self.rollout.rewards[member, step, index] += self.time_limit_discount * value

    def _by_member(self, values: NDArray) -> NDArray:
        """[S·N, …] → [S, N, …], in the learner's precision."""
        shaped = values.reshape(self.num_members, self.envs_per_member, *values.shape[1:])
        if shaped.dtype == np.float64:
            return shaped.astype(self.rollout.rewards.dtype)
        return shaped

    def _by_env(self, values: NDArray) -> NDArray:
        """[S, N, …] → [S·N, …]."""
        return values.reshape(-1, *values.shape[2:])
