"""How long until something happens, when for some seeds the run ends before it does."""

import warnings
from dataclasses import dataclass

import numpy as np
from scipy import stats

from upgd_ppo.analysis.intervals import LEVEL


@dataclass(frozen=True)
class Survival:
    """A Kaplan–Meier curve: the share of seeds to which it has not happened yet.

    A step function: ``value[i]`` holds from ``time[i]`` to ``time[i + 1]``; it begins with 1 at
    time 0. ``low`` and ``high`` are its pointwise 95 % interval (exponential Greenwood), NaN where
    that is not defined, which is so while nothing has happened and once all is over.
    """

    time: np.ndarray
    value: np.ndarray
    low: np.ndarray
    high: np.ndarray
    seeds: int
    events: int


def _censored(time: np.ndarray, happened: np.ndarray) -> stats.CensoredData:
    return stats.CensoredData.right_censored(time, happened == 0)


def kaplan_meier(time: np.ndarray, happened: np.ndarray) -> Survival:
    """Estimate a survival curve.

    Args:
        time: [S] when it happened, or when the observation ended; NaNs are left out.
        happened: [S] 1.0 where it happened, 0.0 where the observation ended (censored).
    """
    known = np.isfinite(time)
    time, happened = time[known], happened[known]
    if not len(time):
        nothing = np.zeros(0)
        return Survival(nothing, nothing, nothing, nothing, 0, 0)
    function = stats.ecdf(_censored(time, happened)).sf
    with np.errstate(divide="ignore", invalid="ignore"), warnings.catch_warnings():
        warnings.filterwarnings("ignore", "The confidence interval is undefined")
        bounds = function.confidence_interval(LEVEL, method="log-log")
    begin, one, unknown = np.zeros(1), np.ones(1), np.full(1, np.nan)
    return Survival(
        time=np.concatenate([begin, function.quantiles]),
        value=np.concatenate([one, function.probabilities]),
        low=np.concatenate([unknown, bounds.low.probabilities]),
        high=np.concatenate([unknown, bounds.high.probabilities]),
        seeds=len(time),
        events=int(happened.sum()),
    )


def log_rank(
    x_time: np.ndarray, x_happened: np.ndarray, y_time: np.ndarray, y_happened: np.ndarray
) -> float:
    """Log-rank test that two survival curves are equal: the two-sided p-value.

    1 where it happened to no seed at all, NaN where an arm has no seed. Arguments as those of
    `kaplan_meier`.
    """
    samples = []
    for time, happened in ((x_time, x_happened), (y_time, y_happened)):
        known = np.isfinite(time)
        if not known.any():
            return float("nan")
        samples.append((time[known], happened[known]))
    if not any(happened.any() for _, happened in samples):
        return 1.0
    x, y = (_censored(*sample) for sample in samples)
    with np.errstate(divide="ignore", invalid="ignore"):
        p_value = float(stats.logrank(x, y).pvalue)
    return p_value if np.isfinite(p_value) else 1.0
