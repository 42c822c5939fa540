"""Did the policy collapse? One number per seed from the returns of its episodes.

Episodic returns are averaged in 100 equal bins of training steps and smoothed by a 5-bin centred
mean. With ``start`` the first bin, ``peak`` the largest smoothed bin and ``final`` the mean of the
last five bins,

    retained = (final − start) / (peak − start),

and a seed collapsed when it retained less than half. The maximum of a noisy curve is biased
upwards, so ``retained`` is biased downwards, for every arm alike.
"""

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
from numpy.lib.stride_tricks import sliding_window_view

from analysis.arm import Episodes

BINS = 100
WINDOW = 5
LAST = 5
THRESHOLD = 0.5
FEWEST_BINS = BINS // WINDOW
"""A seed with fewer bins that hold an episode (one per smoothing window) is not measured."""

KEPT, COLLAPSED, HALTED = "kept", "collapsed", "halted"
NO_RISE, TOO_FEW = "never rose above its start", "too few episodes"


def bin_of(step: np.ndarray, horizon: int) -> np.ndarray:
    """The bin, 0 to 99, of steps 1 to ``horizon``."""
    return np.clip((np.asarray(step, dtype=np.int64) - 1) * BINS // horizon, 0, BINS - 1)


def bin_returns(episodes: Iterable[Episodes], members: int, horizon: int) -> np.ndarray:
    """Average the returns of the episodes that ended by step ``horizon``.

    Returns:
        [members, 100] float64; NaN where no episode ended. Non-finite returns are left out: who
        reads the records marks such a member as halted.
    """
    total = np.zeros(members * BINS)
    count = np.zeros(members * BINS)
    for member, step, value in episodes:
        use = (step <= horizon) & np.isfinite(value)
        cell = member[use].astype(np.int64) * BINS + bin_of(step[use], horizon)
        np.add.at(total, cell, value[use])
        np.add.at(count, cell, 1.0)
    with np.errstate(invalid="ignore"):
        return (total / count).reshape(members, BINS)


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

    ``collapsed`` is 1.0, 0.0, or NaN where the seed cannot be judged; ``outcome`` says why.
    """

    curve: np.ndarray
    """[S, 100], empty bins filled; from its halt on a halted seed is worth its start."""
    start: np.ndarray
    peak: np.ndarray
    final: np.ndarray
    retained: np.ndarray
    area: np.ndarray
    """Area under the curve divided by its length: the mean return over training."""
    collapsed: np.ndarray
    outcome: np.ndarray
    halted: np.ndarray
    """The bin of the halt; 100 for a seed that did not halt."""
    filled: np.ndarray
    """How many of the 100 bins hold an episode."""

    def share_of_peak(self) -> np.ndarray:
        """[S, 100]: the smoothed curve between start (0) and peak (1); NaN without a rise."""
        rise = (self.peak - self.start)[:, None]
        with np.errstate(invalid="ignore"):
            return (smooth(self.curve) - self.start[:, None]) / np.where(rise > 0, rise, np.nan)


def measure(bins: np.ndarray, halted: np.ndarray | None = None) -> Collapse:
    """Measure the seeds of an arm.

    A halted seed, whose training became non-finite, has no policy any more: it counts as collapsed,
    and from the bin of its halt on it is worth its start. A seed that never rose above its start
    had nothing to lose: ``retained`` and ``collapsed`` are not defined for it. With fewer than 20
    bins that hold an episode nothing is.

    Args:
        bins: [S, 100], NaN where no episode ended.
        halted: [S] the bin of the halt; 100 or more for a seed that did not halt.

    Source: policy collapse as in Dohare et al. (EWRL 2023) and Moalla et al. (2024); the measure
    itself is this project's.
    """
    if bins.ndim != 2 or bins.shape[1] != BINS:
        raise ValueError(f"bins must be [seeds, {BINS}], got {list(bins.shape)}")
    halted = np.full(len(bins), BINS) if halted is None else np.minimum(halted, BINS)
    after_halt = np.arange(BINS) >= halted[:, None]
    has_halted = halted < BINS

    filled = np.isfinite(bins).sum(axis=1)
    few = np.where(has_halted, filled == 0, filled < FEWEST_BINS)
    curve = fill_empty(bins)
    curve[few] = np.nan
    start = curve[:, 0].copy()
    curve = np.where(after_halt, start[:, None], curve)

    peak = smooth(curve).max(axis=1)
    final = curve[:, -LAST:].mean(axis=1)
    rose = peak > start
    retained = np.where(rose, (final - start) / np.where(rose, peak - start, 1.0), np.nan)
    collapsed = np.where(rose, (retained < THRESHOLD).astype(float), np.nan)
    collapsed[has_halted] = 1.0
    outcome = np.select(
        [has_halted, few, ~rose, collapsed == 1.0], [HALTED, TOO_FEW, NO_RISE, COLLAPSED], KEPT
    )
    return Collapse(
        curve=curve,
        start=start,
        peak=peak,
        final=final,
        retained=retained,
        area=curve.mean(axis=1),
        collapsed=collapsed,
        outcome=outcome,
        halted=halted,
        filled=filled,
    )
