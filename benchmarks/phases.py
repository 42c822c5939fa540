"""Where a training loop spends its time, by timers around its functions."""

from __future__ import annotations

import functools
from collections import defaultdict
from time import perf_counter
from typing import Any

import upgd_ppo.agents.learners.ppo
from upgd_ppo.agents.learners.collector import Collector
from upgd_ppo.agents.learners.ppo import PPO
from upgd_ppo.agents.networks.stacked_mlp import StackedMLP
from upgd_ppo.agents.optimizers import tiled_optimizer as block_optimizer
from upgd_ppo.agents.optimizers.population_optimizer import PopulationOptimizer
from upgd_ppo.agents.runs.keeper import Keeper
from upgd_ppo.agents.runs.telemetry import Telemetry
from upgd_ppo.envs.batched_mujoco import BatchedMujocoEnv
from upgd_ppo.envs.normalization import NormalizeObservation, NormalizeReward
from upgd_ppo.envs.simulation import Simulation

PHASES: list[tuple[str, Any, str]] = [
    ("physics", Simulation, "step"),
    ("task", BatchedMujocoEnv, "step"),
    ("normalization", NormalizeObservation, "step"),
    ("normalization", NormalizeReward, "step"),
    ("inference", StackedMLP, "infer"),
    ("storage", Collector, "collect"),
    ("evaluation", Collector, "_evaluate_rollout"),
    ("advantages", PPO, "estimate_advantages"),
    ("minibatches", PPO, "update"),
    ("gradient", upgd_ppo.agents.learners.ppo, "compute_gradient"),
    ("optimizer", PopulationOptimizer, "step"),
    ("noise", block_optimizer, "fill_with_noise"),
    ("statistics", PPO, "inspect"),
    ("logging", Telemetry, "record"),
    ("logging", Keeper, "_flush"),
]
"""Phase, and the function whose time it is, less that of the others that it calls."""


class PhaseTimers:
    """Counts the seconds spent in each phase, from now on, in this process.

    Args:
        only: phases to count; the time of others is then not told apart from theirs.

    Attributes:
        seconds: phase → seconds since the last `clear`.
    """

    def __init__(self, only: set[str] | None = None) -> None:
        self.seconds: dict[str, float] = defaultdict(float)
        self._running: list[str] = []
        self._since = 0.0
        for phase, owner, name in PHASES:
            if only and phase not in only:
                continue
            setattr(owner, name, self._timed(phase, getattr(owner, name)))

    def clear(self) -> None:
        """Begin anew."""
        self.seconds.clear()

    def _timed(self, phase: str, function: Any) -> Any:
        @functools.wraps(function)
        def timed(*args: Any, **kwargs: Any) -> Any:
            self._switch()
            self._running.append(phase)
            try:
                return function(*args, **kwargs)
            finally:
                self._switch()
                self._running.pop()

        return timed

    def _switch(self) -> None:
        """Charge the time since the last switch to the innermost phase that runs."""
        now = perf_counter()
        if self._running:
            self.seconds[self._running[-1]] += now - self._since
        self._since = now
