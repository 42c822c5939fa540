"""What a population collects between two updates, and the advantages computed from it."""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor


class Rollout:
    """T steps of S members with N environments each.

    Attributes:
        observations: [S, T, N, O], as the policy saw them.
        actions: [S, T, N, A], as sampled, before they are clipped or squashed into the box.
        rewards: [S, T, N], as the learner sees them.
        dones: [S, T, N], 1 where `observations[:, t]` begins an episode.
        log_probs: [S, T, N], of the actions under the policy that sampled them.
        values: [S, T, N], the critic's estimates for the observations.
        next_observations: [S, N, O], what follows the last step.
        next_dones: [S, N], 1 where `next_observations` begin an episode.
    """

    def __init__(
        self,
        num_members: int,
        num_steps: int,
        envs_per_member: int,
        observation_size: int,
        action_size: int,
        dtype: np.typing.DTypeLike = np.float32,
    ) -> None:
        steps = (num_members, num_steps, envs_per_member)
        self.observations = np.zeros((*steps, observation_size), dtype)
        self.actions = np.zeros((*steps, action_size), dtype)
        self.rewards = np.zeros(steps, dtype)
        self.dones = np.zeros(steps, dtype)
        self.log_probs = np.zeros(steps, dtype)
        self.values = np.zeros(steps, dtype)
        self.next_observations = np.zeros((num_members, envs_per_member, observation_size), dtype)
        self.next_dones = np.zeros((num_members, envs_per_member), dtype)

    @property
    def num_steps(self) -> int:
        """T."""
        return self.rewards.shape[1]

    def samples(self, name: str, device: torch.device | str) -> Tensor:
        """One of the attributes with time and environment merged: [S, T·N, …]."""
        array = getattr(self, name)
        return torch.from_numpy(array).flatten(1, 2).to(device)


def generalized_advantages(
    rewards: NDArray,
    values: NDArray,
    dones: NDArray,
    next_values: NDArray,
    next_dones: NDArray,
    gamma: float,
    gae_lambda: float,
) -> NDArray:
    """Generalised advantage estimates [S, T, N] (Schulman et al., 2016, eq. 16).

    Args:
        rewards: [S, T, N].
        values: [S, T, N].
        dones: [S, T, N], 1 where step t begins an episode, so that nothing after it counts
            towards step t − 1.
        next_values: [S, N], the value of what follows the last step.
        next_dones: [S, N], 1 where what follows the last step begins an episode.
        gamma: discount γ.
        gae_lambda: λ.
    """
    following_values = np.concatenate([values[:, 1:], next_values[:, None]], axis=1)
    non_terminal = 1 - np.concatenate([dones[:, 1:], next_dones[:, None]], axis=1)
    deltas = rewards + gamma * following_values * non_terminal - values
    discounts = gamma * gae_lambda * non_terminal
    advantages = np.empty_like(rewards)
    advantage = np.zeros_like(next_values)
    for step in reversed(range(rewards.shape[1])):
        advantage = deltas[:, step] + discounts[:, step] * advantage
        advantages[:, step] = advantage
    return advantages
