"""Intervals against SciPy, closed forms, and rliable's definitions written out."""

import math

import numpy as np
import pytest
from rliable import metrics
from scipy import stats

from analysis.intervals import (
    fraction,
    improvement,
    interquartile_mean,
    interval,
    mean,
    pointwise_band,
    probability_of_improvement,
)

RNG = np.random.default_rng(3)
SEEDS = RNG.normal(100, 20, size=30)


def rliable_percentile_interval(strata, statistic, repetitions=1500):
    """rliable's stratified bootstrap, as its `StratifiedBootstrap` and `conf_int` do it."""
    random = np.random.RandomState(0)
    draws = [
        statistic(np.concatenate([random.choice(x, len(x)) for x in strata]))
        for _ in range(repetitions)
    ]
    return np.percentile(draws, [2.5, 97.5])


@pytest.mark.parametrize("statistic", [mean, interquartile_mean])
@pytest.mark.parametrize("strata", [[SEEDS], [SEEDS[:10], SEEDS[10:] + 300]])
def test_intervals_are_those_of_a_stratified_bootstrap(statistic, strata):
    found = interval(strata, statistic)
    low, high = rliable_percentile_interval(strata, statistic)
    width = high - low
    assert found.value == pytest.approx(statistic(np.concatenate(strata)))
    assert found.low == pytest.approx(low, abs=0.12 * width)
    assert found.high == pytest.approx(high, abs=0.12 * width)


def test_strata_do_not_mix():
    far_apart = interval([SEEDS[:10], SEEDS[10:20] + 1e6])
    assert far_apart.high - far_apart.low < 50


def test_the_interquartile_mean_is_rliables():
    assert interquartile_mean(np.array([0.0, 1, 2, 3, 4, 5, 6, 100])) == pytest.approx(3.5)
    assert interquartile_mean(SEEDS) == pytest.approx(metrics.aggregate_iqm(SEEDS[:, None]))


def test_intervals_of_a_normal_mean_cover_it_about_as_often_as_they_say():
    covered = [
        found.low <= 0 <= found.high
        for found in (interval([RNG.normal(size=30)], resamples=300) for _ in range(200))
    ]
    assert 0.88 <= np.mean(covered) <= 0.99


def test_seeds_without_the_measure_are_left_out_and_counted():
    found = interval([np.array([1.0, np.nan, 3.0])])
    assert (found.value, found.n) == (2.0, 2)


def test_one_seed_has_no_interval_and_none_no_value():
    one, none = interval([np.array([5.0])]), interval([np.array([np.nan])])
    assert one.value == 5.0
    assert math.isnan(one.low)
    assert not one.excludes(0)
    assert none.n == 0
    assert math.isnan(none.value)


def test_equal_outcomes_have_an_exact_interval_with_width():
    found = fraction(np.array([1.0, 1, 1, 1, 1, np.nan]))
    assert (found.value, found.high, found.n) == (1.0, 1.0, 5)
    assert found.low == pytest.approx(0.025 ** (1 / 5))


@pytest.mark.parametrize("statistic", [mean, interquartile_mean])
def test_bands_agree_with_scipys_bootstrap_at_every_point(statistic):
    curves = np.cumsum(RNG.normal(size=(12, 40)), axis=1)
    value, low, high = pointwise_band(curves, statistic, resamples=4000)
    theirs = stats.bootstrap(
        (curves,),
        lambda x, axis: statistic(np.moveaxis(x, axis, -1)),
        axis=0,
        n_resamples=4000,
        method="percentile",
        rng=np.random.default_rng(1),
    ).confidence_interval
    width = theirs.high - theirs.low
    np.testing.assert_allclose(value, statistic(curves.T))
    assert np.all(np.abs(low - theirs.low) < 0.1 * width)
    assert np.all(np.abs(high - theirs.high) < 0.1 * width)


def test_a_band_has_holes_where_no_seed_has_a_value():
    curves = np.array([[1.0, np.nan, np.nan], [3.0, 5.0, np.nan]])
    value, low, high = pointwise_band(curves)
    np.testing.assert_array_equal(value, [2.0, 5.0, np.nan])
    assert low[0] == 1.0
    assert high[0] == 3.0
    assert np.isnan(low[2])


def test_improvement_is_mann_whitneys_u_over_all_pairs():
    x, y = RNG.integers(0, 9, 14).astype(float), RNG.integers(2, 11, 11).astype(float)
    u = stats.mannwhitneyu(x, y).statistic
    assert improvement(x, y) == pytest.approx(u / (len(x) * len(y)))


def test_improvement_over_environments_is_the_average_of_theirs():
    pairs = [(SEEDS[:8], SEEDS[8:15]), (SEEDS[15:20] + 30, SEEDS[20:30])]
    found = probability_of_improvement(pairs)
    assert found.probability.value == pytest.approx(np.mean([improvement(*p) for p in pairs]))
    x, y = SEEDS[:16].reshape(8, 2), SEEDS[14:].reshape(8, 2)
    ours = probability_of_improvement([(x[:, task], y[:, task]) for task in range(2)])
    theirs = metrics.probability_of_improvement(x, y)
    assert ours.probability.value == pytest.approx(theirs)
    assert found.probability.low < found.probability.value < found.probability.high
    assert found.seeds == (13, 17)


def test_the_permutation_p_is_the_exact_one_of_mann_whitney_for_few_seeds():
    x, y = RNG.normal(size=6), RNG.normal(1.0, 1, size=5)
    found = probability_of_improvement([(x, y)])
    exact = stats.mannwhitneyu(x, y, method="exact").pvalue
    assert found.p_value == pytest.approx(exact)


def test_permutations_over_several_environments_agree_with_one_for_one_of_them():
    x, y = RNG.normal(size=8), RNG.normal(1.0, 1, size=8)
    alone = probability_of_improvement([(x, y)]).p_value
    constant = (np.zeros(4), np.zeros(4))
    assert probability_of_improvement([(x, y), constant]).p_value == pytest.approx(alone, abs=0.02)


def test_three_seeds_can_never_be_significant():
    found = probability_of_improvement([(np.array([4.0, 5, 6]), np.array([1.0, 2, 3]))])
    assert found.probability.value == 1.0
    assert found.p_value == found.attainable == pytest.approx(0.1)
