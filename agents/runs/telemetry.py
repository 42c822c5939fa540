"""What a run tells while it goes: TensorBoard, and columnar records of the same."""

from __future__ import annotations

from collections import deque
from collections.abc import Collection, Iterator, Mapping
from time import monotonic
from typing import Any

import numpy as np
from numpy.typing import NDArray

from upgd_ppo.agents.learners.iteration_report import IterationReport
from upgd_ppo.agents.learners.learner import Learner
from upgd_ppo.agents.plasticity import EarlyWarning, EarlyWarningMonitor, Row
from upgd_ppo.agents.plasticity.inspection import Inspection
from upgd_ppo.agents.runs.dashboard import (
    HEALTHY,
    HIGHEST,
    LOWEST,
    MEAN,
    RETURN_TAG,
    bands,
    layout,
    network_statistics,
    over_seeds,
    plasticity_tag,
)
from upgd_ppo.agents.runs.event_log import EventLog
from upgd_ppo.agents.runs.records import EPISODES, EVENTS, STATISTICS, RecordTable
from upgd_ppo.agents.runs.run_directory import RunDirectory

EPISODE_WINDOW = 100
"""Episodes of a member that its running mean return covers, as in Stable-Baselines3."""

RECORDS_SHARE = 0.01
"""Of the time so far: how long records may wait in memory."""


class Telemetry:
    """Writes every iteration's report to the run directory.

    Args:
        directory: the run.
        learner: whose reports they are: its seeds and its scalars.
        monitor: gives early warnings.
        positions: where each event file of a continued run was at its checkpoint.
        full: whether TensorBoard shows every statistic of every layer; the records always do.
    """

    def __init__(
        self,
        directory: RunDirectory,
        learner: Learner,
        monitor: EarlyWarningMonitor,
        positions: dict[str, int] | None = None,
        full: bool = False,
    ) -> None:
        self.seeds = seeds = learner.seeds
        self.learner_name, self.performance = learner.name, learner.performance
        self.scalars = tuple(learner.scalars)
        self.full = full
        self.monitor = monitor
        self._has_layout = False
        self._begun = self._records_written = monotonic()
        names = [f"seed_{seed}" for seed in seeds]
        positions = positions or {}
        self._logs = {
            name: EventLog(directory.tensorboard / name, positions.get(name, 0))
            for name in [*names, "population"]
        }
        self._member_logs = [self._logs[name] for name in names]
        self.episodes = RecordTable(directory.records / "episodes", EPISODES)
        self.statistics = RecordTable(directory.records / "statistics", STATISTICS)
        self.events = RecordTable(directory.records / "events", EVENTS)
        self._tables = {
            "episodes": self.episodes,
            "statistics": self.statistics,
            "events": self.events,
        }
        self._recent: list[deque[tuple[float, int]]] = [deque(maxlen=EPISODE_WINDOW) for _ in seeds]

    def record(
        self, report: IterationReport, step: int, healthy: NDArray, fps: float, to_log: bool
    ) -> list[EarlyWarning]:
        """Take in what one iteration gave; returns the early warnings that it gives cause for.

        Args:
            report: the iteration's report.
            step: environment steps of each member at its end.
            healthy: [S] bool.
            fps: environment steps per second, all members together.
            to_log: whether this iteration goes to TensorBoard. Plasticity statistics, which have
                a cadence of their own, go there in any case.
        """
        # Episodes
        episodes = report.episodes
        self.episodes.append(
            {
                "member": [episode.member for episode in episodes],
                "seed": [self.seeds[episode.member] for episode in episodes],
                "step": [episode.step for episode in episodes],
                "episode_return": [episode.episode_return for episode in episodes],
                "episode_length": [episode.length for episode in episodes],
                "terminated": [episode.terminated for episode in episodes],
            }
        )
        for episode in episodes:
            self._recent[episode.member].append((episode.episode_return, episode.length))
        # Events
        for member, cause in report.halted:
            self.event(member, step, "halted", cause)
        # The learner's scalars
        if to_log:
            self._record_statistics(report.scalars, step, healthy)
            self._log_scalars(report.scalars, step, healthy, fps)
        # Statistics of its networks, and the page that shows them
        if not self._has_layout:
            keys = report.inspection.table.keys if report.inspection else []
            self._logs["population"].layout(
                layout(self.performance, self._bands, bands(keys, self.full))
            )
            self._has_layout = True
        if report.inspection is not None:
            self._record_inspection(report.inspection, step, np.flatnonzero(healthy))
        # Early warnings
        warnings = self.monitor.observe(self._watched_rows(report, step, np.flatnonzero(healthy)))
        for warning in warnings:
            self.event(warning.member, step, "warning", warning.description)
        return warnings

    def event(self, member: int, step: int, kind: str, message: str) -> None:
        """Note that something happened to a member."""
        row = {
            "member": member,
            "seed": self.seeds[member],
            "step": step,
            "kind": kind,
            "message": message,
        }
        self.events.append({name: [value] for name, value in row.items()})
        where = f"seed {self.seeds[member]}, step {step:,}"
        self._member_logs[member].text(step, f"events/{kind}", f"{where}: {message}")

    @property
    def _bands(self) -> dict[str, str]:
        """Title → tag of the learner's own bands."""
        return {scalar.band: scalar.tag for scalar in self.scalars if scalar.band}

    @property
    def mean_returns(self) -> NDArray:
        """[S], each member's mean return over its latest episodes; NaN before the first."""
        return np.array([_mean(recent, 0) for recent in self._recent])

    def flush(self, step: int, sync: bool = False, lazily: bool = False) -> None:
        """Write what was gathered up to a step.

        Args:
            step: environment steps of each member.
            sync: through to the disk.
            lazily: keep the records in memory while less than a hundredth of the time so far has
                passed since they were written, so that a run of weeks does not leave a file of them
                every half minute.
        """
        now = monotonic()
        if not lazily or now - self._records_written >= RECORDS_SHARE * (now - self._begun):
            for table in self._tables.values():
                table.flush(step, sync)
            self._records_written = now
        for log in self._logs.values():
            log.flush(sync)

    def state_dict(self) -> dict[str, Any]:
        """What a continued run needs so that its records go on without a seam."""
        return {
            "positions": {name: log.position for name, log in self._logs.items()},
            "rows": {name: table.written_rows for name, table in self._tables.items()},
            "recent_episodes": [[list(pair) for pair in recent] for recent in self._recent],
            "monitor": self.monitor.state_dict(),
            "has_layout": self._has_layout,
        }

    def load_state_dict(self, state: dict[str, Any], step: int) -> list[str]:
        """Continue from a state that `state_dict` gave, dropping records beyond its step.

        Returns:
            What is missing or damaged of what was written before, a sentence each.
        """
        for recent, pairs in zip(self._recent, state["recent_episodes"], strict=True):
            recent.extend((float(value), int(length)) for value, length in pairs)
        self.monitor.load_state_dict(state["monitor"])
        self._has_layout = state["has_layout"]
        damages = [
            f"{log.path} lacks {log.lost_bytes:,} of the {log.position + log.lost_bytes:,} bytes"
            " that it had at the checkpoint, or they cannot be read; its curves have a gap."
            for log in self._logs.values()
            if log.lost_bytes
        ]
        rows = state.get("rows", {})  # Older checkpoints have none.
        for name, table in self._tables.items():
            damages += table.rewind(step, rows.get(name))
        return damages

    def _record_statistics(
        self, scalars: Mapping[str, NDArray], step: int, healthy: NDArray
    ) -> None:
        members = np.flatnonzero(healthy)
        count = len(members) * len(scalars)
        self.statistics.append(
            {
                "member": np.tile(members, len(scalars)),
                "step": np.full(count, step),
                "network": [self.learner_name] * count,
                "layer": [""] * count,
                "statistic": np.repeat(list(scalars), len(members)).tolist(),
                "value": np.concatenate([values[members] for values in scalars.values()]),
            }
        )

    def _record_inspection(self, inspection: Inspection, step: int, members: NDArray) -> None:
        table = inspection.table.of(members)
        self.statistics.append(table.columns(step, members))
        tags = [plasticity_tag(key) for key in table.keys]
        every_layer = dict(zip(tags, table.values.T, strict=True))
        shown = network_statistics(table) | (every_layer if self.full else {})
        for position, member in enumerate(members):
            log = self._member_logs[member]
            log.scalars(step, _finite({tag: values[position] for tag, values in shown.items()}))
            if inspection.histograms:
                log.histograms(step, {k: bins[member] for k, bins in inspection.histograms.items()})

        banded = {tag for s in bands(table.keys, self.full).values() for tag in s.values()}
        over = {tag: values for tag, values in every_layer.items() if tag in banded} | shown
        self._logs["population"].scalars(step, _over_seeds(over, banded))

    def _log_scalars(
        self, scalars: Mapping[str, NDArray], step: int, healthy: NDArray, fps: float
    ) -> None:
        columns = {
            RETURN_TAG: self.mean_returns,
            "rollout/ep_len_mean": np.array([_mean(recent, 1) for recent in self._recent]),
            **{
                scalar.tag: scalar.factor * scalars[scalar.name]
                for scalar in self.scalars
                if scalar.name in scalars
            },
            "time/fps": np.full(len(self.seeds), fps / max(1, int(healthy.sum()))),
        }
        for member in np.flatnonzero(healthy):
            values = {tag: column[member] for tag, column in columns.items()}
            self._member_logs[member].scalars(step, _finite(values))

        columns.pop("time/fps")
        summary = _over_seeds(
            {tag: column[healthy] for tag, column in columns.items()},
            {RETURN_TAG, *self._bands.values()},
        )
        returns = np.sort(columns[RETURN_TAG][healthy])
        returns = returns[np.isfinite(returns)]
        if len(returns):
            summary[over_seeds("std", RETURN_TAG)] = float(returns.std())
            if cut := len(returns) // 4:
                middle = returns[cut : len(returns) - cut]
                summary[over_seeds("interquartile_mean", RETURN_TAG)] = float(middle.mean())
        summary[over_seeds("sum", "time/fps")] = fps
        summary[HEALTHY] = float(healthy.sum())
        self._logs["population"].scalars(step, summary)

    def _watched_rows(self, report: IterationReport, step: int, members: NDArray) -> Iterator[Row]:
        """The learner's scalars and the statistics of those members, for the monitor."""
        for name, values in report.scalars.items():
            for member in members:
                # Where `target_kl` skipped minibatches there is nothing to judge; a member whose
                # figures are not finite for another reason has been halted.
                if np.isfinite(values[member]):
                    yield Row(int(member), step, self.learner_name, "", name, float(values[member]))
        if report.inspection is not None:
            yield from report.inspection.table.of(members).rows(step, members)


def _mean(recent: deque[tuple[float, int]], column: int) -> float:
    return sum(pair[column] for pair in recent) / len(recent) if recent else float("nan")


def _over_seeds(columns: Mapping[str, NDArray], banded: Collection[str]) -> dict[str, float]:
    """The mean of the finite values under each tag, if there are any, and under those `banded` the
    lowest and the highest, too."""
    found = {}
    for tag, values in columns.items():
        values = values[np.isfinite(values)]
        if len(values):
            found[over_seeds(MEAN, tag)] = float(values.mean())
            if tag in banded:
                found[over_seeds(LOWEST, tag)] = float(values.min())
                found[over_seeds(HIGHEST, tag)] = float(values.max())
    return found


def _finite(values: Mapping[str, float]) -> dict[str, float]:
    return {tag: float(value) for tag, value in values.items() if np.isfinite(value)}
