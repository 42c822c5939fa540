"""What one iteration of some members gave."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import NamedTuple

from numpy.typing import NDArray

from upgd_ppo.agents.plasticity.inspection import Inspection


class Episode(NamedTuple):
    """A finished episode.

    Attributes:
        member: whose it was.
        step: that member's environment steps when it ended.
        episode_return: sum of the environment's own rewards.
        length: in steps.
        terminated: whether it terminated rather than ran into a time limit.
    """

    member: int
    step: int
    episode_return: float
    length: int
    terminated: bool


@dataclass
class IterationReport:
    """What one iteration of S members gave.

    Attributes:
        scalars: name → [S], the means over the iteration's minibatches and other per-member
            figures.
        episodes: finished episodes, in the order in which they ended.
        halted: (member, cause) of members that became non-finite in this iteration.
        inspection: plasticity statistics, if they were due.
    """

    scalars: dict[str, NDArray]
    episodes: list[Episode] = field(default_factory=list)
    halted: list[tuple[int, str]] = field(default_factory=list)
    inspection: Inspection | None = None
