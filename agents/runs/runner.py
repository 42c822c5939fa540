"""The long-horizon loop: learn, log, show, save; until the steps are done or it is told to stop.

The runner knows a learner by its contract alone (`upgd_ppo.agents.learners.learner`), so that any
kind of learner is driven by the same loop.
"""

from __future__ import annotations

import math
import sys
from enum import Enum
from time import monotonic
from typing import Any

import numpy as np

from upgd_ppo.agents.learners.iteration_report import IterationReport
from upgd_ppo.agents.learners.learner import Learner, WorkerDiedError
from upgd_ppo.agents.plasticity import EarlyWarningMonitor
from upgd_ppo.agents.runs.checkpoint import DamagedCheckpointError, checkpoints, load_checkpoint
from upgd_ppo.agents.runs.keeper import Keeper
from upgd_ppo.agents.runs.progress import ProgressDisplay, Standing
from upgd_ppo.agents.runs.run_directory import RunDirectory
from upgd_ppo.agents.runs.stopping import StopNow, StopSignals
from upgd_ppo.agents.runs.telemetry import Telemetry
from upgd_ppo.agents.settings.config import LoggingConfig


class Outcome(Enum):
    """How a run ended."""

    FINISHED = "finished"
    INTERRUPTED = "interrupted"
    ALL_HALTED = "all members halted"
    FAILED = "failed"
    UNSAVED = "could not be saved"


class Runner:
    """Drives a learner to the end of its steps.

    Args:
        learner: what learns.
        directory: where its output goes.
        logging: what is recorded, and how often.
        title: stands before the numbers of its progress.
        monitor: gives early warnings.
        full: TensorBoard shows every statistic of every layer.
        state: where a continued run goes on from: what `newest_state` gave.
    """

    def __init__(
        self,
        learner: Learner,
        directory: RunDirectory,
        logging: LoggingConfig,
        title: str,
        monitor: EarlyWarningMonitor,
        full: bool = False,
        state: dict[str, Any] | None = None,
    ) -> None:
        self.learner = learner
        self.directory = directory
        self.logging = logging
        self.title = title
        self.halted: list[dict[str, Any]] = []
        positions = state["telemetry"]["positions"] if state else None
        if state:
            learner.load_state_dict(state["agent"])
            self.halted = state["halted"]
        self.telemetry = Telemetry(directory, learner, monitor, positions, full)
        if state:
            for damage in self.telemetry.load_state_dict(state["telemetry"], learner.steps):
                print(f"warning: {damage}", file=sys.stderr)
        self.keeper = Keeper(directory, self.telemetry, logging)
        self._iteration_seconds = math.inf
        self._steps_per_second = 0.0
        self._abandoned_iteration = False
        self._timed_iterations = 0
        self._hold()

    def run(self) -> Outcome:
        """Train until the steps are done, every member is halted, or a signal asks to stop; in
        each case everything is written and a checkpoint saved, if the disk lets it.

        Raises:
            Exception: what an iteration raised, after the state before it has been saved. (The
                death of a worker process is said instead, and gives `Outcome.FAILED`.)
        """
        failure: BaseException | None = None
        with (
            StopSignals() as stop,
            ProgressDisplay(self.title, self.logging.print_every) as display,
        ):
            self.keeper.say = display.say
            # Save what there is, to continue from
            self.keeper.begin()
            display.show(self._standing)
            try:
                while self._goes_on() and not stop.received:
                    # Learn
                    report = self._advance(stop)
                    # Log
                    self._log(report)
                    # Hold the state, to save it even if the next iteration never ends
                    self._hold()
                    # Show
                    display.show(self._standing)
                    # Save
                    self.keeper.write_what_is_due()
            except BaseException as error:
                if not (self._abandoned_iteration or isinstance(error, StopNow)):
                    raise
                failure = error
            # Save the end, and say which it is
            saved = self.keeper.end()
            outcome = self._outcome(failure) if saved else Outcome.UNSAVED
            self.keeper.say_how_it_ended(outcome.value)
            if isinstance(failure, WorkerDiedError):
                display.say(str(failure))
            elif failure is not None and not isinstance(failure, StopNow):
                raise failure
        return outcome

    def _goes_on(self) -> bool:
        learner = self.learner
        return learner.iteration < learner.total_iterations and bool(learner.healthy.any())

    def _advance(self, stop: StopSignals) -> IterationReport:
        """One iteration, timed; a second signal may cut it short."""
        learner = self.learner
        steps_before, start = learner.steps, monotonic()
        stop.iteration_begins(self._iteration_seconds)
        try:
            report = learner.advance()
        except BaseException:
            self._abandoned_iteration = True
            raise
        finally:
            stop.iteration_ends()
        self._iteration_seconds = monotonic() - start
        self._rate = (learner.steps - steps_before) * len(learner.seeds) / self._iteration_seconds
        # The first one compiles the kernels: it says nothing of those that follow.
        self._timed_iterations += 1
        self._steps_per_second = (
            0.9 * self._steps_per_second + 0.1 * self._rate
            if self._timed_iterations > 2
            else self._rate
        )
        return report

    def _log(self, report: IterationReport) -> None:
        """Curves and records of an iteration; who halted in it, and what it warns of."""
        learner, say = self.learner, self.keeper.say
        to_log = learner.iteration % self.logging.log_every == 0
        warnings = self.telemetry.record(report, learner.steps, learner.healthy, self._rate, to_log)
        for member, cause in report.halted:
            seed = learner.seeds[member]
            self.halted.append({"seed": seed, "step": learner.steps, "cause": cause})
            say(f"seed {seed} halted at step {learner.steps:,}: {cause}")
        for warning in warnings:
            seed = learner.seeds[warning.member]
            say(f"warning: seed {seed}, step {learner.steps:,}: {warning.description}")

    def _hold(self) -> None:
        self._standing = self._where_it_stands()
        self.keeper.hold(self._standing, self.learner.state_dict(), self.halted)

    def _where_it_stands(self) -> Standing:
        learner, steps = self.learner, self.learner.steps
        rate, remaining = self._steps_per_second, (learner.total_steps - steps) * len(learner.seeds)
        left = remaining / rate if self._timed_iterations > 1 else math.nan
        returns = self.telemetry.mean_returns[learner.healthy]
        returns = returns[np.isfinite(returns)]
        return Standing(
            steps=steps,
            total_steps=learner.total_steps,
            steps_per_second=rate,
            seconds_left=left if remaining else 0.0,
            mean_return=float(returns.mean()) if len(returns) else float("nan"),
            healthy=int(learner.healthy.sum()),
            members=len(learner.seeds),
            performance=learner.performance,
        )

    def _outcome(self, failure: BaseException | None) -> Outcome:
        if failure is not None:
            return Outcome.INTERRUPTED if isinstance(failure, StopNow) else Outcome.FAILED
        if self.learner.iteration >= self.learner.total_iterations:
            return Outcome.FINISHED
        return Outcome.INTERRUPTED if self.learner.healthy.any() else Outcome.ALL_HALTED


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
