"""The collapse measure on curves whose answer is known."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from analysis.arm import Episodes
from analysis.collapse import (
    BINS,
    COLLAPSED,
    HALTED,
    KEPT,
    NO_RISE,
    TOO_FEW,
    bin_returns,
    fill_empty,
    measure,
    smooth,
)

PROGRESS = (np.arange(BINS) + 0.5) / BINS
RISE = 100 * np.minimum(PROGRESS / 0.3, 1)


def one(curve: np.ndarray, halted: int = BINS):
    return measure(curve[None], np.array([halted]))


def reference(bins: list[float]) -> tuple[float, float, float, float]:
    """The definition, one seed at a time and without arrays."""
    filled: list[float] = []
    for value in bins:
        if np.isnan(value):
            value = filled[-1] if filled else next(v for v in bins if not np.isnan(v))
        filled.append(value)
    windows = [filled[max(0, i - 2) : i + 3] for i in range(BINS)]
    peak = max(sum(window) / len(window) for window in windows)
    start, final = filled[0], sum(filled[-5:]) / 5
    return start, peak, final, (final - start) / (peak - start)


def test_a_clean_collapse_retains_what_is_left_of_the_rise():
    result = one(np.where(PROGRESS < 0.6, RISE, 20.0))
    start = RISE[0]
    assert result.outcome[0] == COLLAPSED
    assert result.collapsed[0] == 1
    assert (result.start[0], result.peak[0], result.final[0]) == pytest.approx((start, 100, 20))
    assert result.retained[0] == pytest.approx((20 - start) / (100 - start))


def test_a_collapse_in_the_last_five_bins_is_seen():
    curve = RISE.copy()
    curve[-5:] = 0
    assert one(curve).outcome[0] == COLLAPSED


def test_a_collapse_in_the_last_two_bins_is_too_late_to_count():
    curve = RISE.copy()
    curve[-2:] = 0
    result = one(curve)
    assert result.outcome[0] == KEPT
    assert result.final[0] == pytest.approx(60)


def test_a_noisy_plateau_is_no_collapse_but_its_peak_is_biased_upwards():
    noise = np.random.default_rng(0).normal(0, 15, size=(50, BINS))
    result = measure(RISE + noise)
    assert set(result.outcome) == {KEPT}
    assert result.peak.mean() > 105
    assert 0.8 < result.retained.mean() < 1


@pytest.mark.parametrize(("floor", "outcome"), [(60.0, KEPT), (40.0, COLLAPSED)])
def test_a_slow_decline_collapses_once_half_is_lost(floor: float, outcome: str):
    decline = 100 - (100 - floor) * np.clip((PROGRESS - 0.3) / 0.6, 0, 1)
    assert one(np.minimum(RISE, decline)).outcome[0] == outcome


def test_a_halted_seed_collapsed_and_is_worth_its_start_from_then_on():
    result = one(RISE, halted=50)
    assert result.outcome[0] == HALTED
    assert result.collapsed[0] == 1
    assert result.final[0] == result.start[0] == RISE[0]
    assert result.retained[0] == 0
    assert result.peak[0] == pytest.approx(100)


def test_a_seed_that_halts_before_its_first_episode_counts_as_collapsed():
    result = one(np.full(BINS, np.nan), halted=0)
    assert result.outcome[0] == HALTED
    assert result.collapsed[0] == 1
    assert np.isnan(result.final[0])


def test_a_seed_that_never_rises_is_not_judged():
    for curve in (np.full(BINS, 7.0), np.linspace(5, 1, BINS)):
        result = one(curve)
        assert result.outcome[0] == NO_RISE
        assert np.isnan(result.retained[0])
        assert np.isnan(result.collapsed[0])


@pytest.mark.parametrize(("filled", "judged"), [(19, False), (20, True)])
def test_fewer_than_twenty_bins_with_episodes_are_too_few(filled: int, judged: bool):
    curve = np.full(BINS, np.nan)
    curve[np.linspace(0, BINS - 1, filled).astype(int)] = np.linspace(0, 1, filled)
    result = one(curve)
    assert (result.outcome[0] != TOO_FEW) == judged
    assert np.isfinite(result.collapsed[0]) == judged
    assert np.isfinite(result.area[0]) == judged


def test_seeds_are_measured_independently():
    curves = np.stack([RISE, np.where(PROGRESS < 0.6, RISE, 0), np.full(BINS, np.nan)])
    together = measure(curves, np.array([BINS, BINS, BINS]))
    for row, curve in enumerate(curves):
        alone = one(curve)
        assert together.outcome[row] == alone.outcome[0]
        np.testing.assert_array_equal(together.retained[row], alone.retained[0])


@settings(deadline=None, max_examples=60)
@given(st.lists(st.floats(-1e3, 1e3) | st.just(np.nan), min_size=BINS, max_size=BINS))
def test_the_arrays_agree_with_the_definition(bins: list[float]):
    result = one(np.array(bins))
    if result.outcome[0] in (KEPT, COLLAPSED):
        start, peak, final, retained = reference(bins)
        assert (result.start[0], result.peak[0], result.final[0]) == pytest.approx(
            (start, peak, final), abs=1e-9
        )
        if peak - start > 1e-6:
            assert result.retained[0] == pytest.approx(retained, rel=1e-6, abs=1e-6)


def test_an_empty_bin_takes_the_previous_value_and_a_leading_one_the_first():
    filled = fill_empty(np.array([np.nan, 2.0, np.nan, np.nan, 5.0, np.nan]))
    np.testing.assert_array_equal(filled, [2, 2, 2, 2, 5, 5])


def test_smoothing_keeps_a_straight_line_and_averages_five_bins():
    line = np.arange(10.0)
    np.testing.assert_allclose(smooth(line)[2:-2], line[2:-2])
    np.testing.assert_allclose(smooth(np.eye(11)[5])[3:8], 0.2)
    np.testing.assert_allclose(smooth(line)[0], 1.0)


def test_episodes_fall_in_the_bin_of_the_step_at_which_they_ended():
    batches = [
        Episodes(np.array([0, 0, 1]), np.array([1, 10, 11]), np.array([1.0, 3.0, 5.0])),
        Episodes(np.array([0, 1, 0]), np.array([1000, 1001, 995]), np.array([7.0, 9.0, np.inf])),
    ]
    bins = bin_returns(batches, members=2, horizon=1000)
    assert bins[0, 0] == 2.0
    assert bins[1, 1] == 5.0
    assert bins[0, 99] == 7.0
    assert np.isfinite(bins).sum() == 3
