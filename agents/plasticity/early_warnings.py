"""Early warnings: one message when a layer or a policy crosses into trouble, none while it stays.

A warning is raised again only after the value has come back from its limit by a margin, so that a
value that hovers around the limit does not flood the log.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, NamedTuple

from upgd_ppo.agents.networks.activations import ACTIVATIONS
from upgd_ppo.agents.plasticity.rows import Row
from upgd_ppo.agents.settings.config import WarningConfig

BOUNDED = [name for name, activation in ACTIVATIONS.items() if activation.bounded]
"""Nonlinearities that saturate on both sides, where half a layer saturated is alarming."""

Place = tuple[int, str, str, str]
"""(member, network, layer, statistic)."""


@dataclass(frozen=True)
class Thresholds:
    """Where trouble begins. A threshold of None is not watched.

    The defaults are rules of thumb, set where a healthy run does not go; they are not from a
    paper.
    """

    dormant_fraction: float | None = 0.3
    """Warn when more than this share of a layer's units is dormant."""

    effective_rank: float | None = 0.4
    """Warn when a layer's effective rank falls below this share of its early value."""

    saturated_fraction: float | None = 0.9
    """Warn when more than this share of a layer's entries is saturated. Half of a ReLU's entries
    are 0 in good health, so for tanh or sigmoid 0.5 is a fitter limit: see `for_activation`."""

    update_ratio: float | None = 0.5
    """Warn when one iteration moves a hidden layer's weights by more than this share of their
    norm. The output layer is not judged: an actor's starts near 0, so that in good health the
    first iterations move it by as much as its norm."""

    policy_std_below: float | None = 0.05
    """Warn when an action's standard deviation falls below this: exploration is over."""

    policy_std_above: float | None = 5.0
    """Warn when an action's standard deviation rises above this: actions are noise."""

    approximate_kl: float | None = 0.2
    """Warn when one iteration moves the policy further than this (healthy: around 0.01)."""

    margin: float = 0.2
    """A warning is armed again when the value is back from its limit by this share of it."""

    early_measurements: int = 3
    """The early value is the mean of this many first measurements."""

    def __post_init__(self) -> None:
        if not 0 <= self.margin < 1:
            raise ValueError(f"The margin of warnings must be in [0, 1), but is {self.margin}.")
        if self.early_measurements < 1:
            raise ValueError(
                "An early value needs at least one measurement, but early_measurements is "
                f"{self.early_measurements}."
            )

    @staticmethod
    def for_activation(activation: str) -> Thresholds:
        """The defaults, with saturation judged as fits the nonlinearity."""
        return Thresholds.of(WarningConfig(), activation)

    @staticmethod
    def of(config: WarningConfig, activation: str) -> Thresholds:
        """The limits for networks of that nonlinearity."""
        return Thresholds(
            dormant_fraction=config.warn_dormant_fraction,
            effective_rank=config.warn_rank_fraction,
            saturated_fraction=(
                config.warn_saturated_fraction
                if activation in BOUNDED
                else config.warn_inactive_fraction
            ),
            update_ratio=config.warn_update_ratio,
            policy_std_below=config.warn_std_below,
            policy_std_above=config.warn_std_above,
            approximate_kl=config.warn_kl,
        )


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
    """A limit on a statistic, from above or below; relative ones are shares of the early value.

    Those without `output_layer` leave out the layer of that name.
    """

    limit: float
    above: bool
    meaning: str
    relative: bool = False
    output_layer: bool = True

    def applies(self, row: Row) -> bool:
        return self.output_layer or row.layer != "output"

    def crossed(self, value: float) -> bool:
        return value > self.limit if self.above else value < self.limit

    def recovered(self, value: float, margin: float) -> bool:
        if self.above:
            return value <= self.limit * (1 - margin)
        return value >= self.limit * (1 + margin)

    def describe(self, value: float) -> str:
        side = "above" if self.above else "below"
        if self.relative:
            return f"fell to {value:.0%} of its early value, {side} {self.limit:.0%}"
        return f"is {value:.3g}, {side} {self.limit:.3g}"


class EarlyWarningMonitor:
    """Watches rows of statistics and tells of each crossing once.

    Args:
        thresholds: where trouble begins.
    """

    def __init__(self, thresholds: Thresholds | None = None) -> None:
        self.thresholds = thresholds or Thresholds()
        self._rules = _rules(self.thresholds)
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
        if rule.relative:
            early = self._early_value(place, value)
            if early is None or early <= 0:
                return None
            value /= early
        kind = "above" if rule.above else "below"
        if rule.crossed(value):
            return self._raise_once(place, kind, f"{rule.describe(value)}: {rule.meaning}")
        if rule.recovered(value, self.thresholds.margin):
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
        if len(early) < self.thresholds.early_measurements:
            early.append(value)
            return None
        return sum(early) / len(early)


def _rules(thresholds: Thresholds) -> dict[str, list[_Rule]]:
    """The rules by statistic, without those that are switched off."""
    candidates = [
        ("dormant_fraction", thresholds.dormant_fraction, True, "units are falling silent"),
        ("effective_rank", thresholds.effective_rank, False, "features are collapsing"),
        ("saturated_fraction", thresholds.saturated_fraction, True, "little gradient passes"),
        ("update_ratio", thresholds.update_ratio, True, "updates are too large"),
        ("std", thresholds.policy_std_below, False, "the policy no longer explores"),
        ("std", thresholds.policy_std_above, True, "actions are mostly noise"),
        ("approx_kl", thresholds.approximate_kl, True, "the policy moves too far at once"),
    ]
    rules: dict[str, list[_Rule]] = {}
    for statistic, limit, above, meaning in candidates:
        if limit is not None:
            rule = _Rule(
                limit,
                above,
                meaning,
                relative=statistic == "effective_rank",
                output_layer=statistic != "update_ratio",
            )
            rules.setdefault(statistic, []).append(rule)
    return rules


def _without_dimension(statistic: str) -> str:
    stem, _, dimension = statistic.rpartition("_")
    return stem if dimension.isdigit() and stem else statistic


def _warning(row: Row, message: str) -> EarlyWarning:
    where = " ".join(part for part in (row.network, row.layer) if part)
    return EarlyWarning(*row, description=f"{where} {row.statistic} {message}")
