"""The measures of collapse on curves whose answer is known."""

import numpy as np
import pytest
from hypothesis import Phase, given, settings
from hypothesis import strategies as st

from upgd_ppo.analysis.arm import Episodes
from upgd_ppo.analysis.collapse import (
    BINS,
    COLLAPSED,
    HALTED,
    KEPT,
    NEVER_LEARNED,
    TOO_FEW,
    Bins,
    bin_returns,
    fill_empty,
    measure,
    smooth,
)

PROGRESS = (np.arange(BINS) + 0.5) / BINS
RISE = 100 * np.minimum(PROGRESS / 0.3, 1)


def exactly(curves: np.ndarray) -> Bins:
    """Bins whose odd and even episodes agree."""
    return Bins(curves, curves, curves, np.ones(curves.shape), np.zeros(curves.shape))


def noisy(curves: np.ndarray, noise: float, random: np.random.Generator, episodes: int = 2) -> Bins:
    """Bins of so many episodes each, with independent normal noise."""
    returns = curves[..., None] + noise * random.normal(size=(*curves.shape, episodes))
    odd, even = returns[..., ::2], returns[..., 1::2]
    return Bins(
        returns.mean(axis=-1),
        odd.mean(axis=-1),
        even.mean(axis=-1),
        np.full(curves.shape, float(even.shape[-1])),
        even.var(axis=-1) * even.shape[-1],
    )


def one(curve: np.ndarray, halted: int = BINS):
    return measure(exactly(curve[None]), np.array([halted]))


def reference(odd: list[float], even: list[float], both: list[float]) -> dict[str, object]:
    """The definitions, one seed at a time and without arrays; the noise aside."""

    def smoothed(bins: list[float]) -> list[float]:
        filled: list[float] = []
        for value in bins:
            if np.isnan(value):
                value = filled[-1] if filled else next(v for v in bins if not np.isnan(v))
            filled.append(value)
        return [np.mean(filled[max(0, i - 2) : i + 3]) for i in range(BINS)]

    found, read, curve = smoothed(odd), smoothed(even), smoothed(both)
    start = next(v for v in both if not np.isnan(v))
    below, peaks = [], []
    for t in range(BINS):
        candidates = range(2, min(t, BINS - 3) + 1)
        best = max(candidates, key=lambda i: (found[i], i), default=0)
        peaks.append(read[best])
        below.append(curve[t] - start < 0.5 * (read[best] - start))
    return {"start": start, "peak": peaks[-1], "running_peak": peaks, "below": below}


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


def test_noise_raises_neither_the_peak_nor_the_collapses():
    random = np.random.default_rng(0)
    calm = measure(noisy(np.tile(RISE, (300, 1)), 5, random))
    wild = measure(noisy(np.tile(RISE, (300, 1)), 25, random))
    assert calm.peak.mean() == pytest.approx(100, abs=0.5)
    assert wild.peak.mean() == pytest.approx(100, abs=2)
    assert np.nanmedian(wild.retained) == pytest.approx(np.median(calm.retained), abs=0.03)
    assert np.nanmean(wild.collapsed) < 0.01
    maximum = smooth(noisy(np.tile(RISE, (300, 1)), 25, random).mean).max(axis=1)
    assert maximum.mean() > 110  # what a peak found and read on the same episodes would be


def test_seeds_that_only_fluctuate_never_learned():
    random = np.random.default_rng(1)
    nothing = np.zeros((2000, BINS))
    for episodes in (2, 10):
        found = measure(noisy(nothing, 1.0, random, episodes))
        assert np.mean(found.outcome == NEVER_LEARNED) > 0.98
        assert np.mean(found.outcome == COLLAPSED) < 0.005
        assert np.nansum(found.fell) < 0.01 * 2000


def test_a_policy_that_only_wanders_mostly_never_learned():
    random = np.random.default_rng(2)
    walk = random.normal(size=(2000, BINS))
    for t in range(1, BINS):
        walk[:, t] = 0.9 * walk[:, t - 1] + np.sqrt(1 - 0.9**2) * walk[:, t]
    found = measure(exactly(walk))
    assert np.mean(found.outcome == COLLAPSED) < 0.15
    assert np.mean(found.outcome == NEVER_LEARNED) > 0.7


def test_a_rise_well_above_the_noise_is_judged():
    random = np.random.default_rng(3)
    found = measure(noisy(np.tile(RISE, (500, 1)), 10, random))
    assert set(found.outcome) == {KEPT}
    lost = measure(noisy(np.tile(np.where(PROGRESS < 0.6, RISE, 10.0), (500, 1)), 10, random))
    assert set(lost.outcome) == {COLLAPSED}


def test_the_noise_is_that_of_a_smoothed_bin_of_the_even_episodes():
    random = np.random.default_rng(4)
    flat = np.zeros((400, BINS))
    for episodes, bins in ((2, noisy(flat, 3.0, random)), (20, noisy(flat, 3.0, random, 20))):
        expected = 3.0 / np.sqrt(5 * episodes / 2)
        assert np.median(measure(bins).standard_error) == pytest.approx(expected, rel=0.15)


def test_few_wild_episodes_in_the_peaks_window_count_as_noise_though_the_curve_is_still():
    still = exactly(np.where(PROGRESS < 0.3, 0.0, 1.0)[None])
    assert measure(still).outcome[0] == KEPT
    wild = Bins(still.mean, still.odd, still.even, still.even_count + 1, still.even_count * 50.0)
    assert measure(wild).outcome[0] == NEVER_LEARNED


@pytest.mark.parametrize(("floor", "outcome"), [(60.0, KEPT), (40.0, COLLAPSED)])
def test_a_slow_decline_collapses_once_half_is_lost(floor: float, outcome: str):
    decline = 100 - (100 - floor) * np.clip((PROGRESS - 0.3) / 0.6, 0, 1)
    assert one(np.minimum(RISE, decline)).outcome[0] == outcome


def test_a_halted_seed_collapsed_and_ranks_below_every_seed_that_lived():
    fell = np.where(PROGRESS < 0.6, RISE, -200.0)
    result = measure(exactly(np.stack([RISE, fell, RISE])), np.array([50, BINS, BINS]))
    assert result.outcome.tolist() == [HALTED, COLLAPSED, KEPT]
    assert result.collapsed.tolist() == [1, 1, 0]
    assert result.final[0] == result.start[0] == RISE[0]
    assert (result.retained[0], result.retained[1] < -1) == (-1, True)
    assert result.time_below.tolist()[0] == pytest.approx(50 / 80)
    for name in ("final", "retained", "time_below"):
        assert np.argsort(result.ranked(name)).tolist() == [0, 1, 2]
    assert (result.fell[0], result.first_fall[0]) == (1, 50)


@pytest.mark.parametrize("halted", [0, 1, 5, 99])
def test_a_seed_is_ranked_last_whenever_it_halts(halted: int):
    curve = np.where(np.arange(BINS) < max(halted, 1), RISE, np.nan)
    if not halted:
        curve[:] = np.nan
    result = measure(exactly(np.stack([curve, RISE])), np.array([halted, BINS]))
    assert result.outcome[0] == HALTED
    assert result.collapsed[0] == 1
    assert result.fell[0] == 1
    for name in ("final", "retained", "time_below"):
        assert result.ranked(name)[0] == -np.inf
    assert result.final[0] == pytest.approx(RISE[0])  # of the arm's other seeds, if it has no own


def test_a_seed_that_never_rises_is_not_judged():
    for curve in (np.full(BINS, 7.0), np.linspace(5, 1, BINS)):
        result = one(curve)
        assert result.outcome[0] == NEVER_LEARNED
        for name in ("retained", "collapsed", "fell", "first_fall", "time_below"):
            assert np.isnan(getattr(result, name)[0])
        assert np.isfinite(result.ranked("final")[0])


def test_a_fall_that_is_climbed_out_of_is_seen_though_nothing_is_lost_at_the_end():
    curve = RISE.copy()
    curve[50:70] = 10
    result = one(curve)
    assert result.outcome[0] == KEPT
    assert result.fell[0] == 1
    assert result.first_fall[0] == pytest.approx(50, abs=1)
    assert result.time_below[0] == pytest.approx(20 / 80)


@pytest.mark.parametrize(("zeros", "bins", "fell"), [([50, 51, 53], 2, 0), ([50, 51, 52], 3, 1)])
def test_a_fall_lasts_three_bins(zeros: list[int], bins: int, fell: int):
    curve = RISE.copy()
    curve[zeros] = 0  # a smoothed bin is below half where its window holds three of them
    result = one(curve)
    assert result.below[0].sum() == bins
    assert result.fell[0] == fell


def test_half_of_the_rise_so_far_is_what_counts_not_half_of_the_last_peak():
    staircase = np.select([PROGRESS < 0.1, PROGRESS < 0.5], [0.0, 40.0], 100.0)
    result = one(staircase)
    assert result.fell[0] == 0
    assert result.time_below[0] == 0


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
    together = measure(exactly(curves), np.array([BINS, BINS, BINS]))
    for row, curve in enumerate(curves):
        alone = one(curve)
        assert together.outcome[row] == alone.outcome[0]
        np.testing.assert_array_equal(together.retained[row], alone.retained[0])


@settings(deadline=None, max_examples=60, phases=[Phase.explicit, Phase.generate])
@given(st.integers(0, 2**32 - 1), st.floats(0.1, 1))
def test_the_arrays_agree_with_the_definition(seed: int, filled: float):
    random = np.random.default_rng(seed)
    halves = np.cumsum(random.normal(size=(2, BINS)), axis=1) + random.normal(size=(2, BINS))
    halves[random.random((2, BINS)) > filled] = np.nan
    known = np.isfinite(halves).any(axis=0)
    both = np.where(
        known, np.nansum(halves, axis=0) / np.isfinite(halves).sum(axis=0).clip(1), np.nan
    )
    count, spread = np.ones((1, BINS)), np.zeros((1, BINS))
    result = measure(Bins(both[None], halves[:1], halves[1:], count, spread))
    if known.sum() < 20 or not np.isfinite(halves).any(axis=1).all():
        return
    expected = reference(*halves.tolist(), both.tolist())
    assert result.start[0] == pytest.approx(expected["start"], abs=1e-9)
    assert result.final[0] == pytest.approx(np.mean(fill_empty(both)[-5:]), abs=1e-9)
    np.testing.assert_allclose(result.running_peak[0], expected["running_peak"], atol=1e-9)
    if result.outcome[0] in (KEPT, COLLAPSED):
        rise = result.peak[0] - result.start[0]
        assert result.retained[0] == pytest.approx((result.final[0] - result.start[0]) / rise)
        assert np.all(~result.below[0] | np.array(expected["below"]))
        assert result.time_below[0] == pytest.approx(result.below[0, 20:].mean())


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
    assert bins.mean[0, 0] == 2.0
    assert bins.mean[1, 1] == 5.0
    assert bins.mean[0, 99] == 7.0
    assert np.isfinite(bins.mean).sum() == 3


def test_every_second_episode_of_a_seed_is_even_across_batches():
    random = np.random.default_rng(5)
    member = random.integers(0, 3, 400)
    step = np.sort(random.integers(1, 10_000, 400))
    value = random.normal(size=400)
    batches = [
        Episodes(*(column[part] for column in (member, step, value)))
        for part in (slice(0, 7), slice(7, 200), slice(200, 400))
    ]
    bins = bin_returns(batches, members=3, horizon=10_000)
    for k in range(3):
        mine = np.flatnonzero(member == k)
        place = (step[mine] - 1) // 100
        for half, means in ((0, bins.odd), (1, bins.even)):
            for b in range(BINS):
                values = value[mine][half::2][place[half::2] == b]
                assert np.isnan(means[k, b]) == (len(values) == 0)
                if len(values):
                    assert means[k, b] == pytest.approx(values.mean())
                if half and len(values):
                    spread = ((values - values.mean()) ** 2).sum()
                    assert bins.even_spread[k, b] == pytest.approx(spread, abs=1e-9)
