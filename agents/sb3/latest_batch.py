"""The observations that an algorithm is learning from, and how its networks run on them."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from stable_baselines3.common.base_class import BaseAlgorithm
from stable_baselines3.common.off_policy_algorithm import OffPolicyAlgorithm

MAX_SAMPLES = 1024
"""Samples that statistics are measured on; more would not change them noticeably."""

Tree = Any
"""An array, or a dict of trees."""


def latest_batch(model: BaseAlgorithm) -> ReplayBatch | RolloutBatch:
    """What a model's statistics are measured on: its replay buffer or its latest rollouts.

    Raises:
        TypeError: if the algorithm has neither.
    """
    if isinstance(model, OffPolicyAlgorithm):
        return ReplayBatch(model)
    if hasattr(model, "rollout_buffer"):
        return RolloutBatch(model)
    raise TypeError(
        f"PlasticityCallback needs an algorithm that learns from a rollout or replay buffer, which "
        f"{type(model).__name__} does not; call agents.plasticity.measure on its policy instead."
    )


class RolloutBatch:
    """The latest rollout of an on-policy algorithm, or as many of them as hold 1024 samples.

    Recurrent policies are run with the states that they had when they collected the samples.
    """

    def __init__(self, model: BaseAlgorithm) -> None:
        self._model = model
        buffer = model.rollout_buffer  # type: ignore[attr-defined]
        kept = -(-MAX_SAMPLES // (buffer.buffer_size * buffer.n_envs))
        self._rollouts: deque[Tree] = deque(maxlen=kept)

    def collect(self) -> None:
        """Take in the rollout that has just ended, where one is not enough."""
        if self._rollouts.maxlen != 1:
            self._rollouts.append(_map(np.copy, self._latest()))

    def inputs(self) -> Tree:
        """The samples, one along axis 0 of every array."""
        return _concatenate(list(self._rollouts)) if self._rollouts else self._latest()

    def forward(self, inputs: Tree) -> None:
        """Run the policy on (tensors of) the inputs."""
        policy: Callable[..., Any] = self._model.policy
        if "episode_starts" not in inputs:
            policy(inputs["observations"])
            return
        from sb3_contrib.common.recurrent.type_aliases import RNNStates

        states = {name: inputs[name].transpose(0, 1).contiguous() for name in _RECURRENT}
        actor = (states["hidden_states_pi"], states["cell_states_pi"])
        critic = (states["hidden_states_vf"], states["cell_states_vf"])
        policy(inputs["observations"], RNNStates(actor, critic), inputs["episode_starts"])

    def _latest(self) -> Tree:
        buffer = self._model.rollout_buffer  # type: ignore[attr-defined]
        tree = {"observations": _map(_by_sample, buffer.observations)}
        if hasattr(buffer, _RECURRENT[0]):
            tree["episode_starts"] = _by_sample(buffer.episode_starts)
            for name in _RECURRENT:  # [steps, layers, envs, units]
                tree[name] = _by_sample(getattr(buffer, name).swapaxes(1, 2))
        return tree


_RECURRENT = ("hidden_states_pi", "cell_states_pi", "hidden_states_vf", "cell_states_vf")


class ReplayBatch:
    """Evenly spaced transitions of an off-policy algorithm's replay buffer, as it trains on them.

    They are not drawn at random, so that measuring leaves the random streams of training alone.
    """

    def __init__(self, model: OffPolicyAlgorithm) -> None:
        self._model = model

    def collect(self) -> None:
        """Nothing to take in: the buffer keeps what is needed."""

    def inputs(self) -> Tree:
        """The samples, one along axis 0 of every array."""
        buffer, normalizer = self._model.replay_buffer, self._model.get_vec_normalize_env()
        assert buffer is not None
        count = buffer.size() * buffer.n_envs
        chosen = np.linspace(0, count - 1, min(count, MAX_SAMPLES)).astype(int)
        places = (chosen // buffer.n_envs, chosen % buffer.n_envs)
        observations = _map(lambda array: array[places], buffer.observations)
        if normalizer is not None:
            observations = normalizer.normalize_obs(observations)
        return {"observations": observations, "actions": buffer.actions[places]}

    def forward(self, inputs: Tree) -> None:
        """Run actor and critic, or the value network, on (tensors of) the inputs."""
        policy: Any = self._model.policy
        if hasattr(policy, "actor") and hasattr(policy, "critic"):
            policy.actor(inputs["observations"])
            policy.critic(inputs["observations"], inputs["actions"].to(torch.float32))
        else:
            policy(inputs["observations"])


def _map(function: Callable[[np.ndarray], np.ndarray], tree: Tree) -> Tree:
    if isinstance(tree, dict):
        return {name: _map(function, part) for name, part in tree.items()}
    return function(tree)


def _concatenate(trees: list[Tree]) -> Tree:
    if isinstance(trees[0], dict):
        return {name: _concatenate([tree[name] for tree in trees]) for name in trees[0]}
    return np.concatenate(trees)


def _by_sample(array: np.ndarray) -> np.ndarray:
    """[steps, envs, …] → [samples, …]."""
    return array.reshape(-1, *array.shape[2:])
