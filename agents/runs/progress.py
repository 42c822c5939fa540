"""Progress for a person to watch: a bar in a terminal, plain lines anywhere else."""

from __future__ import annotations

import math
import sys
from dataclasses import dataclass
from time import monotonic
from types import TracebackType

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn


@dataclass(frozen=True)
class Standing:
    """Where a run stands.

    Attributes:
        steps: of each member so far.
        total_steps: of each member in the end.
        steps_per_second: of all members together.
        seconds_left: estimated; NaN in the first iteration, which compiles the kernels.
        mean_return: over the healthy members' latest episodes; NaN before the first.
        healthy: members that still learn.
        members: all members.
        performance: what an episode's return is, in a word.
    """

    steps: int
    total_steps: int
    steps_per_second: float
    seconds_left: float
    mean_return: float
    healthy: int
    members: int
    performance: str = "return"

    def __str__(self) -> str:
        mean_return = "–" if math.isnan(self.mean_return) else f"{self.mean_return:.1f}"
        pace = "warming up"
        if not math.isnan(self.seconds_left):
            left = format_duration(self.seconds_left)
            pace = f"{self.steps_per_second:,.0f} steps/s · {left} left"
        return (
            f"{self.steps:,}/{self.total_steps:,} steps/seed · {pace}"
            f" · {self.performance} {mean_return} · {self.healthy}/{self.members} healthy"
        )


class ProgressDisplay:
    """Shows a run's standing.

    Args:
        title: stands before the numbers.
        print_every: seconds between two lines where standard output is no terminal.
    """

    def __init__(self, title: str, print_every: float) -> None:
        self.title = title
        self.print_every = print_every
        self._last_line = -float("inf")
        self._bar: Progress | None = None
        if sys.stdout is not None and sys.stdout.isatty():
            self._bar = Progress(
                TextColumn("{task.description}"),
                BarColumn(bar_width=20),
                TaskProgressColumn(),
                TextColumn("{task.fields[standing]}"),
                console=Console(),
            )
            self._task = self._bar.add_task(title, total=1.0, standing="starting")

    def __enter__(self) -> ProgressDisplay:
        if self._bar:
            self._bar.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if self._bar:
            self._bar.stop()

    def show(self, standing: Standing) -> None:
        """Show a new standing; where there is no terminal, at most every so often."""
        if self._bar:
            done = standing.steps / standing.total_steps
            self._bar.update(self._task, completed=done, standing=str(standing))
        elif (
            monotonic() - self._last_line >= self.print_every
            or standing.steps == standing.total_steps
        ):
            self._last_line = monotonic()
            print(f"{self.title}: {standing}", flush=True)

    def say(self, line: str) -> None:
        """Print a line that stays."""
        if self._bar:
            self._bar.console.print(line, highlight=False, markup=False)
        else:
            print(line, flush=True)


def format_duration(seconds: float) -> str:
    """3725 → 1:02:05."""
    minutes, seconds = divmod(round(max(0.0, seconds)), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{seconds:02d}"
