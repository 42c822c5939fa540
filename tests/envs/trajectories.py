"""Trajectories to compare: Gymnasium's own environments, and exact comparison of everything."""

import warnings
from functools import partial
from typing import Any

import gymnasium
import numpy as np
from gymnasium.vector import AutoresetMode, SyncVectorEnv, VectorEnv
from gymnasium.wrappers.vector import RecordEpisodeStatistics


def make_quietly(task: str, **kwargs: Any) -> gymnasium.Env:
    """`gymnasium.make` without its advice to move on from v4."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        return gymnasium.make(task, **kwargs)


def gymnasium_envs(
    task: str, num_envs: int, limit: int | None = None, kwargs: dict[str, Any] | None = None
) -> VectorEnv:
    """Gymnasium's own environments, one after the other, with episode statistics."""
    build = partial(make_quietly, task, max_episode_steps=limit, **(kwargs or {}))
    env = SyncVectorEnv([build] * num_envs, autoreset_mode=AutoresetMode.SAME_STEP)
    return RecordEpisodeStatistics(env)


def random_actions(env: VectorEnv, steps: int, excess: float = 1.0, seed: int = 0) -> np.ndarray:
    """[steps, num_envs, size] float32, over the action space (stretched by `excess`)."""
    low, high = env.single_action_space.low, env.single_action_space.high
    shape = (steps, *env.action_space.shape)
    actions = np.random.default_rng(seed).uniform(low * excess, high * excess, shape)
    return actions.astype(np.float32)


def play(env: VectorEnv, actions: np.ndarray, seed: int | list[int] | None = 5) -> list[tuple]:
    """What reset and then each step returns; durations, which nobody can repeat, left out."""
    returned: list[tuple] = [env.reset(seed=seed)]
    for action in actions:
        returned.append(env.step(action))
        if "episode" in returned[-1][-1]:
            returned[-1][-1]["episode"].pop("t", None)
    return returned


def assert_same(left: Any, right: Any, where: str = "") -> None:
    """Same structure, same dtypes, same shapes, same bits (any NaN equals any NaN)."""
    if isinstance(left, dict):
        assert set(left) == set(right), where
        for key in left:
            assert_same(left[key], right[key], f"{where}/{key}")
    elif isinstance(left, (list, tuple)) or (isinstance(left, np.ndarray) and left.dtype.hasobject):
        assert len(left) == len(right), where
        for i, (one, other) in enumerate(zip(left, right, strict=True)):
            assert_same(one, other, f"{where}/{i}")
    elif isinstance(left, np.ndarray):
        assert left.dtype == right.dtype, where
        assert np.array_equal(left, right, equal_nan=left.dtype.kind == "f"), where
    else:
        assert left == right, where


def rows(returned: list[tuple], selection: slice) -> list[list[np.ndarray]]:
    """The same, of some sub-environments and without infos."""
    return [[array[selection] for array in step[:-1]] for step in returned]
