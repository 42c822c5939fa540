"""What the numbers support, in plain words, and never more than that.

A difference is stated only where the 95 % interval of the probability of improvement leaves out one
half *and* its test gives p < 0.05 after Holm's correction over all comparisons of the study. What
is not about the primary measure is labelled exploratory.
"""

from collections.abc import Iterable, Iterator
from math import isnan, sqrt
from typing import NamedTuple

from scipy.stats import norm

from upgd_ppo.analysis.collapse import WARM_UP
from upgd_ppo.analysis.comparison import ArmResult, EnvironmentResult, PairResult, Study
from upgd_ppo.analysis.intervals import Improvement, Interval, smallest_detectable

SIGNIFICANCE = 0.05
FEW_SEEDS = 10


class _Words(NamedTuple):
    than: str
    """What the better arm does, with its "than"."""
    question: str
    better: str
    """What a seed does that is better than another."""


_BELOW = "less of its training below half of its running peak"
WORDS = {
    "final": _Words("ends with higher returns than", "ends with higher returns", "ends above"),
    "retained": _Words(
        "keeps more of what it learned than", "keeps more of what it learned", "retains more than"
    ),
    "time_below": _Words(
        f"spends {_BELOW} than", f"spends {_BELOW}", "spends less time below than"
    ),
    "first_fall": _Words("falls later than", "falls later", "falls later than"),
}
BETTER = {name: words.better.removesuffix(" than") for name, words in WORDS.items()}
"""What a seed does that is better than another, by measure."""


def is_supported(improvement: Improvement) -> bool:
    """Whether the records support that one arm of the two is better, whichever it is."""
    return (
        improvement.probability.excludes(0.5)
        and improvement.adjusted_p < SIGNIFICANCE
        and improvement.attainable < SIGNIFICANCE
    )


def verdict(result: EnvironmentResult) -> dict[str, list[str]]:
    """Sentences on one environment, by what they are about: the arms, then each pair of arms."""
    return {"How many collapsed": [_collapse(arm) for arm in result.arms]} | {
        _title(pair): [*_pair(pair, result)] for pair in result.pairs
    }


def suite_verdict(study: Study) -> dict[str, list[str]]:
    """Sentences on the pairs of arms that meet in several environments."""
    return {
        _title(pair): [
            *(_labelled(pair, name, study.primary) for name in _in_order(pair, study.primary)),
            _power(pair, study.comparisons),
            *_caveats(pair),
        ]
        for pair in study.suite_pairs
    }


def _title(pair: PairResult) -> str:
    return f"{pair.first} against {pair.second}"


def _collapse(arm: ArmResult) -> str:
    collapsed, fell = arm.collapsed, arm.fell
    unlearned = f"{_seeds(arm.never_learned)} never learned (no rise beyond the noise)"
    if not collapsed.n:
        why = f": {unlearned}" if arm.never_learned else ""
        return f"{arm.name}: no seed can be judged for collapse{why}."
    halted = f" ({arm.halted} of them halted by non-finite training)" if arm.halted else ""
    left_out = f" Left out: {unlearned}." if arm.never_learned else ""
    return (
        f"{arm.name}: {_count(collapsed)} of {_seeds(collapsed.n)} collapsed{halted}; the true "
        f"share may lie anywhere from {collapsed.low:.0%} to {collapsed.high:.0%} (exact 95 % "
        f"interval). At some time {_count(fell)} of {fell.n} fell below half of their running "
        f"peak; the mean share of training after the first {WARM_UP}% spent there is "
        f"{_share(arm.estimates['time_below', 'mean'])}.{left_out}"
    )


def _pair(pair: PairResult, result: EnvironmentResult) -> Iterator[str]:
    arms = {arm.name: arm for arm in result.arms}
    both = [arms[pair.first], arms[pair.second]]
    for name in _in_order(pair, result.primary):
        beside = _peaks(both) if name == "retained" else ""
        yield _labelled(pair, name, result.primary, beside)
    yield from _fractions(pair, *both)
    yield _power(pair, result.comparisons)
    yield from _caveats(pair)
    if any(arm.halted for arm in both):
        yield "A halted seed ranks below every seed that lived."
    unfinished = [arm.name for arm in both if arm.arm.finished is False]
    if unfinished:
        yield (
            f"This is provisional: {' and '.join(unfinished)} "
            f"{'are' if len(unfinished) > 1 else 'is'} unfinished, and a collapse may yet come."
        )


def _in_order(pair: PairResult, primary: str) -> list[str]:
    return sorted(pair.improvement, key=lambda name: name != primary)


def _labelled(pair: PairResult, name: str, primary: str, beside: str = "") -> str:
    label = "Primary measure" if name == primary else "Exploratory"
    return f"{label}: {_improvement(pair, name, beside)}"


def _peaks(arms: Iterable[ArmResult]) -> str:
    """What was there to be kept: who never got far has little to lose."""
    peaks = [f"{arm.name} {arm.estimates['peak', 'mean'].value:,.4g}" for arm in arms]
    return f"; mean peaks, which are what there was to lose: {', '.join(peaks)}"


def _fractions(pair: PairResult, first: ArmResult, second: ArmResult) -> Iterator[str]:
    if not first.collapsed.n or not second.collapsed.n:
        return
    numbers = (
        f"{first.name} {_count(first.collapsed)} of {first.collapsed.n}, "
        f"{second.name} {_count(second.collapsed)} of {second.collapsed.n}, Fisher's exact test "
        f"{_p_values(pair.collapse_p_value, pair.collapse_adjusted_p)}"
    )
    if pair.collapse_adjusted_p < SIGNIFICANCE:
        less, more = sorted((first, second), key=lambda arm: arm.collapsed.value)
        yield f"Exploratory: fewer seeds of {less.name} collapsed than of {more.name} ({numbers})."
    else:
        yield f"Exploratory: whether they differ in how often they collapse is open ({numbers})."


def _improvement(pair: PairResult, name: str, beside: str = "") -> str:
    """One sentence on one measure of one pair."""
    found, words = pair.improvement[name], WORDS[name]
    probability, seeds = found.probability, found.seeds
    if not probability.n:
        without = [arm for arm, n in zip((pair.first, pair.second), seeds, strict=True) if not n]
        return (
            f"which arm {words.question} cannot be said: no seed of "
            f"{' or '.join(without)} can be judged."
        )
    bounds = f"95 % interval {probability.low:.2f} to {probability.high:.2f}"
    if probability.value in (0, 1):
        bounds += ", every seed of one beating every seed of the other"
    numbers = (
        f"a seed of {pair.first} {words.better} one of {pair.second} with probability "
        f"{probability.value:.2f}, {bounds}, {found.test} "
        f"{_p_values(found.p_value, found.adjusted_p)}, {seeds[0]} and {seeds[1]} seeds{beside}"
    )
    if is_supported(found):
        better, worse = pair.first, pair.second
        if probability.value < 0.5:
            better, worse = worse, better
        return f"{better} {words.than} {worse}: {numbers}."
    which = f"which arm {words.question} is open"
    if isnan(probability.low):
        return f"{which}: one seed of an arm says nothing about its spread."
    if found.attainable == 1:
        return f"{which}: all seeds are equal in it."
    if found.attainable >= SIGNIFICANCE:
        return (
            f"{which}: {seeds[0]} and {seeds[1]} seeds are too few to tell, whatever they show "
            f"(even the clearest outcome would be chance in {found.attainable:.0%} of cases)."
        )
    if min(seeds) < FEW_SEEDS:
        return f"{which}: {min(seeds)} seeds are too few to tell ({numbers})."
    return f"{which}: the records neither show a difference nor rule one out ({numbers})."


def _power(pair: PairResult, comparisons: int) -> str:
    """What so many seeds could have shown."""
    seeds = pair.improvement["final"].seeds
    least = smallest_detectable(*seeds, level=SIGNIFICANCE / max(comparisons, 1))
    made = f"{comparisons} comparison{'' if comparisons == 1 else 's'}"
    of = f"With {seeds[0]} and {seeds[1]} seeds and {made} on the page"
    if isnan(least):
        return f"{of} no difference, however large, is sure to be stated: more seeds are needed."
    shift = sqrt(2) * norm.ppf(least)
    return (
        f"{of} the smallest difference that four studies of five would state is a probability of "
        f"{least:.2f} (or {1 - least:.2f}): {shift:.1f} standard deviations between the arms."
    )


def _caveats(pair: PairResult) -> Iterator[str]:
    if pair.differences:
        yield (
            f"{pair.first} and {pair.second} differ in more than the optimizer "
            f"({', '.join(pair.differences)}), so no difference between them can be credited to it."
        )
    if pair.unknown_settings:
        yield (
            f"The settings of {' and '.join(pair.unknown_settings)} are not recorded, so a "
            "difference cannot be credited to the optimizer."
        )


def _share(mean: Interval) -> str:
    """A mean share of training, its bounds cut to what a share can be."""
    bounds = f" ({max(mean.low, 0):.0%} to {min(mean.high, 1):.0%})" if mean.n > 1 else ""
    return f"{mean.value:.0%}{bounds}"


def _count(fraction: Interval) -> int:
    return round(fraction.value * fraction.n)


def _seeds(count: int) -> str:
    return f"{count} seed" if count == 1 else f"{count} seeds"


def _p_values(plain: float, adjusted: float) -> str:
    return f"p = {_p(plain)}, {_p(adjusted)} after Holm's correction"


def _p(value: float) -> str:
    return f"{value:.2g}" if value >= 0.001 else "less than 0.001"
