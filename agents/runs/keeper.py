"""What is written of a run, when, and what if it cannot be.

Training never stops because of a full or vanished disk: that is said once, and writing is tried
again from time to time. Only a last checkpoint that cannot be written makes a run end badly.
"""

from __future__ import annotations

import contextlib
import math
import os
from collections.abc import Callable
from datetime import UTC, datetime
from time import monotonic
from typing import Any

from upgd_ppo.agents.runs.checkpoint import save_checkpoint
from upgd_ppo.agents.runs.progress import Standing
from upgd_ppo.agents.runs.run_directory import RunDirectory
from upgd_ppo.agents.runs.telemetry import Telemetry
from upgd_ppo.agents.settings.config import LoggingConfig

FLUSH_SECONDS = 30.0
"""At most this long passes before what was logged can be seen on the disk, and between two attempts
to write where writing fails."""


class Keeper:
    """Keeps a run's logs, checkpoints and status on the disk.

    Args:
        directory: where they go.
        telemetry: what was logged.
        logging: how often checkpoints are due, and how many are kept.

    Attributes:
        say: prints a line that stays.
    """

    def __init__(
        self,
        directory: RunDirectory,
        telemetry: Telemetry,
        logging: LoggingConfig,
    ) -> None:
        self.directory = directory
        self.telemetry = telemetry
        self.logging = logging
        self.say: Callable[[str], None] = print
        self._last_checkpoint: str | None = None
        self._last_write = monotonic()
        self._writing_fails = False

    def hold(
        self, standing: Standing, learner: dict[str, Any], halted: list[dict[str, Any]]
    ) -> None:
        """Take the state between two iterations, to save it even if the next one never ends.

        Args:
            standing: where the run stands.
            learner: the learner's state.
            halted: seed, step and cause of each halted member.
        """
        self._standing, self._learner, self._halted = standing, learner, list(halted)
        self._steps = standing.steps

    def begin(self) -> None:
        """See to it that there is something to continue from, whenever the run is killed."""
        self._attempt(self._flush if self._steps else self.checkpoint)
        self._next_checkpoint = self._after(self._steps)

    def write_what_is_due(self) -> None:
        """A checkpoint after so many steps, what was logged after so many seconds."""
        may_write = not self._writing_fails or self._write_is_due()
        if self._steps >= self._next_checkpoint and may_write:
            if self._attempt(self.checkpoint):
                self._next_checkpoint = self._after(self._steps)
        elif self._write_is_due():
            self._attempt(lambda: self._flush(lazily=True))

    def end(self) -> bool:
        """The last checkpoint, in a directory made again if it has vanished; whether it is there.

        What ended the run is then to be told by `say_how_it_ended`.
        """
        with contextlib.suppress(OSError):
            self.directory.restore()
        return self._attempt(self.checkpoint)

    def say_how_it_ended(self, state: str) -> None:
        """Write the run's last status."""
        self._attempt(lambda: self._write_status(state))

    def checkpoint(self) -> None:
        """Save everything that a continued run needs.

        Raises:
            OSError: if it cannot be written; the checkpoints there are stay as they are.
        """
        # What was logged must be on the disk before the checkpoint that counts on it.
        self._flush(sync=True)
        state = {
            "agent": self._learner,
            "telemetry": self.telemetry.state_dict(),
            "halted": self._halted,
        }
        path = save_checkpoint(
            self.directory.checkpoints, self._steps, state, self.logging.keep_checkpoints
        )
        self._last_checkpoint = path.name
        self._write_status("running")

    def _flush(self, sync: bool = False, lazily: bool = False) -> None:
        self.telemetry.flush(self._steps, sync, lazily)
        self._write_status("running")

    def _attempt(self, write: Callable[[], None]) -> bool:
        """Write, if the disk lets us; where it does not, say so once and go on."""
        try:
            self.directory.check_exists()
            write()
            # It may have vanished meanwhile: then what was written made another in its place.
            self.directory.check_exists()
        except OSError as error:
            if not self._writing_fails:
                self.say(
                    f"Cannot write to {self.directory.path}: {error.strerror or error}. Training"
                    f" goes on; the next attempt is in {FLUSH_SECONDS:.0f} s."
                )
            self._writing_fails, self._last_write = True, monotonic()
            return False
        if self._writing_fails:
            self.say(f"Writing to {self.directory.path} works again.")
        self._writing_fails, self._last_write = False, monotonic()
        return True

    def _write_is_due(self) -> bool:
        return monotonic() - self._last_write > FLUSH_SECONDS

    def _after(self, steps: int) -> int:
        """When the first checkpoint after these steps is due."""
        every = self.logging.checkpoint_every
        return (steps // every + 1) * every

    def _write_status(self, state: str) -> None:
        standing = self._standing
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
                "halted": self._halted,
                "last_checkpoint": self._last_checkpoint,
            }
        )


def _finite(value: float) -> float | None:
    """A number for JSON, which knows no NaN."""
    return value if math.isfinite(value) else None
