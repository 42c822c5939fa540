"""The long-horizon loop: advance, log, show, save; until the steps are done or it is told to stop.

The runner knows an agent by four verbs (advance one iteration, report, state out, state in), so
that another kind of learner can be driven by the same loop.
"""

from __future__ import annotations

import contextlib
import signal
import sys
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from enum import Enum
from time import monotonic
from types import FrameType
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from agents.checkpoint import (
    DamagedCheckpointError,
    checkpoints,
    load_checkpoint,
    save_checkpoint,
)
from agents.config import TrainConfig
from agents.plasticity import Thresholds
from agents.progress import ProgressDisplay, Standing
from agents.report import IterationReport
from agents.run_directory import RunDirectory
from agents.telemetry import Telemetry

FLUSH_SECONDS = 30.0
"""At most this long passes before what was recorded can be seen on the disk."""


class Outcome(Enum):
    """How a run ended."""

    FINISHED = "finished"
    INTERRUPTED = "interrupted"
    ALL_HALTED = "all members halted"


class Agent(Protocol):
    """What the runner drives."""

    seeds: list[int]

    @property
    def iteration(self) -> int:
        """Iterations done."""

    @property
    def steps(self) -> int:
        """Environment steps of each member."""

    @property
    def healthy(self) -> NDArray:
        """[S] bool."""

    def advance(self) -> IterationReport:
        """One iteration, and what it gave."""

    def state_dict(self) -> dict[str, Any]:
        """State out."""

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """State in."""


@dataclass
class _StopRequest:
    """Whether a signal has asked the run to stop."""

    received: bool = False


class Runner:
    """Drives an agent to the end of its steps.

    Args:
        config: the arm.
        agent: what learns.
        directory: where its output goes.
    """

    def __init__(self, config: TrainConfig, agent: Agent, directory: RunDirectory) -> None:
        self.config = config
        self.agent = agent
        self.directory = directory
        self.telemetry = Telemetry(directory, agent.seeds, _thresholds(config))
        self._steps_per_second = 0.0
        self._last_checkpoint: str | None = None

    @classmethod
    def resume(cls, config: TrainConfig, agent: Agent, directory: RunDirectory) -> Runner:
        """A runner that continues from the newest checkpoint that is whole.

        Raises:
            ValueError: if there is none.
        """
        for path in checkpoints(directory.checkpoints):
            try:
                state = load_checkpoint(path)
            except DamagedCheckpointError as error:
                print(f"{error} Falling back to the one before.", file=sys.stderr)
                continue
            runner = cls.__new__(cls)
            runner.config, runner.agent, runner.directory = config, agent, directory
            agent.load_state_dict(state["agent"])
            runner.telemetry = Telemetry(
                directory, agent.seeds, _thresholds(config), state["telemetry"]["positions"]
            )
            runner.telemetry.load_state_dict(state["telemetry"], agent.steps)
            runner._steps_per_second = 0.0
            runner._last_checkpoint = path.name
            return runner
        raise ValueError(
            f"{directory.path} has no checkpoint to continue from; start it anew with"
            f" --config {directory.path / 'config.yaml'}."
        )

    def run(self) -> Outcome:
        """Train until the steps are done, every member is halted, or SIGINT or SIGTERM asks to
        stop; in each case everything is written and a checkpoint saved."""
        config, agent = self.config, self.agent
        title = f"{config.run.env} {config.run.opt}"
        last_flush = monotonic()
        next_checkpoint = self._next_checkpoint()
        with _stop_on_signals() as stop, ProgressDisplay(title, config.logging.print_every) as show:
            show.show(self._standing())
            while agent.iteration < config.num_iterations and agent.healthy.any():
                self._advance(show)
                if agent.steps >= next_checkpoint:
                    self.checkpoint()
                    next_checkpoint = self._next_checkpoint()
                if monotonic() - last_flush > FLUSH_SECONDS:
                    self.telemetry.flush(agent.steps)
                    last_flush = monotonic()
                if stop.received:
                    break
            self.checkpoint()
        outcome = self._outcome()
        self._write_status(outcome.value)
        self.telemetry.close()
        return outcome

    def checkpoint(self) -> None:
        """Save everything that a continued run needs."""
        steps = self.agent.steps
        self.telemetry.flush(steps, sync=True)
        path = save_checkpoint(
            self.directory.checkpoints,
            steps,
            {"agent": self.agent.state_dict(), "telemetry": self.telemetry.state_dict()},
            self.config.logging.keep_checkpoints,
        )
        self._last_checkpoint = path.name
        self._write_status("running")

    def _advance(self, show: ProgressDisplay) -> None:
        agent = self.agent
        steps_before, start = agent.steps, monotonic()
        report = agent.advance()
        elapsed = monotonic() - start
        rate = (agent.steps - steps_before) * len(agent.seeds) / elapsed
        self._steps_per_second = (
            0.9 * self._steps_per_second + 0.1 * rate if self._steps_per_second else rate
        )
        to_log = agent.iteration % self.config.logging.log_every == 0
        warnings = self.telemetry.record(report, agent.steps, agent.healthy, rate, to_log)
        for member, cause in report.halted:
            show.say(f"seed {agent.seeds[member]} halted at step {agent.steps:,}: {cause}")
        for warning in warnings:
            seed = agent.seeds[warning.member]
            show.say(f"warning: seed {seed}, step {agent.steps:,}: {warning.description}")
        show.show(self._standing())

    def _standing(self) -> Standing:
        agent = self.agent
        total = self.config.num_iterations * self.config.steps_per_iteration
        rate = self._steps_per_second
        left = (total - agent.steps) * len(agent.seeds) / rate if rate else 0.0
        returns = self.telemetry.mean_returns[agent.healthy]
        returns = returns[np.isfinite(returns)]
        return Standing(
            steps=agent.steps,
            total_steps=total,
            steps_per_second=rate,
            seconds_left=left,
            mean_return=float(returns.mean()) if len(returns) else float("nan"),
            healthy=int(agent.healthy.sum()),
            members=len(agent.seeds),
        )

    def _write_status(self, state: str) -> None:
        standing = self._standing()
        mean_return = standing.mean_return
        self.directory.write_status(
            {
                "state": state,
                "steps": standing.steps,
                "total_steps": standing.total_steps,
                "steps_per_second": round(standing.steps_per_second, 1),
                "seconds_left": round(standing.seconds_left, 1),
                "mean_return": mean_return if np.isfinite(mean_return) else None,
                "healthy_members": standing.healthy,
                "members": standing.members,
                "last_checkpoint": self._last_checkpoint,
            }
        )

    def _outcome(self) -> Outcome:
        if self.agent.iteration >= self.config.num_iterations:
            return Outcome.FINISHED
        return Outcome.INTERRUPTED if self.agent.healthy.any() else Outcome.ALL_HALTED

    def _next_checkpoint(self) -> int:
        every = self.config.logging.checkpoint_every
        return (self.agent.steps // every + 1) * every


def _thresholds(config: TrainConfig) -> Thresholds:
    return config.warnings.thresholds(config.ppo.activation)


@contextlib.contextmanager
def _stop_on_signals() -> Iterator[_StopRequest]:
    """SIGINT and SIGTERM ask to stop; a second one stops at once."""
    request = _StopRequest()
    if threading.current_thread() is not threading.main_thread():
        yield request
        return

    def handle(number: int, frame: FrameType | None) -> None:
        if request.received:
            signal.signal(number, signal.SIG_DFL)
            signal.raise_signal(number)
        request.received = True
        print("\nStopping after this iteration; once more to stop at once.", file=sys.stderr)

    previous = {number: signal.signal(number, handle) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield request
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)
