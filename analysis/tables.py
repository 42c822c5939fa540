"""Every number behind a report, as tables in long or tidy form: what the CSV files hold."""

from typing import Any

import numpy as np
import pandas as pd

from upgd_ppo.analysis.collapse import BINS, Collapse, smooth
from upgd_ppo.analysis.comparison import PairResult, Study
from upgd_ppo.analysis.intervals import Interval
from upgd_ppo.analysis.warning_counts import crossings


def tables(study: Study) -> dict[str, pd.DataFrame]:
    """The tables by file name, the empty ones left out."""
    found = {
        "seeds": _seeds(study),
        "arms": _arms(study),
        "pairs": _pairs(study),
        "curves": _curves(study),
        "survival": _survival(study),
        "seed_curves": _seed_curves(study),
        "statistics": _statistics(study),
        "all_environments": _suite(study),
        "settings": _settings(study, "settings"),
        "versions": _settings(study, "versions"),
        "warnings": _warnings(study),
    }
    return {name: table for name, table in found.items() if len(table)}


def _seeds(study: Study) -> pd.DataFrame:
    """One row per seed, those left out included."""
    rows: list[dict[str, Any]] = []
    for result in study.environments:
        for arm in result.arms:
            place = {int(row): index for index, row in enumerate(arm.rows)}
            for k, member in enumerate(arm.arm.members):
                row: dict[str, Any] = {
                    "environment": result.environment,
                    "arm": arm.name,
                    "seed": member.seed,
                    "outcome": "left out: too short",
                    "steps_reached": member.reached,
                    "steps_measured": result.horizon,
                    "halted_at": member.halted,
                    "halted_because": member.cause,
                }
                if k in place:
                    index, collapse = place[k], arm.collapse
                    row |= {
                        "outcome": str(collapse.outcome[index]),
                        "collapsed": collapse.collapsed[index],
                        "bins_with_episodes": int(collapse.filled[index]),
                        **{
                            name: getattr(collapse, name)[index]
                            for name in ("start", "peak", "standard_error", "final", "retained")
                        },
                        "area": collapse.area[index],
                        "fell": collapse.fell[index],
                        "first_fall_step": _first_fall(collapse, index, result.horizon),
                        "time_below": collapse.time_below[index],
                    }
                rows.append(row)
    table = pd.DataFrame(rows)
    return table.astype({"halted_at": "Int64"})


def _first_fall(collapse: Collapse, seed: int, horizon: int) -> float:
    """The training step at which the seed's first fall began; NaN where it has none."""
    return collapse.first_fall[seed] * horizon / BINS if collapse.fell[seed] == 1 else np.nan


def _bounds(interval: Interval) -> dict[str, float]:
    return {
        "value": interval.value,
        "low": interval.low,
        "high": interval.high,
        "seeds": interval.n,
    }


def _arms(study: Study) -> pd.DataFrame:
    """One row per arm, measure and aggregate, with its 95 % interval."""
    rows = []
    for result in study.environments:
        for arm in result.arms:
            who = {"environment": result.environment, "arm": arm.name}
            for (measure, aggregate), estimate in arm.estimates.items():
                kind = "t" if aggregate == "mean" else "bootstrap"
                names = {"measure": measure, "aggregate": aggregate, "interval": kind}
                rows.append({**who, **names, **_bounds(estimate)})
            for measure, estimate in (("collapsed", arm.collapsed), ("fell", arm.fell)):
                names = {"measure": measure, "aggregate": "fraction", "interval": "exact"}
                rows.append({**who, **names, **_bounds(estimate)})
    return pd.DataFrame(rows)


def _pairs(study: Study) -> pd.DataFrame:
    """Probability that a seed of the first arm is better than one of the second."""
    of = [(result.environment, pair) for result in study.environments for pair in result.pairs]
    of += [("all environments", pair) for pair in study.suite_pairs]
    return pd.DataFrame(
        [row for environment, pair in of for row in _pair(environment, pair, study.primary)]
    )


def _pair(environment: str, pair: PairResult, primary: str) -> list[dict[str, Any]]:
    return [
        {
            "environment": environment,
            "first": pair.first,
            "second": pair.second,
            "measure": name,
            "probability_first_better": found.probability.value,
            "low": found.probability.low,
            "high": found.probability.high,
            "test": found.test,
            "p": found.p_value,
            "adjusted_p": found.adjusted_p,
            "primary": name == primary,
            "seeds_first": found.seeds[0],
            "seeds_second": found.seeds[1],
            "collapse_fraction_fisher_p": pair.collapse_p_value,
            "collapse_fraction_adjusted_p": pair.collapse_adjusted_p,
            "other_differences": "; ".join(pair.differences),
        }
        for name, found in pair.improvement.items()
    ]


def _curves(study: Study) -> pd.DataFrame:
    """The aggregated learning curves, a row per bin."""
    return _stacked(
        {
            "environment": result.environment,
            "arm": arm.name,
            "aggregate": result.aggregate,
            "step": result.steps,
            "episode_return": arm.curve.value,
            "low": arm.curve.low,
            "high": arm.curve.high,
        }
        for result in study.environments
        for arm in result.arms
    )


def _survival(study: Study) -> pd.DataFrame:
    """Share of the seeds that have not fallen yet (Kaplan–Meier), a row per step of the curve."""
    return _stacked(
        {
            "environment": result.environment,
            "arm": arm.name,
            "step": arm.survival.time,
            "not_fallen": arm.survival.value,
            "low": arm.survival.low,
            "high": arm.survival.high,
        }
        for result in study.environments
        for arm in result.arms
    )


def _seed_curves(study: Study) -> pd.DataFrame:
    """Every measured seed's curve, a row per bin."""
    return _stacked(
        {
            "environment": result.environment,
            "arm": arm.name,
            "seed": np.repeat(arm.seeds, BINS),
            "step": np.tile(result.steps, len(arm.rows)),
            "episode_return": arm.collapse.curve.ravel(),
            "smoothed": smooth(arm.collapse.curve).ravel(),
            "share_of_peak": arm.collapse.share_of_peak().ravel(),
            "share_of_running_peak": arm.collapse.share_of_running_peak().ravel(),
        }
        for result in study.environments
        for arm in result.arms
    )


def _statistics(study: Study) -> pd.DataFrame:
    """Every recorded statistic: mean and standard deviation over the seeds, a row per bin."""
    blocks = []
    for result in study.environments:
        for arm in result.arms:
            for (network, layer, statistic), curves in arm.statistics.items():
                known = np.isfinite(curves)
                some = known.any(axis=0)
                held = np.ma.masked_array(curves, ~known)[:, some]
                blocks.append(
                    {
                        "environment": result.environment,
                        "arm": arm.name,
                        "network": network,
                        "layer": layer,
                        "statistic": statistic,
                        "step": result.steps[some],
                        "mean": held.mean(axis=0).data,
                        "std": held.std(axis=0).data,
                        "seeds": known.sum(axis=0)[some],
                    }
                )
    return _stacked(blocks)


def _stacked(blocks: Any) -> pd.DataFrame:
    frames = [pd.DataFrame(block) for block in blocks]
    return pd.concat(frames, ignore_index=True) if frames else pd.DataFrame()


def _suite(study: Study) -> pd.DataFrame:
    """Arms over several environments."""
    return pd.DataFrame(
        {
            "arm": arm.name,
            "environments": " ".join(arm.environments),
            "measure": measure,
            **_bounds(estimate),
        }
        for arm in study.suite_arms
        for measure, estimate in (("retained, iqm", arm.retained), ("collapsed", arm.collapsed))
    )


def _warnings(study: Study) -> pd.DataFrame:
    """Every early warning that was given during training."""
    return pd.DataFrame(
        {"environment": result.environment, "arm": arm.name, **crossing._asdict()}
        for result in study.environments
        for arm in result.arms
        for crossing in crossings(arm.arm)
    )


def _settings(study: Study, what: str) -> pd.DataFrame:
    """Settings or versions, a row per name and a column per arm."""
    columns = {
        f"{result.environment}: {arm.name}": pd.Series(
            {name: str(value) for name, value in (getattr(arm.arm, what) or {}).items()}, dtype=str
        )
        for result in study.environments
        for arm in result.arms
    }
    table = pd.DataFrame(columns)
    table.index.name = "name"
    return table.reset_index()
