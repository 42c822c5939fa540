"""An environment whose failure does not end the others that are stepped with it."""

from __future__ import annotations

import contextlib
import traceback
from typing import Any

import gymnasium
import numpy as np
from gymnasium.spaces import Box
from numpy.typing import NDArray

Observation = NDArray[np.float64]


class ContainedEnv(gymnasium.Wrapper[Observation, NDArray[Any], Observation, NDArray[Any]]):
    """An environment that says in its infos that it failed, rather than raise.

    It has failed when a call raises (or asks Python to exit), or returns an observation of another
    shape, a reward that is no number, or one of them not finite. From then on it is not stepped
    any more: it returns the last good observation, reward 0 and neither flag, and
    `infos["simulation_error"]`, as `BatchedMujocoEnv` does. A reset with a seed tries again.

    Args:
        env: has float64 vectors for observations.
        task_infos: whether to pass on what it reports itself in its infos.

    Attributes:
        active: False: not stepped either, but nothing is reported.
        failure: what went wrong, None if nothing has.
    """

    def __init__(self, env: gymnasium.Env, task_infos: bool) -> None:
        super().__init__(env)
        self.task_infos = task_infos
        assert isinstance(env.observation_space, Box)
        self._observation: Observation = np.zeros(env.observation_space.shape)
        self.active = True
        self.failure: str | None = None

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[Observation, dict[str, Any]]:
        """Reset, or say what went wrong."""
        if seed is not None:
            self.failure = None
        if self.failure is None:
            try:
                observation, infos = self.env.reset(seed=seed, options=options)
                return self._checked(observation), self._own(infos)
            except (Exception, SystemExit) as error:
                self.failure = _describe("reset()", error)
        return self._observation, {"simulation_error": self.failure}

    def step(self, action: NDArray[Any]) -> tuple[Observation, float, bool, bool, dict[str, Any]]:
        """Step, or say what went wrong."""
        if not self.active:
            return self._observation, 0.0, False, False, {}
        if self.failure is None:
            try:
                observation, reward, terminated, truncated, infos = self.env.step(action)
                number = np.asarray(reward, np.float64).item()
                if not np.isfinite(number):
                    raise _NotUsable(f"a non-finite reward, {number}")
                ended = bool(terminated), bool(truncated)
                return self._checked(observation), number, *ended, self._own(infos)
            except (Exception, SystemExit) as error:
                self.failure = _describe("step()", error)
        return self._observation, 0.0, False, False, {"simulation_error": self.failure}

    def close(self) -> None:
        """Close it, as far as it lets us."""
        with contextlib.suppress(Exception, SystemExit):
            super().close()

    def _checked(self, observation: Observation) -> Observation:
        if np.shape(observation) != self._observation.shape:
            raise _NotUsable(
                f"an observation of size {np.size(observation)}, not {self._observation.size}"
            )
        if not np.isfinite(observation).all():
            raise _NotUsable("a non-finite observation")
        self._observation = observation
        return observation

    def _own(self, infos: dict[str, Any]) -> dict[str, Any]:
        return dict(infos) if self.task_infos else {}


class _NotUsable(ValueError):
    """What an environment returned."""


def _describe(call: str, error: BaseException) -> str:
    if isinstance(error, _NotUsable):
        return f"{call} returned {error}"
    where = traceback.extract_tb(error.__traceback__)[-1]
    return f"{call} raised {type(error).__name__}: {error} ({where.filename}, line {where.lineno})"
