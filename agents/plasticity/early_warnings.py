"""Early warnings: one message when a layer or a policy crosses into trouble, none while it stays.

A warning is raised again only after the value has come back from its limit by a margin, so that a
value that hovers around the limit does not flood the log.
"""

from __future__ import annotations

import difflib
import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

from upgd_ppo.agents.networks.activations import ACTIVATIONS, known_activation
from upgd_ppo.agents.plasticity.catalogue import CATALOGUE, Limit
from upgd_ppo.agents.plasticity.rows import Row

MARGIN = 0.2
EARLY_MEASUREMENTS = 3

Place = tuple[int, str, str, str]
"""(member, network, layer, statistic)."""


class EarlyWarning(NamedTuple):
    """A layer or policy has crossed into trouble."""

    member: int
    step: int
    network: str
    layer: str
    statistic: str
    value: float
    description: str
    """What crossed and what that means."""

    @property
    def message(self) -> str:
        """The same with member and step."""
        return f"member {self.member}, step {self.step}: {self.description}"


@dataclass(frozen=True)
class _Rule:
    """A limit of the catalogue at the value that it has here."""

    limit: Limit
    value: float

    def applies(self, row: Row) -> bool:
        return self.limit.output_layer or row.layer != "output"

    def crossed(self, value: float) -> bool:
        return value > self.value if self.limit.above else value < self.value

    def recovered(self, value: float, margin: float) -> bool:
        if self.limit.above:
            return value <= self.value * (1 - margin)
        return value >= self.value * (1 + margin)

    def describe(self, value: float) -> str:
        side = "above" if self.limit.above else "below"
        if self.limit.relative:
            told = f"fell to {value:.0%} of its early value, {side} {self.value:.0%}"
        else:
            told = f"is {value:.3g}, {side} {self.value:.3g}"
        return f"{told}: {self.limit.meaning}"


class EarlyWarningMonitor:
    """Watches rows of statistics and tells of each crossing once.

    Args:
        limits: where trouble begins, where that is not the catalogue's default: the setting of a
            limit, such as "warn_kl" → its value, or None to switch it off.
        activation: the layers' nonlinearity, by which saturation is judged; "" is unknown.
        margin: a warning is armed again when the value is back from its limit by this share of it.
        early_measurements: the early value is the mean of this many first measurements.

    Raises:
        ValueError: if there is no such limit, or the last two make no sense.
    """

    def __init__(
        self,
        limits: Mapping[str, float | None] | None = None,
        activation: str = "",
        *,
        margin: float = MARGIN,
        early_measurements: int = EARLY_MEASUREMENTS,
    ) -> None:
        if not 0 <= margin < 1:
            raise ValueError(f"The margin of warnings must be in [0, 1), but is {margin}.")
        if early_measurements < 1:
            raise ValueError(
                "An early value needs at least one measurement, but early_measurements is "
                f"{early_measurements}."
            )
        self.margin = margin
        self.early_measurements = early_measurements
        self._rules = _rules(limits or {}, activation)
        self._alarmed: set[tuple[Place, str]] = set()
        self._early: dict[Place, list[float]] = {}

    @property
    def statistics(self) -> frozenset[str]:
        """The statistics that are watched; other rows are ignored."""
        return frozenset(self._rules)

    def observe(self, rows: Iterable[Row]) -> list[EarlyWarning]:
        """Warnings for the rows that have just crossed a limit, in the order of the rows.

        A row's statistic may carry a dimension, as "std_2" does. A watched value that is
        not finite is a crossing of its own.
        """
        warnings = []
        for row in rows:
            for rule in self._rules.get(_without_dimension(row.statistic), ()):
                message = self._judge(row, rule) if rule.applies(row) else None
                if message is not None:
                    warnings.append(_warning(row, message))
        return warnings

    def state_dict(self) -> dict[str, Any]:
        """What has been warned of and the early values, in plain containers."""
        return {
            "alarmed": [[*place, kind] for place, kind in sorted(self._alarmed)],
            "early": [[*place, list(values)] for place, values in sorted(self._early.items())],
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from a state that `state_dict` gave."""
        self._alarmed = {(tuple(place), kind) for *place, kind in state["alarmed"]}
        self._early = {tuple(place): list(values) for *place, values in state["early"]}

    def _judge(self, row: Row, rule: _Rule) -> str | None:
        place = (row.member, row.network, row.layer, row.statistic)
        if not math.isfinite(row.value):
            return self._raise_once(place, "not finite", "is not finite")
        self._alarmed.discard((place, "not finite"))
        value = row.value
        if rule.limit.relative:
            early = self._early_value(place, value)
            if early is None or early <= 0:
                return None
            value /= early
        kind = "above" if rule.limit.above else "below"
        if rule.crossed(value):
            return self._raise_once(place, kind, rule.describe(value))
        if rule.recovered(value, self.margin):
            self._alarmed.discard((place, kind))
        return None

    def _raise_once(self, place: Place, kind: str, message: str) -> str | None:
        if (place, kind) in self._alarmed:
            return None
        self._alarmed.add((place, kind))
        return message

    def _early_value(self, place: Place, value: float) -> float | None:
        """Mean of the first measurements; None while they are still being collected."""
        early = self._early.setdefault(place, [])
        if len(early) < self.early_measurements:
            early.append(value)
            return None
        return sum(early) / len(early)


def check_limits(limits: Mapping[str, float | None]) -> None:
    """Refuse limits that no statistic has.

    Raises:
        ValueError: naming the nearest.
    """
    known = [limit.name for statistic in CATALOGUE.values() for limit in statistic.limits]
    for name in limits:
        if name not in known:
            near = difflib.get_close_matches(name, known, n=1)
            hint = f"perhaps you meant {near[0]!r}" if near else f"limits are {', '.join(known)}"
            raise ValueError(f"There is no limit {name!r} of an early warning; {hint}.")


def _rules(limits: Mapping[str, float | None], activation: str) -> dict[str, list[_Rule]]:
    """The rules by statistic, without those that are switched off."""
    check_limits(limits)
    known = known_activation(activation)
    bounded = known is not None and ACTIVATIONS[known].bounded
    rules: dict[str, list[_Rule]] = {}
    for statistic in CATALOGUE.values():
        for limit in statistic.limits:
            value = limits.get(limit.name, limit.value)
            if value is not None and limit.bounded in (None, bounded):
                rules.setdefault(statistic.name, []).append(_Rule(limit, value))
    return rules


def _without_dimension(statistic: str) -> str:
    stem, _, dimension = statistic.rpartition("_")
    return stem if dimension.isdigit() and stem else statistic


def _warning(row: Row, message: str) -> EarlyWarning:
    where = " ".join(part for part in (row.network, row.layer) if part)
    return EarlyWarning(*row, description=f"{where} {row.statistic} {message}")
