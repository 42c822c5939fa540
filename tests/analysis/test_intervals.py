"""Intervals against SciPy, closed forms, and rliable's definitions written out."""

import math
from itertools import combinations

import numpy as np
import pytest
from rliable import metrics
from scipy import stats

from upgd_ppo.analysis.intervals import (
    fraction,
    holm,
    improvement,
    interquartile_mean,
    interval,
    mean,
    newcombe,
    pointwise_band,
    probability_of_improvement,
    smallest_detectable,
)
from upgd_ppo.analysis.survival import kaplan_meier, log_rank

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


@pytest.mark.parametrize("strata", [[SEEDS], [SEEDS[:10], SEEDS[10:] + 300]])
def test_intervals_of_the_interquartile_mean_are_those_of_a_stratified_bootstrap(strata):
    found = interval(strata, interquartile_mean)
    low, high = rliable_percentile_interval(strata, interquartile_mean)
    width = high - low
    assert found.value == pytest.approx(interquartile_mean(np.concatenate(strata)))
    assert found.low == pytest.approx(low, abs=0.12 * width)
    assert found.high == pytest.approx(high, abs=0.12 * width)


def test_the_interval_of_a_mean_is_students():
    found = interval([SEEDS])
    theirs = stats.ttest_1samp(SEEDS, 0).confidence_interval(0.95)
    assert (found.value, found.n) == (pytest.approx(SEEDS.mean()), 30)
    assert (found.low, found.high) == (pytest.approx(theirs.low), pytest.approx(theirs.high))


def test_the_mean_of_two_strata_has_welchs_degrees_of_freedom():
    x, y = SEEDS[:12], SEEDS[12:24] * 7
    found = interval([x, -y])
    theirs = stats.ttest_ind(x, y, equal_var=False).confidence_interval(0.95)
    assert found.low == pytest.approx(theirs.low / 2)
    assert found.high == pytest.approx(theirs.high / 2)


def test_strata_do_not_mix():
    far_apart = interval([SEEDS[:10], SEEDS[10:20] + 1e6])
    assert far_apart.high - far_apart.low < 50


def test_the_interquartile_mean_is_rliables():
    assert interquartile_mean(np.array([0.0, 1, 2, 3, 4, 5, 6, 100])) == pytest.approx(3.5)
    assert interquartile_mean(SEEDS) == pytest.approx(metrics.aggregate_iqm(SEEDS[:, None]))


@pytest.mark.parametrize("seeds", [3, 5, 10, 30])
def test_intervals_of_a_normal_mean_cover_it_as_often_as_they_say_however_few_the_seeds(seeds: int):
    random = np.random.default_rng(seeds)
    found = [interval([random.normal(size=seeds)]) for _ in range(1000)]
    assert 0.93 <= np.mean([one.low <= 0 <= one.high for one in found]) <= 0.97


@pytest.mark.parametrize("seeds", [5, 10, 30])
@pytest.mark.parametrize("shift", [0.0, 1.0])
def test_intervals_of_the_probability_of_improvement_cover_it(seeds: int, shift: float):
    random = np.random.default_rng(seeds)
    truth = stats.norm.cdf(shift / np.sqrt(2))
    covered = []
    for _ in range(400):
        x, y = random.normal(shift, 1, size=seeds), random.normal(size=seeds)
        low, high = newcombe(float(improvement(x, y)), [(seeds, seeds)])
        covered.append(low <= truth <= high)
    assert 0.92 <= np.mean(covered) <= 0.985


def test_complete_separation_of_few_seeds_is_no_certainty():
    low, high = newcombe(1.0, [(5, 5)])
    assert high == 1
    assert 0.5 < low < 0.8
    assert newcombe(0.0, [(5, 5)]) == pytest.approx((0, 1 - low))
    assert newcombe(1.0, [(50, 50)])[0] > 0.95


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
def test_bands_are_the_intervals_at_every_point(statistic):
    curves = np.cumsum(RNG.normal(size=(12, 40)), axis=1)
    value, low, high = pointwise_band(curves, statistic)
    for point in (0, 7, 39):
        alone = interval([curves[:, point]], statistic)
        width = alone.high - alone.low
        assert value[point] == pytest.approx(alone.value)
        assert low[point] == pytest.approx(alone.low, abs=0.1 * width)
        assert high[point] == pytest.approx(alone.high, abs=0.1 * width)


def test_a_band_has_holes_where_no_seed_has_a_value():
    curves = np.array([[1.0, np.nan, np.nan], [3.0, 5.0, np.nan]])
    value, low, high = pointwise_band(curves)
    np.testing.assert_array_equal(value, [2.0, 5.0, np.nan])
    assert low[0] < 1.0 < 3.0 < high[0]
    assert np.isnan(low[1:]).all()


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


@pytest.mark.filterwarnings("ignore::RuntimeWarning")
def test_the_permutation_p_counts_every_split_of_few_seeds():
    x, y = RNG.normal(size=5), RNG.normal(1.0, 1, size=4)
    pool = np.concatenate([x, y])

    def distance(first: np.ndarray, second: np.ndarray) -> float:
        theirs = stats.brunnermunzel(second, first)
        return theirs.statistic if np.isfinite(theirs.statistic) else np.inf * theirs.statistic

    found = []
    for chosen in combinations(range(9), 5):
        rest = np.setdiff1d(range(9), chosen)
        with np.errstate(divide="ignore"):
            found.append(distance(pool[list(chosen)], pool[rest]))
    observed = distance(x, y)
    ways = [
        np.mean(np.array(found) >= observed - 1e-9),
        np.mean(np.array(found) <= observed + 1e-9),
    ]
    assert probability_of_improvement([(x, y)]).p_value == pytest.approx(min(1, 2 * min(ways)))


@pytest.mark.parametrize(("first", "second"), [(5, 5), (8, 5)])
def test_equal_arms_of_unequal_spread_are_rarely_told_apart(first: int, second: int):
    random = np.random.default_rng(first)
    p_values = [
        probability_of_improvement(
            [(random.normal(size=first), 5 * random.normal(size=second))]
        ).p_value
        for _ in range(120)
    ]
    assert np.mean(np.array(p_values) < 0.05) < 0.1


def test_permutations_over_several_environments_agree_with_one_for_one_of_them():
    x, y = RNG.normal(size=8), RNG.normal(1.0, 1, size=8)
    alone = probability_of_improvement([(x, y)]).p_value
    constant = (np.zeros(4), np.zeros(4))
    assert probability_of_improvement([(x, y), constant]).p_value == pytest.approx(alone, abs=0.02)


def test_three_seeds_can_never_be_significant():
    found = probability_of_improvement([(np.array([4.0, 5, 6]), np.array([1.0, 2, 3]))])
    assert found.probability.value == 1.0
    assert found.p_value == found.attainable == pytest.approx(0.1)


def test_ties_limit_what_is_attainable():
    tied = (np.array([1.0, 1, 1, 1, 2]), np.array([1.0, 1, 1, 1, 1]))
    assert probability_of_improvement([tied]).attainable == 1
    equal = probability_of_improvement([(np.ones(10), np.ones(10))])
    assert (equal.probability.value, equal.p_value, equal.attainable) == (0.5, 1, 1)


def test_a_seed_worse_than_all_others_is_ranked_not_left_out():
    halted = np.full(5, -np.inf)
    found = probability_of_improvement([(SEEDS[:5], halted)])
    assert (found.probability.value, found.seeds) == (1, (5, 5))
    assert probability_of_improvement([(halted, halted)]).probability.value == 0.5


def test_holms_correction_is_the_textbooks():
    adjusted = holm(np.array([0.01, 0.04, 0.03, np.nan, 0.005]))
    np.testing.assert_allclose(adjusted, [0.03, 0.06, 0.06, np.nan, 0.02])
    assert holm(np.array([0.9, 0.8])).tolist() == [1, 1]
    assert holm(np.zeros(0)).size == 0


def test_one_page_in_twenty_of_equal_arms_states_anything():
    random = np.random.default_rng(6)
    rejected = [np.any(holm(random.random(8)) < 0.05) for _ in range(4000)]
    assert np.mean(rejected) == pytest.approx(0.05, abs=0.012)


def test_the_smallest_detectable_difference_is_detected_in_four_studies_of_five():
    random = np.random.default_rng(7)
    least = smallest_detectable(12, 12, level=0.05)
    shift = np.sqrt(2) * stats.norm.ppf(least)
    found = [
        stats.mannwhitneyu(random.normal(shift, 1, 12), random.normal(size=12)).pvalue < 0.05
        for _ in range(1000)
    ]
    assert np.mean(found) == pytest.approx(0.8, abs=0.06)
    assert math.isnan(smallest_detectable(3, 3, level=0.05))
    assert smallest_detectable(30, 30, level=0.05) < least


def test_a_survival_curve_is_the_product_of_what_survives():
    time = np.array([2.0, 5, 5, 8, 10, 10, np.nan])
    curve = kaplan_meier(time, np.array([1.0, 1, 1, 0, 0, 0, np.nan]))
    assert (curve.seeds, curve.events) == (6, 3)
    assert curve.time.tolist() == [0, 2, 5, 8, 10]
    assert curve.value.tolist() == pytest.approx([1, 5 / 6, 1 / 2, 1 / 2, 1 / 2])
    assert curve.low[2] < 0.5 < curve.high[2]
    nothing_fell = kaplan_meier(np.full(3, 100.0), np.zeros(3))
    assert nothing_fell.value.tolist() == [1, 1]
    assert kaplan_meier(np.full(2, np.nan), np.full(2, np.nan)).seeds == 0


def test_the_log_rank_test_sums_observed_minus_expected():
    x, y = np.array([1.0, 3, 4, 9, 9]), np.array([5.0, 6, 9, 9])
    dx, dy = np.array([1.0, 1, 1, 0, 0]), np.array([1.0, 1, 0, 0])
    difference = variance = 0.0
    for t in (1, 3, 4, 5, 6):
        at_risk, of_x = np.sum(x >= t) + np.sum(y >= t), np.sum(x >= t)
        difference += np.sum((x == t) & (dx == 1)) - of_x / at_risk
        variance += of_x / at_risk * (1 - of_x / at_risk)
    expected = 2 * stats.norm.sf(abs(difference) / np.sqrt(variance))
    assert log_rank(x, dx, y, dy) == pytest.approx(expected)
    assert log_rank(x, 0 * dx, y, 0 * dy) == 1
    assert math.isnan(log_rank(x, dx, np.full(2, np.nan), np.full(2, np.nan)))
