"""What the numbers support, in plain words, and never more than that.

A difference is stated only where the 95 % bootstrap interval of the probability of improvement
leaves out one half *and* a permutation test of the same quantity gives p < 0.05. The interval alone
is too sure of few seeds: with 5 and 5 seeds of the very same arm it leaves out one half in one case
of eight, and complete separation gives it no width at all.
"""

from collections.abc import Iterator

from analysis.collapse import HALTED, NO_RISE
from analysis.comparison import ArmResult, EnvironmentResult, PairResult, Study
from analysis.intervals import Improvement

SIGNIFICANCE = 0.05
FEW_SEEDS = 10
WORDS = {
    "final": ("ends with higher returns than", "ends with higher returns"),
    "retained": ("keeps more of what it learned than", "keeps more of what it learned"),
}


def is_supported(improvement: Improvement) -> bool:
    """Whether the records support that one arm of the two is better, whichever it is."""
    return improvement.probability.excludes(0.5) and improvement.p_value < SIGNIFICANCE


def verdict(result: EnvironmentResult) -> dict[str, list[str]]:
    """Sentences on one environment, by what they are about: the arms, then each pair of arms."""
    return {"How many collapsed": [_collapse(arm) for arm in result.arms]} | {
        f"{pair.second} against {pair.first}": [*_pair(pair, result)] for pair in result.pairs
    }


def suite_verdict(study: Study) -> dict[str, list[str]]:
    """Sentences on the pairs of arms that meet in several environments."""
    return {
        f"{pair.second} against {pair.first}": [
            *(_improvement(pair, name) for name in WORDS),
            *_caveats(pair),
        ]
        for pair in study.suite_pairs
    }


def _collapse(arm: ArmResult) -> str:
    collapsed, exact = arm.collapsed, arm.collapsed_exact
    if not collapsed.n:
        return f"{arm.name}: no seed can be judged for collapse."
    count = round(collapsed.value * collapsed.n)
    halted = int((arm.collapse.outcome == HALTED).sum())
    flat = int((arm.collapse.outcome == NO_RISE).sum())
    extras = [f"{halted} of them halted by non-finite training"] if halted else []
    extras += [f"{flat} more never rose above their start"] if flat else []
    extra = f" ({'; '.join(extras)})" if extras else ""
    return (
        f"{arm.name}: {count} of {_seeds(collapsed.n)} collapsed{extra}; the true share may lie "
        f"anywhere from {exact.low:.0%} to {exact.high:.0%} (exact 95 % interval)."
    )


def _pair(pair: PairResult, result: EnvironmentResult) -> Iterator[str]:
    for name in WORDS:
        yield _improvement(pair, name)
    shares = {arm.name: arm.collapsed for arm in result.arms}
    first, second = shares[pair.first], shares[pair.second]
    if pair.collapse_p_value < SIGNIFICANCE:
        less, more = sorted((pair.first, pair.second), key=lambda name: shares[name].value)
        yield (
            f"Fewer seeds of {less} collapsed than of {more} "
            f"({shares[less].value:.0%} and {shares[more].value:.0%}, "
            f"Fisher's exact test p = {_p(pair.collapse_p_value)})."
        )
    elif first.n and second.n:
        yield (
            f"Whether {pair.first} and {pair.second} differ in how often they collapse is open "
            f"({first.value:.0%} and {second.value:.0%}, Fisher's exact test "
            f"p = {_p(pair.collapse_p_value)})."
        )
    yield from _caveats(pair)
    unfinished = [
        arm.name
        for arm in result.arms
        if arm.name in (pair.first, pair.second) and arm.arm.finished is False
    ]
    if unfinished:
        yield (
            f"This is provisional: {' and '.join(unfinished)} "
            f"{'are' if len(unfinished) > 1 else 'is'} unfinished, and a collapse may yet come."
        )


def _improvement(pair: PairResult, name: str) -> str:
    """One sentence on one measure of one pair."""
    found = pair.improvement[name]
    probability = found.probability
    if not probability.n:
        return f"{pair.first} and {pair.second} cannot be compared in {name}: no seed has it."
    first, second = pair.first, pair.second
    value, low, high = probability.value, probability.low, probability.high
    if value < 0.5:
        first, second = second, first
        value, low, high = 1 - value, 1 - high, 1 - low
    seeds = found.seeds if first == pair.first else found.seeds[::-1]
    bounds = f"95 % interval {low:.2f} to {high:.2f}"
    if low == high:
        bounds = "every seed of one beats every seed of the other"
    numbers = (
        f"a seed of {first} beats one of {second} with probability {value:.2f}, {bounds}, "
        f"permutation p = {_p(found.p_value)}, {seeds[0]} and {seeds[1]} seeds"
    )
    than, question = WORDS[name]
    if is_supported(found):
        return f"{first} {than} {second}: {numbers}."
    if found.probability.low != found.probability.low:
        return f"Which arm {question} is open: one seed of an arm says nothing about its spread."
    if found.attainable >= SIGNIFICANCE:
        return (
            f"Which arm {question} is open: {seeds[0]} and {seeds[1]} seeds are too few to tell, "
            f"whatever they show (even complete separation would be chance in "
            f"{found.attainable:.0%} of cases)."
        )
    if min(seeds) < FEW_SEEDS:
        return f"Which arm {question} is open: {min(seeds)} seeds are too few to tell ({numbers})."
    return (
        f"Which arm {question} is open: the records neither show a difference nor rule one out "
        f"({numbers})."
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


def _seeds(count: int) -> str:
    return f"{count} seed" if count == 1 else f"{count} seeds"


def _p(value: float) -> str:
    return f"{value:.2g}" if value >= 0.001 else "less than 0.001"
