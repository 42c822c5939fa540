"""The long-horizon loop: advance, log, show, save; until the steps are done or it is told to stop.

The runner knows an agent by four verbs (advance one iteration, report, state out, state in), so
that another kind of learner can be driven by the same loop.
"""

from __future__ import annotations

import contextlib
import dataclasses
import math
import os
import sys
from collections.abc import Callable
from datetime import UTC, datetime
from enum import Enum
from time import monotonic
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from upgd_ppo.agents.learners.iteration_report import IterationReport
from upgd_ppo.agents.plasticity import EarlyWarningMonitor
from upgd_ppo.agents.population.workers import WorkerDiedError
from upgd_ppo.agents.runs.checkpoint import (
    DamagedCheckpointError,
    checkpoints,
    load_checkpoint,
    save_checkpoint,
)
from upgd_ppo.agents.runs.progress import ProgressDisplay, Standing
from upgd_ppo.agents.runs.run_directory import RunDirectory
from upgd_ppo.agents.runs.stopping import StopNow, StopSignals
from upgd_ppo.agents.runs.telemetry import Telemetry
from upgd_ppo.agents.settings.config import TrainConfig

FLUSH_SECONDS = 30.0
"""At most this long passes before what was logged can be seen on the disk, and between two attempts
to write where writing fails."""


class Outcome(Enum):
    """How a run ended."""

    FINISHED = "finished"
    INTERRUPTED = "interrupted"
    ALL_HALTED = "all members halted"
    FAILED = "failed"
    UNSAVED = "could not be saved"


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

    @property
    def exact_state(self) -> bool:
        """Whether a restored agent goes on exactly as it would have."""

    @property
    def why_no_kernels(self) -> str | None:
        """What keeps the compiled kernels from being used; None if nothing."""

    def advance(self) -> IterationReport:
        """One iteration, and what it gave."""

    def state_dict(self) -> dict[str, Any]:
        """State out."""

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """State in."""

    def close(self) -> None:
        """Let go of processes and environments."""


class Runner:
    """Drives an agent to the end of its steps.

    Args:
        config: the arm.
        agent: what learns.
        directory: where its output goes.
        state: where a continued run goes on from: what `load_checkpoint` gave.
    """

    def __init__(
        self,
        config: TrainConfig,
        agent: Agent,
        directory: RunDirectory,
        state: dict[str, Any] | None = None,
    ) -> None:
        self.config = config
        self.agent = agent
        self.directory = directory
        self.halted: list[dict[str, Any]] = []
        positions = state["telemetry"]["positions"] if state else None
        if state:
            agent.load_state_dict(state["agent"])
            self.halted = state["halted"]
        full = config.plasticity.tensorboard == "full"
        self.telemetry = Telemetry(directory, agent.seeds, _monitor(config), positions, full)
        if state:
            for damage in self.telemetry.load_state_dict(state["telemetry"], agent.steps):
                print(f"warning: {damage}", file=sys.stderr)
        self._last_checkpoint: str | None = None
        self._last_write = monotonic()
        self._writing_fails = False
        self._iteration_seconds = math.inf
        self._steps_per_second = 0.0
        self._abandoned_iteration = False
        self._timed_iterations = 0
        self._say: Callable[[str], None] = print
        self._hold()

    def run(self) -> Outcome:
        """Train until the steps are done, every member is halted, or a signal asks to stop; in
        each case everything is written and a checkpoint saved, if the disk lets it.

        Raises:
            Exception: what an iteration raised, after the state before it has been saved. (The
                death of a worker process is said instead, and gives `Outcome.FAILED`.)
        """
        config, agent = self.config, self.agent
        title = f"{config.run.env} {config.run.opt}"
        next_checkpoint = self._next_checkpoint()
        failure: BaseException | None = None
        with StopSignals() as stop, ProgressDisplay(title, config.logging.print_every) as display:
            self._say = display.say
            # From now on there is something to continue from, whenever the run is killed.
            self._attempt(self.checkpoint if agent.iteration == 0 else self._flush)
            display.show(self._standing())
            try:
                while (
                    agent.iteration < config.num_iterations
                    and agent.healthy.any()
                    and not stop.received
                ):
                    self._advance(stop)
                    display.show(self._standing())
                    may_write = not self._writing_fails or self._write_is_due()
                    if self._steps >= next_checkpoint and may_write:
                        if self._attempt(self.checkpoint):
                            next_checkpoint = self._next_checkpoint()
                    elif self._write_is_due():
                        self._attempt(lambda: self._flush(lazily=True))
            except BaseException as error:
                if not (self._abandoned_iteration or isinstance(error, StopNow)):
                    raise
                failure = error
            saved = self._attempt_last(self.checkpoint)
            outcome = self._outcome(failure) if saved else Outcome.UNSAVED
            self._attempt(lambda: self._write_status(outcome.value))
            if isinstance(failure, WorkerDiedError):
                self._say(str(failure))
            elif failure is not None and not isinstance(failure, StopNow):
                raise failure
        return outcome

    def checkpoint(self) -> None:
        """Save everything that a continued run needs.

        Raises:
            OSError: if it cannot be written; the checkpoints there are stay as they are.
        """
        self._flush(sync=True)
        state = {
            "agent": self._agent_state,
            "telemetry": self.telemetry.state_dict(),
            "halted": list(self.halted),
        }
        keep = self.config.logging.keep_checkpoints
        path = save_checkpoint(self.directory.checkpoints, self._steps, state, keep)
        self._last_checkpoint = path.name
        self._write_status("running")

    def _advance(self, stop: StopSignals) -> None:
        agent = self.agent
        steps_before, start = agent.steps, monotonic()
        stop.iteration_begins(self._iteration_seconds)
        try:
            report = agent.advance()
        except BaseException:
            self._abandoned_iteration = True
            raise
        finally:
            stop.iteration_ends()
        self._hold()
        self._iteration_seconds = monotonic() - start
        rate = (agent.steps - steps_before) * len(agent.seeds) / self._iteration_seconds
        # The first one compiles the kernels: it says nothing of those that follow.
        self._timed_iterations += 1
        self._steps_per_second = (
            0.9 * self._steps_per_second + 0.1 * rate if self._timed_iterations > 2 else rate
        )
        to_log = agent.iteration % self.config.logging.log_every == 0
        warnings = self.telemetry.record(report, agent.steps, agent.healthy, rate, to_log)
        for member, cause in report.halted:
            seed = agent.seeds[member]
            self.halted.append({"seed": seed, "step": agent.steps, "cause": cause})
            self._say(f"seed {seed} halted at step {agent.steps:,}: {cause}")
        for warning in warnings:
            seed = agent.seeds[warning.member]
            self._say(f"warning: seed {seed}, step {agent.steps:,}: {warning.description}")

    def _hold(self) -> None:
        """Keep the state between two iterations, to save it even if the next one never ends."""
        self._steps, self._agent_state = self.agent.steps, self.agent.state_dict()

    # ── What is written, and what if it cannot be ───────────────────────────────────────────────

    def _attempt(self, write: Callable[[], None]) -> bool:
        """Write, if the disk lets us; where it does not, say so once and go on."""
        try:
            self.directory.check_exists()
            write()
            # It may have vanished meanwhile: then what was written made another in its place.
            self.directory.check_exists()
        except OSError as error:
            if not self._writing_fails:
                self._say(
                    f"Cannot write to {self.directory.path}: {error.strerror or error}. Training"
                    f" goes on; the next attempt is in {FLUSH_SECONDS:.0f} s."
                )
            self._writing_fails, self._last_write = True, monotonic()
            return False
        if self._writing_fails:
            self._say(f"Writing to {self.directory.path} works again.")
        self._writing_fails, self._last_write = False, monotonic()
        return True

    def _attempt_last(self, write: Callable[[], None]) -> bool:
        """The same, in a directory made again if it has vanished."""
        with contextlib.suppress(OSError):
            self.directory.restore(self.config)
        return self._attempt(write)

    def _write_is_due(self) -> bool:
        return monotonic() - self._last_write > FLUSH_SECONDS

    def _flush(self, sync: bool = False, lazily: bool = False) -> None:
        self.telemetry.flush(self._steps, sync, lazily)
        self._write_status("running")

    def _write_status(self, state: str) -> None:
        standing = self._standing()
        self.directory.write_status(
            {
                "state": state,
                "process": os.getpid(),
                "updated": datetime.now(UTC).isoformat(timespec="seconds"),
                "steps": standing.steps,
                "total_steps": standing.total_steps,
                "steps_per_second": round(standing.steps_per_second, 1),
                "seconds_left": _finite(round(standing.seconds_left, 1)),
                "mean_return": _finite(standing.mean_return),
                "healthy_members": standing.healthy,
                "members": standing.members,
                "halted": self.halted,
                "last_checkpoint": self._last_checkpoint,
            }
        )

    # ── Where it stands ─────────────────────────────────────────────────────────────────────────

    def _standing(self) -> Standing:
        agent, steps = self.agent, self._steps
        total = self.config.num_iterations * self.config.steps_per_iteration
        rate, remaining = self._steps_per_second, (total - steps) * len(agent.seeds)
        left = remaining / rate if self._timed_iterations > 1 else math.nan
        returns = self.telemetry.mean_returns[agent.healthy]
        returns = returns[np.isfinite(returns)]
        return Standing(
            steps=steps,
            total_steps=total,
            steps_per_second=rate,
            seconds_left=left if remaining else 0.0,
            mean_return=float(returns.mean()) if len(returns) else float("nan"),
            healthy=int(agent.healthy.sum()),
            members=len(agent.seeds),
        )

    def _outcome(self, failure: BaseException | None) -> Outcome:
        if failure is not None:
            return Outcome.INTERRUPTED if isinstance(failure, StopNow) else Outcome.FAILED
        if self.agent.iteration >= self.config.num_iterations:
            return Outcome.FINISHED
        return Outcome.INTERRUPTED if self.agent.healthy.any() else Outcome.ALL_HALTED

    def _next_checkpoint(self) -> int:
        every = self.config.logging.checkpoint_every
        return (self._steps // every + 1) * every


def newest_state(directory: RunDirectory) -> dict[str, Any]:
    """What the newest checkpoint that is whole holds; damaged ones are passed over, saying so.

    Raises:
        ValueError: if there is none.
    """
    for path in checkpoints(directory.checkpoints):
        try:
            return load_checkpoint(path)
        except DamagedCheckpointError as error:
            print(f"{error} Falling back to the one before.", file=sys.stderr)
    raise ValueError(
        f"{directory.path} has no checkpoint to continue from; start it anew with"
        f" --config {directory.path / 'config.yaml'}."
    )


def _finite(value: float) -> float | None:
    """A number for JSON, which knows no NaN."""
    return value if math.isfinite(value) else None


def _monitor(config: TrainConfig) -> EarlyWarningMonitor:
    return EarlyWarningMonitor(dataclasses.asdict(config.warnings), config.ppo.activation)
