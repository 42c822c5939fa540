"""How a run is asked to stop: SIGINT, SIGTERM and SIGHUP, which Ctrl-C, SLURM, clouds and closed
terminals send."""

from __future__ import annotations

import multiprocessing
import signal
import sys
import threading
from time import monotonic
from types import FrameType, TracebackType
from typing import Any

PATIENCE_SECONDS = 15.0
"""How long the end of an iteration is waited for."""

REMINDER_SECONDS = 1.0
"""Between two attempts to give up an iteration: what it is doing can swallow one."""


class StopNow(BaseException):
    """The iteration at hand is not waited for."""


class StopSignals:
    """While this context is entered, a first signal asks to stop, and a second SIGINT or SIGTERM
    kills.

    A closed terminal sends SIGHUP more than once, and others beside it: that one never kills. A
    SIGHUP that is ignored, as under `nohup`, stays so.

    Attributes:
        received: whether a signal has asked to stop.
    """

    def __init__(self) -> None:
        self.received = False
        self._insisted = False
        self._iteration_ends: float | None = None
        self._previous: dict[int, Any] = {}

    def __enter__(self) -> StopSignals:
        if threading.current_thread() is threading.main_thread():
            handlers = {
                signal.SIGINT: self._handle,
                signal.SIGTERM: self._handle,
                signal.SIGHUP: self._handle,
                signal.SIGALRM: self._lose_patience,
            }
            if signal.getsignal(signal.SIGHUP) is signal.SIG_IGN:
                del handlers[signal.SIGHUP]
            for number, handler in handlers.items():
                self._previous[number] = signal.signal(number, handler)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if self._previous:
            signal.setitimer(signal.ITIMER_REAL, 0)
        for number, handler in self._previous.items():
            signal.signal(number, handler)

    def iteration_begins(self, expected_seconds: float) -> None:
        """From now on a signal raises `StopNow`: at once if the iteration is expected to have long
        to go, else when that time has passed and it has not ended."""
        self._iteration_ends = monotonic() + expected_seconds

    def iteration_ends(self) -> None:
        """From now on a signal is only noted."""
        self._iteration_ends = None

    def _handle(self, number: int, frame: FrameType | None) -> None:
        if self._insisted and number != signal.SIGHUP:
            _kill_workers()
            signal.signal(number, signal.SIG_DFL)
            signal.raise_signal(number)
        self._insisted |= number != signal.SIGHUP
        if self.received:
            return
        self.received = True
        signal.setitimer(signal.ITIMER_REAL, PATIENCE_SECONDS, REMINDER_SECONDS)
        print("\nStopping; once more to stop at once, without saving.", file=sys.stderr)
        ends = self._iteration_ends
        if ends is not None and ends - monotonic() > PATIENCE_SECONDS:
            raise StopNow

    def _lose_patience(self, number: int, frame: FrameType | None) -> None:
        if self._iteration_ends is not None:
            raise StopNow


def _kill_workers() -> None:
    """They ignore these signals, and may be stopped or hang."""
    for child in multiprocessing.active_children():
        if child.daemon:
            child.kill()
