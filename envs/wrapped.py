"""The state of a wrapped vector environment: what each of its layers remembers."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
from gymnasium.vector import VectorEnv, VectorWrapper
from numpy.typing import NDArray


def state_dict(env: VectorEnv) -> dict[str, Any]:
    """The states of all layers that have one, by class name.

    Arrays and lists have a leading member or sub-environment axis.
    """
    return {
        type(layer).__name__: layer.state_dict()
        for layer in _layers(env)
        if hasattr(type(layer), "state_dict")
    }


def load_state_dict(
    env: VectorEnv, state: dict[str, Any], fallback_seeds: Sequence[int]
) -> NDArray | None:
    """Continue from a state that `state_dict` gave.

    Args:
        env: wrapped like the one that was saved.
        state: what was saved.
        fallback_seeds: where the environment cannot restore its state, new episodes begin with
            these seeds, one per sub-environment.

    Returns:
        None if the state was restored exactly, else the first observations of the new episodes.
    """
    for layer in _layers(env):
        if hasattr(type(layer), "load_state_dict"):
            layer.load_state_dict(state[type(layer).__name__])
    if getattr(env.unwrapped, "exact_state", False):
        return None
    observations, _ = env.reset(seed=list(fallback_seeds))  # type: ignore[arg-type]
    return np.asarray(observations)


def exclude(env: VectorEnv, excluded: NDArray[np.bool_]) -> None:
    """Stop stepping some sub-environments, where the environment knows how to.

    Args:
        env: the environment.
        excluded: [num_envs] bool.
    """
    if hasattr(env.unwrapped, "set_active"):
        env.unwrapped.set_active(~excluded)


def _layers(env: Any) -> Iterator[Any]:
    """Wrappers, outermost first, then the environment itself."""
    yield env
    while isinstance(env, VectorWrapper):
        env = env.env
        yield env
