"""The long form in which statistics are logged and watched: one value a row."""

from __future__ import annotations

from typing import NamedTuple


class Row(NamedTuple):
    """One statistic of one layer of one member at one step."""

    member: int
    step: int
    network: str
    layer: str
    statistic: str
    value: float
