"""What the analysis knows of an arm: its seeds, its settings, and streams of its records."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

CUT_OFF = 0.9
"""A seed that reached less than this share of the median seed's steps was cut off."""

StatisticKey = tuple[str, str, str]
"""(network, layer, statistic), e.g. ("actor", "layer_1", "dormant_fraction")."""


class InputError(ValueError):
    """What was asked for cannot be compared; the message is one sentence for the user."""


class Episodes(NamedTuple):
    """A batch of finished episodes: three arrays of equal length."""

    member: np.ndarray
    step: np.ndarray
    episode_return: np.ndarray


class Statistics(NamedTuple):
    """A batch of recorded statistics; ``key`` indexes ``keys``."""

    member: np.ndarray
    step: np.ndarray
    key: np.ndarray
    value: np.ndarray
    keys: list[StatisticKey]


@dataclass(frozen=True)
class Member:
    """One seed of an arm."""

    seed: int
    reached: int
    """The last step that its records know of."""
    halted: int | None = None
    """The step at which its training became non-finite, or None."""
    cause: str = ""


class Event(NamedTuple):
    """Something that happened to a seed: `kind` is "halted", "warning" or "changed"."""

    seed: int
    step: int
    kind: str
    message: str


def no_statistics() -> Iterator[Statistics]:
    """The statistics of an arm that has none."""
    return iter(())


@dataclass(frozen=True)
class Arm:
    """One (environment, optimizer, settings) with its seeds.

    ``episodes`` and ``statistics`` start a fresh pass over the records each time they are called
    and yield batches, so that a run of any length is read in bounded memory.
    """

    name: str
    path: Path
    environment: str
    source: str
    members: tuple[Member, ...]
    episodes: Callable[[], Iterator[Episodes]]
    statistics: Callable[[], Iterator[Statistics]] = no_statistics
    settings: dict[str, Any] | None = None
    versions: dict[str, str] = field(default_factory=dict)
    planned: int | None = None
    """How many steps a seed was to be trained for, where that is known."""
    finished: bool | None = None
    """None where the logs do not say."""
    events: tuple[Event, ...] = ()
    """What its records say happened, in the order of steps."""
    notes: tuple[str, ...] = ()

    @property
    def seeds(self) -> np.ndarray:
        """The members' seeds, in the order of the members."""
        return np.array([member.seed for member in self.members], dtype=np.int64)

    @property
    def reached(self) -> int | None:
        """The step that every seed reached, those halted or cut off left aside; None if all are."""
        cut = self.cut_off
        lengths = [m.reached for m in self.members if m.halted is None and m not in cut]
        return min(lengths, default=None)

    @property
    def cut_off(self) -> list[Member]:
        """The seeds whose records end before 90 % of the median seed's: they crashed, or still run.

        Such a seed must not decide how much of the others is measured.
        """
        living = [m for m in self.members if m.halted is None]
        if not living:
            return []
        median = sorted(m.reached for m in living)[len(living) // 2]
        return [m for m in living if m.reached < CUT_OFF * median]
