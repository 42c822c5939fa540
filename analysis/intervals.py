"""How sure a number over a few seeds is: 95 % intervals, tests, and what they can show at all.

| of | interval |
| --- | --- |
| a mean | Student's t: it needs no resampling and covers best for its width at 3 to 30 seeds |
| an interquartile mean | percentile bootstrap (SciPy's), stratified as rliable's |
| a fraction | Clopper–Pearson, exact |
| a probability of improvement | Newcombe's, which has a width even at complete separation |

How often each covers is measured by `benchmarks/coverage.py`; docs/compare.md has the table.

Agarwal et al., "Deep Reinforcement Learning at the Edge of the Statistical Precipice" (NeurIPS
2021). Their package rliable asks for arch < 8, which does not import beside pandas 3; SciPy's
bootstrap of several samples resamples each of them on its own, which is the stratified bootstrap.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from scipy import stats
from scipy.optimize import brentq

LEVEL = 0.95
TAIL = (1 + LEVEL) / 2
RESAMPLES = 2000
RESHUFFLES = 9999
SEED = 20210830

Statistic = Callable[[np.ndarray], np.ndarray]
"""Maps samples [..., n] to [...]."""


@dataclass(frozen=True)
class Interval:
    """An estimate with its 95 % interval from ``n`` seeds; bounds are NaN where n < 2."""

    value: float
    low: float
    high: float
    n: int

    def excludes(self, value: float) -> bool:
        """Whether the interval is known and ``value`` lies outside it."""
        return self.low > value or self.high < value


def mean(samples: np.ndarray) -> np.ndarray:
    """Mean over the last axis."""
    return np.mean(samples, axis=-1)


def interquartile_mean(samples: np.ndarray) -> np.ndarray:
    """Mean of the middle half over the last axis (25 % trimmed mean, as rliable's)."""
    return stats.trim_mean(samples, 0.25, axis=-1)


def _bootstrap(
    strata: Sequence[np.ndarray], statistic: Callable[..., np.ndarray], resamples: int
) -> tuple[np.ndarray, np.ndarray]:
    bounds = stats.bootstrap(
        strata,
        lambda *samples, axis: statistic(*samples),
        vectorized=True,
        axis=-1,
        n_resamples=resamples,
        batch=250,
        confidence_level=LEVEL,
        method="percentile",
        rng=np.random.default_rng(SEED),
    ).confidence_interval
    return bounds.low, bounds.high


def interval(
    strata: Sequence[np.ndarray], statistic: Statistic = mean, resamples: int = RESAMPLES
) -> Interval:
    """Estimate a statistic of one value per seed: Student's t for a mean, else the bootstrap.

    Args:
        strata: one [seeds] array per environment, whose seeds vary (are resampled) on their own;
            NaNs (seeds without the measure) are left out.
        statistic: applied to all strata together.
        resamples: of the bootstrap.
    """
    strata = [values[np.isfinite(values)] for values in strata]
    strata = [values for values in strata if len(values)]
    n = sum(map(len, strata))
    if n == 0:
        return Interval(math.nan, math.nan, math.nan, 0)
    value = float(statistic(np.concatenate(strata)))
    if min(map(len, strata)) < 2:
        return Interval(value, math.nan, math.nan, n)
    if statistic is mean:
        margin = _margin_of_mean(strata)
        return Interval(value, value - margin, value + margin, n)
    low, high = _bootstrap(
        strata, lambda *samples: statistic(np.concatenate(samples, axis=-1)), resamples
    )
    return Interval(value, float(low), float(high), n)


def _margin_of_mean(strata: Sequence[np.ndarray]) -> float:
    """Half the width of the t interval; degrees of freedom by Welch and Satterthwaite."""
    sizes = np.array([len(values) for values in strata])
    shares = np.array([len(v) * v.var(ddof=1) for v in strata]) / sizes.sum() ** 2
    if not shares.sum():
        return 0.0
    freedom = shares.sum() ** 2 / np.sum(shares**2 / (sizes - 1))
    return float(stats.t.ppf(TAIL, freedom) * math.sqrt(shares.sum()))


def fraction(flags: np.ndarray) -> Interval:
    """Exact (Clopper–Pearson) interval of the fraction of ones; NaNs are left out.

    The bootstrap of k of n equal outcomes has no width, as if 5 seeds of 5 were certainty.
    """
    flags = flags[np.isfinite(flags)]
    if not len(flags):
        return Interval(math.nan, math.nan, math.nan, 0)
    test = stats.binomtest(int(flags.sum()), len(flags))
    bounds = test.proportion_ci(LEVEL, method="exact")
    return Interval(float(flags.mean()), float(bounds.low), float(bounds.high), len(flags))


def pointwise_band(
    curves: np.ndarray, statistic: Statistic = mean, resamples: int = 1000
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Estimate and 95 % interval at every point of the seeds' curves, as `interval` has them.

    Args:
        curves: [seeds, ..., points]; for a mean NaN where a seed has no value.

    Returns:
        value, low, high: [..., points]; NaN where no seed has a value, bounds NaN for one seed.
    """
    if not len(curves):
        raise ValueError("a band needs the curve of at least one seed")
    if statistic is mean:
        return _mean_band(curves)
    flat = curves.reshape(len(curves), -1).T
    value = statistic(flat)
    low = high = np.full_like(value, np.nan)
    if len(curves) > 1:
        low, high = _bootstrap([flat], statistic, resamples)
    shape = curves.shape[1:]
    return value.reshape(shape), low.reshape(shape), high.reshape(shape)


def _mean_band(curves: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    known = np.isfinite(curves)
    n = known.sum(axis=0)
    with np.errstate(invalid="ignore", divide="ignore"):
        value = np.where(known, curves, 0.0).sum(axis=0) / n
        variance = (np.where(known, curves - value, 0.0) ** 2).sum(axis=0) / (n - 1)
        margin = stats.t.ppf(TAIL, n - 1) * np.sqrt(variance / n)
    return value, value - margin, value + margin


def improvement(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """P(X > Y) + ½·P(X = Y) over the pairs of the last axes: [..., n], [..., m] → [...]."""
    x, y = x[..., :, None], y[..., None, :]
    return np.mean((x > y) + 0.5 * (x == y), axis=(-1, -2))


@dataclass(frozen=True)
class Improvement:
    """The probability that a seed of one arm beats a seed of another."""

    probability: Interval
    p_value: float
    """Of no difference, by ``test``; permutation: how often reshuffled seeds differ as much."""
    attainable: float
    """The smallest p-value that so many seeds can give with the ties that they have."""
    seeds: tuple[int, int]
    adjusted_p: float
    """``p_value`` after Holm's correction over all comparisons of the study."""
    test: str
    """"permutation" or "log-rank"."""


def probability_of_improvement(
    pairs: Sequence[tuple[np.ndarray, np.ndarray]], log_rank_p: float | None = None
) -> Improvement:
    """Average probability that a seed of arm X beats a seed of arm Y in the same environment.

    Args:
        pairs: one (X's [seeds], Y's [seeds]) per environment; NaNs are left out,
            −inf (a seed worse than all others) is not.
        log_rank_p: of a log-rank test, for values that are times; by default a permutation test.
    """
    test = "permutation" if log_rank_p is None else "log-rank"
    pairs = [(x[~np.isnan(x)], y[~np.isnan(y)]) for x, y in pairs]
    met = [(x, y) for x, y in pairs if len(x) and len(y)]
    seeds = (sum(len(x) for x, _ in met or pairs), sum(len(y) for _, y in met or pairs))
    pairs = met
    if not pairs:
        nothing = Interval(math.nan, math.nan, math.nan, 0)
        return Improvement(nothing, math.nan, math.nan, seeds, math.nan, test)
    value = float(np.mean([improvement(x, y) for x, y in pairs]))
    low = high = math.nan
    if min(len(values) for pair in pairs for values in pair) >= 2:
        low, high = newcombe(value, [(len(x), len(y)) for x, y in pairs])
    p_value = _permutation_p(pairs) if log_rank_p is None else log_rank_p
    estimate = Interval(value, low, high, sum(seeds))
    return Improvement(estimate, p_value, _attainable(pairs), seeds, p_value, test)


def newcombe(value: float, sizes: Sequence[tuple[int, int]]) -> tuple[float, float]:
    """95 % interval of a probability of improvement.

    Its bounds are where the estimate is 1.96 standard errors away, these being those at the bound,
    so that it has a width even where every seed of one arm beats every seed of the other.

    Args:
        value: the estimate, the average over environments.
        sizes: (seeds of X, seeds of Y) per environment.

    Source: Newcombe, "Confidence intervals for an effect size measure based on the Mann–Whitney
    statistic", part 2, method 5 (2006).
    """

    def distance(bound: float) -> float:
        odds = (1 - bound) / (2 - bound) + bound / (1 + bound)
        variance = [bound * (1 - bound) * (1 + (m + n - 2) / 2 * odds) / (m * n) for m, n in sizes]
        return abs(value - bound) - stats.norm.ppf(TAIL) * math.sqrt(sum(variance)) / len(sizes)

    edge = 1e-12
    low = brentq(distance, 0.0, min(value, 1 - edge)) if value > edge else 0.0
    high = brentq(distance, max(value, edge), 1.0) if value < 1 - edge else 1.0
    return float(low), float(high)


def _attainable(pairs: Sequence[tuple[np.ndarray, np.ndarray]]) -> float:
    """The p-value of the most extreme split of the same values: how many splits are like it."""
    splits, most, least = 1, 1, 1
    for x, y in pairs:
        pool = np.sort(np.concatenate([x, y]))
        splits *= math.comb(len(pool), len(x))
        for_x = pool[-len(x) :]
        most *= math.comb(int((pool == for_x[0]).sum()), int((for_x == for_x[0]).sum()))
        for_x = pool[: len(x)]
        least *= math.comb(int((pool == for_x[-1]).sum()), int((for_x == for_x[-1]).sum()))
    return min(1.0, (most + least) / splits)


def _permutation_p(pairs: Sequence[tuple[np.ndarray, np.ndarray]]) -> float:
    """Two-sided; exact for one environment and few seeds, else by reshuffling.

    What is permuted is the probability of improvement divided by its standard error: so the test
    stays right where one arm's seeds spread more than the other's (Neubert & Brunner, "A
    studentized permutation test for the non-parametric Behrens–Fisher problem", 2007).
    """
    rng = np.random.default_rng(SEED)
    if len(pairs) == 1 and min(map(len, pairs[0])) > 1:
        test = stats.permutation_test(
            pairs[0],
            lambda x, y, axis: _studentised([_placed(x, y)]),
            vectorized=True,
            axis=-1,
            n_resamples=RESHUFFLES,
            batch=1000,
            rng=rng,
        )
        return float(test.pvalue)
    reshuffled = []
    for x, y in pairs:
        pool = np.tile(np.concatenate([x, y]), (RESHUFFLES, 1))
        rng.permuted(pool, axis=1, out=pool)
        reshuffled.append(_placed(pool[:, : len(x)], pool[:, len(x) :]))
    observed = abs(_studentised([_placed(x, y) for x, y in pairs]))
    distance = abs(_studentised(reshuffled))
    return float((1 + np.sum(distance >= observed - 1e-12)) / (1 + len(distance)))


def _placed(x: np.ndarray, y: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Probability of improvement and its variance (Brunner & Munzel, 2000) over the last axes."""
    first, second = x[..., :, None], y[..., None, :]
    wins = (first > second) + 0.5 * (first == second)
    n, m = wins.shape[-2:]
    variance = np.zeros(wins.shape[:-2])
    for along, size in ((-1, n), (-2, m)):
        if size > 1:
            variance = variance + wins.mean(axis=along).var(axis=-1, ddof=1) / size
    least = 1 / (2 * n * m) ** 2  # complete separation has none, and is the furthest from equal
    return wins.mean(axis=(-1, -2)), np.maximum(variance, least)


def _studentised(placed: Sequence[tuple[np.ndarray, np.ndarray]]) -> np.ndarray:
    """How many standard errors the average over environments is from one half."""
    values, variances = zip(*placed, strict=True)
    distance: np.ndarray = sum(value - 0.5 for value in values) / np.sqrt(sum(variances))
    return distance


def holm(p_values: np.ndarray) -> np.ndarray:
    """P-values adjusted so that any false rejection among them all is as rare as each says.

    Args:
        p_values: [n]; a NaN (no test was made) stays one and does not count.

    Source: Holm, "A Simple Sequentially Rejective Multiple Test Procedure" (1979).
    """
    adjusted = np.full(len(p_values), np.nan)
    order = np.argsort(p_values)[: np.isfinite(p_values).sum()]
    remaining = np.arange(len(order), 0, -1)
    adjusted[order] = np.minimum(np.maximum.accumulate(remaining * p_values[order]), 1.0)
    return adjusted


def smallest_detectable(first: int, second: int, level: float, power: float = 0.8) -> float:
    """The probability of improvement that so many seeds would show in four studies of five.

    Of two normal arms of equal spread; NaN where not even complete separation reaches ``level``.

    Args:
        first, second: seeds of the arms.
        level: the p-value that counts as shown.
    """
    if min(first, second) < 2 or 2 / math.comb(first + second, first) >= level:
        return math.nan
    freedom = first + second - 2
    per_sd = math.sqrt(first * second / (first + second))
    critical = stats.t.isf(level / 2, freedom)
    shift = brentq(lambda d: stats.nct.sf(critical, freedom, d * per_sd) - power, 0.0, 50.0)
    return float(stats.norm.cdf(shift / math.sqrt(2)))
