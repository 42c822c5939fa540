"""What is said of a setting beside it, as `Annotated[int, Range(1, unit="seconds"), HARMLESS]`."""

from __future__ import annotations

import enum
import math
from dataclasses import dataclass


@dataclass(frozen=True)
class Range:
    """The numbers that a setting may be; None, where it is allowed at all, is always in range.

    Attributes:
        low: the lowest value.
        high: the highest value.
        above: whether `low` itself is too low.
        unit: what the number counts or measures.
    """

    low: float = -math.inf
    high: float = math.inf
    above: bool = False
    unit: str = ""

    def __contains__(self, value: float | None) -> bool:
        if value is None:
            return True
        return self.low <= value <= self.high and not (self.above and value == self.low)

    def __str__(self) -> str:
        least = f"greater than {self.low:g}" if self.above else f"at least {self.low:g}"
        return least + ("" if math.isinf(self.high) else f" and at most {self.high:,}")


class Role(enum.Enum):
    """What a setting is to a run. Without a role, it changes what a seed learns."""

    HARMLESS = "may change when a run is continued: its numbers stay the same"
    FIXED = "never changes: a checkpoint fits it alone, or a run would bear a wrong name"
    BOOKKEEPING = "does not change what a seed learns, so that arms may differ in it"


HARMLESS, FIXED, BOOKKEEPING = Role
