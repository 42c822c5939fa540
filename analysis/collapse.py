"""Did the policy collapse? The measures of one seed, from the returns of its episodes.

Episodic returns are averaged in 100 equal bins of training steps and smoothed by a 5-bin centred
mean. ``start`` is the first bin and ``final`` the mean of the last five. The ``peak`` is found on
the odd episodes and read on the even ones: the maximum of a noisy curve is biased upwards, the more
the noisier it is, and a height read on episodes that had no say in the choice is not.

A seed *rose* when peak − start exceeds five standard errors of a smoothed bin; one that did not
never learned, and has nothing that it could lose. This is judged with the halves exchanged (found
on the even episodes, read on the odd ones): judged on the peak itself, it would choose the seeds
whose peak was read too high. Of a seed that rose

    retained = (final − start) / (peak − start),

and it collapsed when it retained less than half. The end of a run is a snapshot, so beside it stand
``first_fall``, ``fell`` and ``time_below``, which follow the curve below half of its running rise.
"""

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
from numpy.lib.stride_tricks import sliding_window_view
from scipy.stats import norm

from upgd_ppo.analysis.arm import Episodes

BINS = 100
WINDOW = 5
LAST = 5
THRESHOLD = 0.5
FEWEST_BINS = BINS // WINDOW
"""A seed with fewer bins that hold an episode (one per smoothing window) is not measured."""
STANDARD_ERRORS = 5
"""A rise of no more than so many standard errors of a smoothed bin is noise."""
LONG_ENOUGH = 3
"""Bins below half of the running rise that make a fall."""
WARM_UP = BINS // 5
"""``time_below`` is counted after these bins."""
LOWEST, HIGHEST = -1.0, 1.0
"""``retained`` is clipped to these for means: it is a ratio, and a few seeds would decide them."""

KEPT, COLLAPSED, HALTED = "kept", "collapsed", "halted"
NEVER_LEARNED, TOO_FEW = "never learned", "too few episodes"


def bin_of(step: np.ndarray, horizon: int) -> np.ndarray:
    """The bin, 0 to 99, of steps 1 to ``horizon``."""
    return np.clip((np.asarray(step, dtype=np.int64) - 1) * BINS // horizon, 0, BINS - 1)


@dataclass(frozen=True)
class Bins:
    """Episodic returns of S seeds in 100 bins of training steps; each array is [S, 100].

    Averages are over episodes, not over steps, and NaN where no episode ended.
    """

    mean: np.ndarray
    odd: np.ndarray
    """Mean of a seed's first, third, fifth … episode, as far as they ended in the bin."""
    even: np.ndarray
    even_count: np.ndarray
    even_spread: np.ndarray
    """Sum of the squared deviations of the even episodes from their mean in the bin."""

    def of(self, seeds: np.ndarray) -> "Bins":
        """The bins of some of the seeds."""
        return Bins(*(values[seeds] for values in vars(self).values()))


def bin_returns(episodes: Iterable[Episodes], members: int, horizon: int) -> Bins:
    """Average the returns of the episodes that ended by step ``horizon``.

    Non-finite returns are left out: who reads the records marks such a member as halted.
    """
    cells = members * BINS
    total, squares, count = np.zeros((3, 2 * cells))
    seen = np.zeros(members, dtype=np.int64)
    for member, step, value in episodes:
        use = (step <= horizon) & np.isfinite(value)
        who, value = member[use].astype(np.int64), value[use]
        order = np.argsort(who, kind="stable")
        number = np.empty(len(who), dtype=np.int64)
        held = np.bincount(who, minlength=members)
        number[order] = np.arange(len(who)) - np.repeat(np.cumsum(held) - held, held)
        is_even = (seen[who] + number) % 2
        seen += held
        cell = is_even * cells + who * BINS + bin_of(step[use], horizon)
        np.add.at(total, cell, value)
        np.add.at(squares, cell, value**2)
        np.add.at(count, cell, 1.0)
    total, squares, count = (values.reshape(2, members, BINS) for values in (total, squares, count))
    with np.errstate(invalid="ignore"):
        means = total / count
        mean = total.sum(axis=0) / count.sum(axis=0)
    spread = squares[1] - count[1] * np.nan_to_num(means[1]) ** 2
    return Bins(mean, means[0], means[1], count[1], np.maximum(spread, 0.0))


def fill_empty(bins: np.ndarray) -> np.ndarray:
    """Give an empty (NaN) bin the previous value; before the first value, the first one.

    Args:
        bins: [..., 100].
    """
    filled = np.isfinite(bins)
    position = np.where(filled, np.arange(bins.shape[-1]), 0)
    latest = np.maximum.accumulate(position, axis=-1)
    first = np.argmax(filled, axis=-1)[..., None]
    return np.take_along_axis(bins, np.maximum(latest, first), axis=-1)


def smooth(curve: np.ndarray) -> np.ndarray:
    """Centred 5-bin mean over the last axis; at the ends, the mean of the bins there are."""
    margin = [(0, 0)] * (curve.ndim - 1) + [(WINDOW // 2, WINDOW // 2)]
    windows = sliding_window_view(np.pad(curve, margin), WINDOW, axis=-1).sum(axis=-1)
    return windows / np.convolve(np.ones(curve.shape[-1]), np.ones(WINDOW), mode="same")


@dataclass(frozen=True)
class Collapse:
    """The measures of S seeds; each array is [S] unless it says otherwise.

    ``outcome`` says what became of a seed. What is not defined for it is NaN: everything where
    there were too few episodes; ``retained``, ``collapsed``, ``first_fall``, ``fell`` and
    ``time_below`` where it never learned.
    """

    curve: np.ndarray
    """[S, 100], empty bins filled; from its halt on a halted seed is worth its start."""
    start: np.ndarray
    peak: np.ndarray
    """The largest smoothed bin, found on the odd episodes and read on the even ones."""
    standard_error: np.ndarray
    """Of a smoothed bin of the even episodes."""
    final: np.ndarray
    """Of a halted seed its start, for means; ``ranked`` puts it last."""
    retained: np.ndarray
    """Of a halted seed −1, the lowest value that enters a mean; ``ranked`` puts it last."""
    area: np.ndarray
    """Area under the curve divided by its length: the mean return over training."""
    collapsed: np.ndarray
    """1.0 or 0.0."""
    outcome: np.ndarray
    halted: np.ndarray
    """The bin of the halt; 100 for a seed that did not halt."""
    filled: np.ndarray
    """How many of the 100 bins hold an episode."""
    running_peak: np.ndarray
    """[S, 100]: the peak of the bins up to each, cross-fitted like ``peak``."""
    risen: np.ndarray
    """[S, 100] bool: the running rise exceeds its noise."""
    below: np.ndarray
    """[S, 100] bool: the smoothed curve is below half of its running rise, or has halted."""
    first_fall: np.ndarray
    """The bin in which the curve first falls below half of its running rise to stay there for three
    bins, or halts; 100 for a seed that never does (censored by the end of the run)."""
    fell: np.ndarray
    """1.0 where ``first_fall`` happened, 0.0 where it was censored."""
    time_below: np.ndarray
    """Share of the last 80 bins that is ``below``."""

    def share_of_peak(self) -> np.ndarray:
        """[S, 100]: the smoothed curve between start (0) and peak (1); NaN if it never learned."""
        return self._share(self.peak[:, None], self.risen[:, -1:])

    def share_of_running_peak(self) -> np.ndarray:
        """[S, 100]: the smoothed curve between start (0) and the peak so far (1); NaN before it
        rose above its noise."""
        return self._share(self.running_peak, self.risen)

    def _share(self, peak: np.ndarray, risen: np.ndarray) -> np.ndarray:
        start = self.start[:, None]
        return (smooth(self.curve) - start) / np.where(risen, peak - start, np.nan)

    def ranked(self, measure: str) -> np.ndarray:
        """[S]: what seeds are ranked by in a measure, more is better; NaN where it has none.

        A halted seed ranks below every seed that lived, whenever it halted; in ``first_fall`` the
        halt is its fall.
        """
        if measure == "first_fall":
            return self.first_fall
        value = -self.time_below if measure == "time_below" else getattr(self, measure)
        return np.where(self.halted < BINS, -np.inf, value)


def measure(bins: Bins, halted: np.ndarray | None = None) -> Collapse:
    """Measure the seeds of an arm.

    A halted seed, whose training became non-finite, has no policy any more: it collapsed, whenever
    it halted. With fewer than 20 bins that hold an episode nothing is measured.

    Args:
        bins: of S seeds.
        halted: [S] the bin of the halt; 100 or more for a seed that did not halt.

    Source: policy collapse as in Dohare et al. (EWRL 2023) and Moalla et al. (2024); the measures
    themselves are this project's.
    """
    if bins.mean.ndim != 2 or bins.mean.shape[1] != BINS:
        raise ValueError(f"bins must be [seeds, {BINS}], got {list(bins.mean.shape)}")
    halted = np.full(len(bins.mean), BINS) if halted is None else np.minimum(halted, BINS)
    after_halt = np.arange(BINS) >= halted[:, None]
    has_halted = halted < BINS

    filled = np.isfinite(bins.mean).sum(axis=1)
    few = np.where(has_halted, filled == 0, filled < FEWEST_BINS)
    start = np.where(few, np.nan, fill_empty(bins.mean)[:, 0])
    if (few & has_halted).any() and np.isfinite(start).any():  # halted before its first episode
        start[few & has_halted] = np.nanmean(start)

    def until_halt(values: np.ndarray) -> np.ndarray:
        return np.where(after_halt, start[:, None], np.where(few[:, None], np.nan, values))

    curve = until_halt(fill_empty(bins.mean))
    odd, even = (until_halt(fill_empty(half)) for half in (bins.odd, bins.even))
    smoothed = smooth(curve)
    at = _running_argmax(smooth(odd))
    running_peak = np.take_along_axis(smooth(even), at, axis=1)
    exchanged = np.take_along_axis(smooth(odd), _running_argmax(smooth(even)), axis=1)
    peak = running_peak[:, -1]
    standard_error = _standard_error(bins, np.where(after_halt, np.nan, even), at[:, -1])

    rise = running_peak - start[:, None]
    is_beyond_noise = exchanged - start[:, None] > STANDARD_ERRORS * standard_error[:, None]
    risen = is_beyond_noise & (rise > 0)
    rose = risen[:, -1]
    below = after_halt | (risen & (smoothed - start[:, None] < THRESHOLD * rise))
    judged = rose | has_halted

    final = np.where(has_halted, start, curve[:, -LAST:].mean(axis=1))
    retained = np.where(rose, (final - start) / np.where(rose, rise[:, -1], 1.0), np.nan)
    retained[has_halted] = LOWEST
    collapsed = np.where(judged, (retained < THRESHOLD).astype(float), np.nan)
    first_fall = np.minimum(_first_run(below), halted)
    return Collapse(
        curve=curve,
        start=start,
        peak=peak,
        standard_error=standard_error,
        final=final,
        retained=retained,
        area=curve.mean(axis=1),
        collapsed=collapsed,
        outcome=np.select(
            [has_halted, few, ~rose, collapsed == 1.0],
            [HALTED, TOO_FEW, NEVER_LEARNED, COLLAPSED],
            KEPT,
        ),
        halted=halted,
        filled=filled,
        running_peak=running_peak,
        risen=risen,
        below=below,
        first_fall=np.where(judged, first_fall, np.nan),
        fell=np.where(judged, (first_fall < BINS).astype(float), np.nan),
        time_below=np.where(judged, below[:, WARM_UP:].mean(axis=1), np.nan),
    )


def _running_argmax(curve: np.ndarray) -> np.ndarray:
    """[S, 100]: the largest bin so far, among those with a whole smoothing window."""
    margin = WINDOW // 2
    candidates = np.full_like(curve, -np.inf)
    candidates[:, margin:-margin] = curve[:, margin:-margin]
    is_new = (candidates > -np.inf) & (candidates >= np.maximum.accumulate(candidates, axis=1))
    return np.maximum.accumulate(np.where(is_new, np.arange(BINS), 0), axis=1)


def _first_run(below: np.ndarray) -> np.ndarray:
    """[S]: where the first run of three bins begins; 100 where there is none."""
    runs = sliding_window_view(below.astype(int), LONG_ENOUGH, axis=1).sum(axis=-1) == LONG_ENOUGH
    return np.where(runs.any(axis=1), runs.argmax(axis=1), BINS)


def _standard_error(bins: Bins, even: np.ndarray, peak_bin: np.ndarray) -> np.ndarray:
    """[S]: of a smoothed bin of the even episodes, the larger of two estimates.

    One is from the episodes in the peak's window. The other, which also sees a policy that wanders,
    is the typical change of the smoothed curve from one window to the next: the median absolute
    difference, so that a few true rises and falls are not taken for noise.

    Args:
        even: [S, 100], empty bins filled, NaN after a halt.
        peak_bin: [S].
    """
    seeds = np.arange(len(even))[:, None]
    window = peak_bin[:, None] + np.arange(WINDOW) - WINDOW // 2
    window = np.clip(window, 0, BINS - 1)
    count, spread = bins.even_count[seeds, window], bins.even_spread[seeds, window]
    freedom = np.maximum(count - 1, 0).sum(axis=1)
    variance = np.where(freedom > 0, spread.sum(axis=1) / np.maximum(freedom, 1), 0.0)
    of_mean = variance * np.mean(1 / np.maximum(count, 1), axis=1) / WINDOW

    smoothed = smooth(even)
    change = np.abs(smoothed[:, WINDOW:] - smoothed[:, :-WINDOW])
    known = np.isfinite(change)
    typical = np.ma.median(np.ma.masked_array(change, ~known), axis=1).filled(np.nan)
    between_bins = typical / (norm.ppf(0.75) * np.sqrt(2))
    return np.fmax(np.sqrt(of_mean), between_bins)
