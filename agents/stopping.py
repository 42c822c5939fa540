"""How a run is asked to stop: SIGINT and SIGTERM, which Ctrl-C, SLURM and clouds send."""

from __future__ import annotations

import signal
import sys
import threading
from time import monotonic
from types import FrameType, TracebackType
from typing import Any

PATIENCE_SECONDS = 15.0
"""An iteration that will take longer than this to end is not waited for."""


class StopNow(BaseException):
    """The iteration at hand is not waited for."""


class StopSignals:
    """While this context is entered, a first signal asks to stop and a second one kills.

    Attributes:
        received: whether a signal has asked to stop.
    """

    def __init__(self) -> None:
        self.received = False
        self._iteration_ends: float | None = None
        self._previous: dict[int, Any] = {}

    def __enter__(self) -> StopSignals:
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGINT, signal.SIGTERM):
                self._previous[number] = signal.signal(number, self._handle)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)

    def iteration_begins(self, expected_seconds: float) -> None:
        """From now on a signal raises `StopNow` if the iteration has long to go."""
        self._iteration_ends = monotonic() + expected_seconds

    def iteration_ends(self) -> None:
        """From now on a signal is only noted."""
        self._iteration_ends = None

    def _handle(self, number: int, frame: FrameType | None) -> None:
        if self.received:
            signal.signal(number, signal.SIG_DFL)
            signal.raise_signal(number)
        self.received = True
        print("\nStopping; once more to stop at once, without saving.", file=sys.stderr)
        ends = self._iteration_ends
        if ends is not None and ends - monotonic() > PATIENCE_SECONDS:
            self._iteration_ends = None
            raise StopNow
