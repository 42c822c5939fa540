"""How sure a number over a few seeds is: 95 % stratified bootstrap intervals (SciPy's).

Agarwal et al., "Deep Reinforcement Learning at the Edge of the Statistical Precipice" (NeurIPS
2021). Their package rliable asks for arch < 8, which does not import beside pandas 3; SciPy's
bootstrap of several samples resamples each of them on its own, which is the stratified bootstrap.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from scipy import stats

LEVEL = 0.95
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
    """Estimate a statistic of one value per seed, the seeds of each stratum resampled on their own.

    Args:
        strata: one [seeds] array per environment; NaNs (seeds without the measure) are left out.
        statistic: applied to all strata together.
    """
    strata = [values[np.isfinite(values)] for values in strata]
    strata = [values for values in strata if len(values)]
    n = sum(map(len, strata))
    if n == 0:
        return Interval(math.nan, math.nan, math.nan, 0)
    value = float(statistic(np.concatenate(strata)))
    if min(map(len, strata)) < 2:
        return Interval(value, math.nan, math.nan, n)
    low, high = _bootstrap(
        strata, lambda *samples: statistic(np.concatenate(samples, axis=-1)), resamples
    )
    return Interval(value, float(low), float(high), n)


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
    """Estimate and 95 % interval at every point of the seeds' curves, whole seeds resampled.

    Args:
        curves: [seeds, ..., points]; NaN where a seed has no value.

    Returns:
        value, low, high: [..., points]; NaN where no seed has a value, bounds NaN for one seed.
    """
    shape = curves.shape[1:]
    flat = curves.reshape(len(curves), -1)
    if not len(flat):
        raise ValueError("a band needs the curve of at least one seed")
    if statistic is mean:
        value, low, high = _mean_band(flat, resamples)
    else:
        value = statistic(flat.T)
        low = high = np.full_like(value, np.nan)
        if len(flat) > 1:
            low, high = _bootstrap([flat.T], statistic, resamples)
    return value.reshape(shape), low.reshape(shape), high.reshape(shape)


def _mean_band(curves: np.ndarray, resamples: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The same for the mean as one matrix product: thousands of curves at once, holes allowed."""
    seeds = len(curves)
    known = np.isfinite(curves)
    values = np.where(known, curves, 0.0)
    with np.errstate(invalid="ignore"):
        value = values.sum(axis=0) / known.sum(axis=0)
    low = high = np.full_like(value, np.nan)
    if seeds < 2:
        return value, low, high
    rng = np.random.default_rng(SEED)
    times_drawn = rng.multinomial(seeds, np.full(seeds, 1 / seeds), size=resamples).astype(float)
    low, high = np.empty_like(value), np.empty_like(value)
    tail = (1 - LEVEL) / 2
    for begin in range(0, len(value), 4096):
        part = slice(begin, begin + 4096)
        with np.errstate(invalid="ignore"):
            means = (times_drawn @ values[:, part]) / (times_drawn @ known[:, part])
        means = np.where(np.isnan(means), value[part], means)
        low[part], high[part] = np.quantile(means, [tail, 1 - tail], axis=0)
    return value, low, high


def improvement(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """P(X > Y) + ½·P(X = Y) over the pairs of the last axes: [..., n], [..., m] → [...]."""
    x, y = x[..., :, None], y[..., None, :]
    return np.mean((x > y) + 0.5 * (x == y), axis=(-1, -2))


@dataclass(frozen=True)
class Improvement:
    """The probability that a seed of one arm beats a seed of another."""

    probability: Interval
    p_value: float
    """Permutation test of no difference: how often reshuffled seeds differ as much."""
    attainable: float
    """The smallest p-value that this many seeds can give: complete separation."""
    seeds: tuple[int, int]


def probability_of_improvement(pairs: Sequence[tuple[np.ndarray, np.ndarray]]) -> Improvement:
    """Average probability that a seed of arm X beats a seed of arm Y in the same environment.

    Args:
        pairs: one (X's [seeds], Y's [seeds]) per environment; NaNs are left out.

    The bootstrap alone is too sure with few seeds (complete separation gives [1, 1] whatever their
    number), hence the permutation test beside it.
    """
    pairs = [(x[np.isfinite(x)], y[np.isfinite(y)]) for x, y in pairs]
    pairs = [(x, y) for x, y in pairs if len(x) and len(y)]
    seeds = (sum(len(x) for x, _ in pairs), sum(len(y) for _, y in pairs))
    if not pairs:
        nothing = Interval(math.nan, math.nan, math.nan, 0)
        return Improvement(nothing, math.nan, math.nan, seeds)
    flat = [values for pair in pairs for values in pair]
    value = float(_average_improvement(*flat))
    low = high = math.nan
    if min(map(len, flat)) >= 2:
        low, high = map(float, _bootstrap(flat, _average_improvement, RESAMPLES))
    splits = math.prod(math.comb(len(x) + len(y), len(x)) for x, y in pairs)
    attainable = min(1.0, 2 / splits)
    return Improvement(
        Interval(value, low, high, sum(seeds)), _permutation_p(pairs), attainable, seeds
    )


def _average_improvement(*samples: np.ndarray) -> np.ndarray:
    pairs = [improvement(x, y) for x, y in zip(samples[::2], samples[1::2], strict=True)]
    return np.mean(np.stack(pairs), axis=0)


def _permutation_p(pairs: Sequence[tuple[np.ndarray, np.ndarray]]) -> float:
    """Two-sided; exact for one environment and few seeds, else by reshuffling."""
    rng = np.random.default_rng(SEED)
    if len(pairs) == 1 and min(map(len, pairs[0])) > 1:
        test = stats.permutation_test(
            pairs[0],
            lambda x, y, axis: improvement(x, y),
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
        reshuffled.append(improvement(pool[:, : len(x)], pool[:, len(x) :]))
    observed = abs(np.mean([improvement(x, y) for x, y in pairs]) - 0.5)
    distance = abs(np.mean(reshuffled, axis=0) - 0.5)
    return float((1 + np.sum(distance >= observed - 1e-12)) / (1 + len(distance)))
