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

Places = tuple[np.ndarray, np.ndarray]
"""Steps and environments of samples."""


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
        f"{type(model).__name__} does not; call upgd_ppo.measure on its policy instead."
    )


class RolloutBatch:
    """The latest rollout of an on-policy algorithm, or as many of them as hold 1024 samples.

    Of a larger one 1024 evenly spaced samples are kept, of every environment the same number.
    Recurrent policies are run with the states that they had when they collected the samples.
    """

    def __init__(self, model: BaseAlgorithm) -> None:
        self._model = model
        buffer = model.rollout_buffer  # type: ignore[attr-defined]
        kept = -(-MAX_SAMPLES // (buffer.buffer_size * buffer.n_envs))
        self._rollouts: deque[Tree] = deque(maxlen=kept)

    def collect(self) -> None:
        """Take in the rollout that has just ended."""
        self._rollouts.append(self._latest())

    def inputs(self) -> Tree:
        """The samples, one along axis 0 of every array."""
        return _concatenate(list(self._rollouts))

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
        places = _evenly_spaced(buffer.buffer_size, buffer.n_envs)
        tree = {"observations": _at(places, buffer.observations)}
        if hasattr(buffer, _RECURRENT[0]):
            tree["episode_starts"] = _at(places, buffer.episode_starts)
            for name in _RECURRENT:  # [steps, layers, envs, units]
                tree[name] = _at(places, getattr(buffer, name).swapaxes(1, 2))
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
        places = _evenly_spaced(buffer.size(), buffer.n_envs)
        observations = _at(places, buffer.observations)
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


def _evenly_spaced(steps: int, envs: int) -> Places:
    """At most 1024 of the places of arrays [steps, envs, …].

    Counted environment by environment: counted step by step, the distance between two would often
    be a multiple of the number of environments, and all would lie in the first one.
    """
    count = steps * envs
    limit = min(count, MAX_SAMPLES)
    environment, step = np.divmod(np.arange(limit) * count // limit, steps)
    return step, environment


def _at(places: Places, tree: Tree) -> Tree:
    """Arrays [steps, envs, …] → [samples, …]."""
    if isinstance(tree, dict):
        return {name: _at(places, part) for name, part in tree.items()}
    return tree[places]


def _concatenate(trees: list[Tree]) -> Tree:
    if isinstance(trees[0], dict):
        return {name: _concatenate([tree[name] for tree in trees]) for name in trees[0]}
    return np.concatenate(trees)
