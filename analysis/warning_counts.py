"""The early warnings that were given during training, counted by what they warn of."""

import re
from collections import defaultdict
from typing import NamedTuple

from upgd_ppo.analysis.arm import Arm

MESSAGE = re.compile(
    r"(?P<where>.*?) ?(?P<statistic>\w+?)(_\d+)? "
    r"(is not finite|(is|fell to) \S+(?P<of> of its early value)?, (?P<limit>(above|below) [^:]+): "
    r"(?P<meaning>.*))"
)
"""E.g. "actor layer_1 effective_rank fell to 35% of its early value, below 40%: features are
collapsing"; the number at the end of `std_2` is a dimension."""


class Crossing(NamedTuple):
    """One warning: a statistic of a seed went beyond its limit."""

    seed: int
    step: int
    place: str
    """Network and layer, or "ppo"."""
    warning: str
    """What crossed which limit."""
    meaning: str
    message: str
    """As it was given."""


class Summary(NamedTuple):
    """All warnings of one kind in one arm, up to some step."""

    warning: str
    meaning: str
    places: list[str]
    seeds: int
    times: int
    first: int
    """The earliest step."""


def crossings(arm: Arm) -> list[Crossing]:
    """Every warning in the arm's records."""
    return [
        Crossing(event.seed, event.step, *_parse(event.message), event.message)
        for event in arm.events
        if event.kind == "warning"
    ]


def summarize(arm: Arm, horizon: int) -> list[Summary]:
    """The warnings until step ``horizon``, a line for each kind, the most frequent first."""
    kinds: dict[str, list[Crossing]] = defaultdict(list)
    for crossing in crossings(arm):
        if crossing.step <= horizon:
            kinds[crossing.warning].append(crossing)
    return [
        Summary(
            warning,
            found[0].meaning,
            sorted({crossing.place for crossing in found}),
            len({crossing.seed for crossing in found}),
            len(found),
            min(crossing.step for crossing in found),
        )
        for warning, found in sorted(kinds.items(), key=lambda kind: -len(kind[1]))
    ]


def _parse(message: str) -> tuple[str, str, str]:
    """(place, warning, meaning) of a message; one of another form is a kind of its own."""
    parsed = MESSAGE.fullmatch(message)
    if parsed is None:
        return "", message, ""
    statistic, limit = parsed["statistic"], parsed["limit"] or "not finite"
    return parsed["where"], f"{statistic} {limit}{parsed['of'] or ''}", parsed["meaning"] or ""
