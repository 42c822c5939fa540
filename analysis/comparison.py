"""Arms side by side: every measure with its interval, per environment and over all of them."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import combinations
from math import nan

import numpy as np
from scipy.stats import fisher_exact

from upgd_ppo.analysis.arm import Arm, InputError, StatisticKey
from upgd_ppo.analysis.collapse import (
    BINS,
    HALTED,
    HIGHEST,
    LOWEST,
    NEVER_LEARNED,
    Collapse,
    bin_of,
    bin_returns,
    measure,
)
from upgd_ppo.analysis.intervals import (
    Improvement,
    Interval,
    Statistic,
    fraction,
    holm,
    interquartile_mean,
    interval,
    mean,
    pointwise_band,
    probability_of_improvement,
)
from upgd_ppo.analysis.setting_differences import setting_differences
from upgd_ppo.analysis.survival import Survival, kaplan_meier, log_rank

MEASURES = ("final", "peak", "retained", "time_below", "area")
"""What is aggregated over seeds as mean and interquartile mean."""
COMPARED = ("final", "retained", "time_below", "first_fall")
"""What arms are compared in by probability of improvement; any of them can be the primary one."""
PRIMARY = "retained"
AGGREGATES: dict[str, Statistic] = {"mean": mean, "iqm": interquartile_mean}


@dataclass(frozen=True)
class Band:
    """A curve over 100 bins with its pointwise 95 % interval."""

    value: np.ndarray
    low: np.ndarray
    high: np.ndarray


@dataclass(frozen=True)
class ArmResult:
    """One arm, measured on the first so many steps."""

    arm: Arm
    rows: np.ndarray
    """The members that are measured; the others did not get that far."""
    collapse: Collapse
    estimates: dict[tuple[str, str], Interval]
    """By (measure, aggregate), e.g. ("final", "iqm"); ``retained`` clipped to [−1, 1]."""
    collapsed: Interval
    """Fraction of the judged seeds that collapsed, with its exact interval."""
    fell: Interval
    """Fraction of the judged seeds that ever fell, with its exact interval."""
    survival: Survival
    """Share of the judged seeds that have not fallen yet, by training step."""
    curve: Band
    statistics: dict[StatisticKey, np.ndarray]
    """Each [seeds, 100], NaN where nothing was recorded."""

    @property
    def name(self) -> str:
        """The arm's name."""
        return self.arm.name

    @property
    def seeds(self) -> np.ndarray:
        """The measured seeds."""
        return self.arm.seeds[self.rows]

    @property
    def halted(self) -> int:
        """How many of the measured seeds halted."""
        return int((self.collapse.outcome == HALTED).sum())

    @property
    def never_learned(self) -> int:
        """How many of the measured seeds never learned: neither kept nor collapsed."""
        return int((self.collapse.outcome == NEVER_LEARNED).sum())


@dataclass(frozen=True)
class PairResult:
    """Arm ``first`` against arm ``second``, in one environment or over several as strata.

    Of two arms ``first`` is the one that was given later, so that "upgd against adam" is how a
    study of adam and upgd reads, in every table and sentence alike.
    """

    first: str
    second: str
    improvement: dict[str, Improvement]
    """Probability that a seed of the first is better than one of the second, by measure: it ends
    higher, retains more, spends less time below, falls later or not at all."""
    differences: tuple[str, ...]
    """Settings beyond the optimizer's that differ, each as a phrase."""
    unknown_settings: tuple[str, ...]
    """Arms whose logs do not record their settings."""
    collapse_p_value: float
    """Fisher's exact test of equal fractions of collapsed seeds; NaN over several environments."""
    collapse_adjusted_p: float
    """The same after Holm's correction over all comparisons of the study."""


@dataclass(frozen=True)
class EnvironmentResult:
    """All arms of one environment, measured on its first ``horizon`` steps."""

    environment: str
    horizon: int
    aggregate: str
    primary: str
    """The measure that was named before the study was run; the others are exploratory."""
    comparisons: int
    """How many comparisons the whole study makes: what p-values are adjusted for."""
    arms: list[ArmResult]
    pairs: list[PairResult]

    @property
    def steps(self) -> np.ndarray:
        """[100] the training step in the middle of each bin."""
        return (np.arange(BINS) + 0.5) * self.horizon / BINS


@dataclass(frozen=True)
class SuiteArm:
    """The arms of one name over several environments, these being the strata."""

    name: str
    environments: tuple[str, ...]
    retained: Interval
    """Interquartile mean, clipped to [−1, 1]."""
    collapsed: Interval
    """Fraction of the judged seeds of all environments, with its exact interval."""


@dataclass(frozen=True)
class Study:
    """Everything a report shows."""

    environments: list[EnvironmentResult]
    suite_arms: list[SuiteArm]
    suite_pairs: list[PairResult]
    primary: str
    comparisons: int


def compare(
    arms: Sequence[Arm],
    steps: int | None = None,
    aggregate: str = "mean",
    primary: str = PRIMARY,
) -> Study:
    """Measure and compare arms, environment by environment.

    Args:
        steps: measure the first so many steps; by default as many as all seeds of the environment
            reached. Seeds that did not reach them are left out.
        aggregate: "mean" or "iqm", for the curves.
        primary: one of COMPARED, named before the runs were looked at.

    Raises:
        InputError: no two arms share an environment, or no seed of an arm reached ``steps``.
    """
    groups: dict[str, list[Arm]] = {}
    for arm in arms:
        groups.setdefault(arm.environment, []).append(arm)
    if len(arms) > 1 and all(len(group) == 1 for group in groups.values()):
        tasks = ", ".join(f"{arm.name} on {arm.environment}" for arm in arms)
        raise InputError(f"No two arms share a task ({tasks}): there is nothing to compare.")
    results = []
    for environment in sorted(groups):
        horizon = steps or _shared_steps(groups[environment])
        measured = [_arm(arm, horizon, AGGREGATES[aggregate]) for arm in groups[environment]]
        pairs = [_pair([(b, a)]) for a, b in combinations(measured, 2)]
        results.append(
            EnvironmentResult(environment, horizon, aggregate, primary, 0, measured, pairs)
        )
    return _adjusted(Study(results, *_suite(results), primary, 0))


def _adjusted(study: Study) -> Study:
    """The study with its p-values adjusted for all the comparisons that it makes."""
    pairs = [pair for result in study.environments for pair in result.pairs] + study.suite_pairs
    found = np.array([p for pair in pairs for p in _p_values(pair)])
    adjusted = iter(holm(found).tolist())
    count = int(np.isfinite(found).sum())
    renewed = iter([_with_adjusted(pair, adjusted) for pair in pairs])
    return replace(
        study,
        environments=[
            replace(result, comparisons=count, pairs=[next(renewed) for _ in result.pairs])
            for result in study.environments
        ],
        suite_pairs=[next(renewed) for _ in study.suite_pairs],
        comparisons=count,
    )


def _p_values(pair: PairResult) -> list[float]:
    return [*(found.p_value for found in pair.improvement.values()), pair.collapse_p_value]


def _with_adjusted(pair: PairResult, adjusted: Iterator[float]) -> PairResult:
    improvement = {
        name: replace(found, adjusted_p=next(adjusted)) for name, found in pair.improvement.items()
    }
    return replace(pair, improvement=improvement, collapse_adjusted_p=next(adjusted))


def _shared_steps(arms: list[Arm]) -> int:
    reached = [arm.reached for arm in arms if arm.reached is not None]
    return min(reached) if reached else max(m.reached for arm in arms for m in arm.members)


def _arm(arm: Arm, horizon: int, aggregate: Statistic) -> ArmResult:
    enough = horizon - horizon / BINS
    rows = np.array(
        [k for k, m in enumerate(arm.members) if m.halted is not None or m.reached >= enough],
        dtype=int,
    )
    if not len(rows):
        raise InputError(
            f"No seed of {arm.name} reached {horizon:,} steps "
            f"(the furthest: {max(m.reached for m in arm.members):,}): choose fewer --steps."
        )
    bins = bin_returns(arm.episodes(), len(arm.members), horizon).of(rows)
    collapse = measure(bins, np.array([_halt_bin(arm.members[k].halted, horizon) for k in rows]))
    return ArmResult(
        arm=arm,
        rows=rows,
        collapse=collapse,
        estimates={
            (name, how): interval([averaged(collapse, name)], statistic)
            for name in MEASURES
            for how, statistic in AGGREGATES.items()
        },
        collapsed=fraction(collapse.collapsed),
        fell=fraction(collapse.fell),
        survival=kaplan_meier(collapse.first_fall * horizon / BINS, collapse.fell),
        curve=_curve(collapse, aggregate),
        statistics={key: curve[rows] for key, curve in bin_statistics(arm, horizon).items()},
    )


def averaged(collapse: Collapse, name: str) -> np.ndarray:
    """[S]: a measure as it enters means; ``retained`` is clipped, being a ratio."""
    values: np.ndarray = getattr(collapse, name)
    return np.clip(values, LOWEST, HIGHEST) if name == "retained" else values


def _halt_bin(step: int | None, horizon: int) -> int:
    return BINS if step is None or step > horizon else int(bin_of(np.array(step), horizon))


def _curve(collapse: Collapse, aggregate: Statistic) -> Band:
    measured = np.isfinite(collapse.curve).all(axis=1)
    if not measured.any():
        nothing = np.full(BINS, nan)
        return Band(nothing, nothing, nothing)
    return Band(*pointwise_band(collapse.curve[measured], aggregate))


def bin_statistics(arm: Arm, horizon: int) -> dict[StatisticKey, np.ndarray]:
    """Average each recorded statistic per member in 100 bins: [members, 100], NaN where empty."""
    cells = len(arm.members) * BINS
    place: dict[StatisticKey, int] = {}
    total, count = np.zeros(0), np.zeros(0)
    for batch in arm.statistics():
        for key in batch.keys:
            place.setdefault(key, len(place))
        grown = len(place) * cells - len(total)
        if grown:
            total, count = np.pad(total, (0, grown)), np.pad(count, (0, grown))
        use = (batch.step <= horizon) & np.isfinite(batch.value)
        row = np.array([place[key] for key in batch.keys])[batch.key[use]]
        cell = row * cells + batch.member[use] * BINS + bin_of(batch.step[use], horizon)
        np.add.at(total, cell, batch.value[use])
        np.add.at(count, cell, 1.0)
    with np.errstate(invalid="ignore"):
        means = (total / count).reshape(len(place), len(arm.members), BINS)
    return {key: means[row] for key, row in place.items()}


def _pair(strata: Sequence[tuple[ArmResult, ArmResult]]) -> PairResult:
    """Compare two arms that meet in one environment or in several."""
    differences = [phrase for a, b in strata for phrase in setting_differences(a.arm, b.arm)]
    unknown = [r.name for both in strata for r in both if r.arm.settings is None]
    first, second = strata[0]
    return PairResult(
        first=first.name,
        second=second.name,
        improvement={
            name: improvement_in(name, [(a.collapse, b.collapse) for a, b in strata])
            for name in COMPARED
            if name != "first_fall" or len(strata) == 1
        },
        differences=tuple(dict.fromkeys(differences)),
        unknown_settings=tuple(dict.fromkeys(unknown)),
        collapse_p_value=equal_fractions(first.collapse, second.collapse)
        if len(strata) == 1
        else nan,
        collapse_adjusted_p=nan,
    )


def improvement_in(name: str, strata: Sequence[tuple[Collapse, Collapse]]) -> Improvement:
    """Probability that a seed of the first is better in a measure than one of the second.

    Args:
        strata: (first's, second's) measures, per environment; one only for ``first_fall``.
    """
    p_value = None
    if name == "first_fall":
        ((a, b),) = strata
        p_value = log_rank(a.first_fall, a.fell, b.first_fall, b.fell)
    return probability_of_improvement(
        [(a.ranked(name), b.ranked(name)) for a, b in strata], p_value
    )


def equal_fractions(first: Collapse, second: Collapse) -> float:
    """Fisher's exact test of equal fractions of collapsed seeds; NaN where an arm has no judged."""
    table = [[np.sum(arm.collapsed == 1), np.sum(arm.collapsed == 0)] for arm in (first, second)]
    return float(fisher_exact(table).pvalue) if np.sum(table, axis=1).all() else nan


def _suite(results: list[EnvironmentResult]) -> tuple[list[SuiteArm], list[PairResult]]:
    """Arms of one name in several environments, as strata; nothing where there are none."""
    by_name: dict[str, dict[str, ArmResult]] = {}
    for result in results:
        for arm in result.arms:
            by_name.setdefault(arm.name, {})[result.environment] = arm
    shared = {name: found for name, found in by_name.items() if len(found) > 1}
    arms = [
        SuiteArm(
            name,
            tuple(found),
            interval(
                [averaged(arm.collapse, "retained") for arm in found.values()], interquartile_mean
            ),
            fraction(np.concatenate([arm.collapse.collapsed for arm in found.values()])),
        )
        for name, found in shared.items()
    ]
    meetings = [
        [(ours[e], theirs[e]) for e in ours if e in theirs]
        for theirs, ours in combinations(shared.values(), 2)
    ]
    return arms, [_pair(strata) for strata in meetings if len(strata) > 1]
