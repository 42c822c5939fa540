"""Scores of trained policies: what each member and the population is worth, and how surely."""

import csv
import json
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from rich.table import Table

from upgd_ppo.analysis.folders import appearing_whole, check_writable
from upgd_ppo.analysis.intervals import Interval, interval

SCORES_FILE, MEMBERS_FILE, EPISODES_FILE = "scores.json", "members.csv", "episodes.csv"


@dataclass(frozen=True)
class Summary:
    """A mean return with its spread.

    Attributes:
        mean: with its 95 % interval (Student's t).
        std: sample standard deviation; NaN for one value.
        length: mean episode length.
    """

    mean: Interval
    std: float
    length: float

    @classmethod
    def of(cls, values: np.ndarray, lengths: np.ndarray) -> "Summary":
        """That of some returns, and of the lengths that go with them; NaNs are left out."""
        known = np.isfinite(values)
        values, lengths = values[known], lengths[known]
        return cls(
            interval([values]),
            float(values.std(ddof=1)) if len(values) > 1 else math.nan,
            float(lengths.mean()) if len(lengths) else math.nan,
        )


@dataclass(frozen=True)
class Score:
    """How the members of one run did in E episodes each.

    Attributes:
        title: what was played, in words.
        settings: the same as it goes into the files; "run" names it.
        members: S names, such as "seed 3".
        seeds: environment seeds [S, E].
        returns: [S, E], NaN where the simulator failed.
        lengths: [S, E].
        terminated: [S, E], False where a time limit ended the episode.
        halted: member → when and why its training was halted.
    """

    title: str
    settings: dict[str, Any]
    members: list[str]
    seeds: np.ndarray
    returns: np.ndarray
    lengths: np.ndarray
    terminated: np.ndarray
    halted: dict[int, str] = field(default_factory=dict)

    @property
    def means(self) -> np.ndarray:
        """[S] mean returns over the episodes that did not fail; NaN if all did."""
        known = np.isfinite(self.returns)
        sums = np.where(known, self.returns, 0.0).sum(axis=1)
        with np.errstate(invalid="ignore"):
            return sums / known.sum(axis=1)

    def member(self, k: int) -> Summary:
        """Member k over its episodes."""
        return Summary.of(self.returns[k], self.lengths[k])

    def population(self, members: Sequence[int] | None = None) -> Summary:
        """Over the members' means: how a member does that is drawn at random.

        Args:
            members: which of them; None is all.
        """
        chosen = slice(None) if members is None else list(members)
        return Summary.of(self.means[chosen], self.lengths.mean(axis=1)[chosen])

    @property
    def groups(self) -> list[tuple[str, Summary]]:
        """The population, and where members were halted also the rest of it."""
        count = len(self.members)
        groups = [(f"all {count}", self.population())] if count > 1 else []
        rest = [k for k in range(count) if k not in self.halted]
        if groups and 0 < len(rest) < count:
            groups.append((f"the {len(rest)} not halted", self.population(rest)))
        return groups

    @property
    def notes(self) -> list[str]:
        """What must be known of members' scores, a line each."""
        failed = np.isnan(self.returns).sum(axis=1)
        lines = [
            f"{self.members[k]} {cause}; its policy is the last that was finite."
            for k, cause in self.halted.items()
        ]
        return lines + [
            f"{self.members[k]}: the simulator failed in {failed[k]} of {self.returns.shape[1]}"
            " episodes, which are left out."
            for k in np.flatnonzero(failed)
        ]

    def ranking(self) -> list[tuple[str, int]]:
        """("best", member), ("median", …) and ("worst", …): as many as there are members."""
        order = [
            int(k) for k in np.argsort(-self.means, kind="stable") if np.isfinite(self.means[k])
        ]
        places = {"best": 0, "median": len(order) // 2, "worst": len(order) - 1}
        chosen: dict[int, str] = {}
        for title in ("best", "worst", "median"):
            if order:
                chosen.setdefault(order[places[title]], title)
        return sorted(((title, k) for k, title in chosen.items()), key=lambda shot: places[shot[0]])

    def typical_episode(self, k: int) -> int:
        """The episode of member k whose return is the median of its returns."""
        order = np.argsort(self.returns[k], kind="stable")
        return int(order[(np.isfinite(self.returns[k]).sum() - 1) // 2])


def table(score: Score) -> Table:
    """The scores as a person reads them."""
    shown = Table(title=score.title, title_style="", title_justify="left", caption_justify="left")
    shown.add_column("")
    for heading in ("return", "std", "95 % interval", "length"):
        shown.add_column(heading, justify="right", no_wrap=True)
    for k, name in enumerate(score.members):
        shown.add_row(*_cells(name, score.member(k)))
    for i, (name, summary) in enumerate(score.groups):
        if i == 0:
            shown.add_section()
        shown.add_row(*_cells(name, summary), style="bold")
    return shown


def _cells(name: str, summary: Summary) -> list[str]:
    low, high = summary.mean.low, summary.mean.high
    return [
        name,
        _number(summary.mean.value),
        _number(summary.std),
        "–" if math.isnan(low) else f"{_number(low)} … {_number(high)}",
        _number(summary.length),
    ]


def _number(value: float) -> str:
    return "–" if math.isnan(value) else f"{value:,.1f}"


# ── Files ───────────────────────────────────────────────────────────────────────────────────────


def check_destination(folder: Path) -> None:
    """Refuse a place where scores cannot go.

    Raises:
        ValueError: if the folder holds something else, or cannot be written.
    """
    names = {SCORES_FILE, MEMBERS_FILE, EPISODES_FILE}
    if folder.exists() and not folder.is_dir():
        raise ValueError(f"{folder} is a file: --out names the folder that the scores go to.")
    if folder.exists() and not {entry.name for entry in folder.iterdir()} <= names:
        raise ValueError(f"{folder} holds other files: give --out a new or empty folder.")
    check_writable(folder)


def write_scores(scores: Sequence[Score], folder: Path) -> None:
    """Write scores.json, members.csv and episodes.csv; the folder appears whole or not at all.

    Scores that are in the folder are replaced.

    Raises:
        OSError: if it cannot be written.
        ValueError: if the folder holds something else.
    """
    check_destination(folder)
    with appearing_whole(folder) as partial:
        content = json.dumps({"runs": [_as_json(score) for score in scores]}, indent=2)
        (partial / SCORES_FILE).write_text(content + "\n", encoding="utf-8")
        _write_csv(partial / MEMBERS_FILE, [row for score in scores for row in _members(score)])
        _write_csv(partial / EPISODES_FILE, [row for score in scores for row in _episodes(score)])


def _as_json(score: Score) -> dict[str, Any]:
    return {
        **score.settings,
        "population": {name: _plain(summary) for name, summary in score.groups},
        "members": [
            {
                "member": name,
                **_plain(score.member(k)),
                "halted": score.halted.get(k),
                "returns": [_or_none(value) for value in score.returns[k]],
                "lengths": score.lengths[k].tolist(),
            }
            for k, name in enumerate(score.members)
        ],
    }


def _members(score: Score) -> Iterator[dict[str, Any]]:
    for k, name in enumerate(score.members):
        yield {
            "run": score.settings["run"],
            "member": name,
            **_plain(score.member(k)),
            "episodes": score.returns.shape[1],
            "failed": int(np.isnan(score.returns[k]).sum()),
            "halted": score.halted.get(k, ""),
        }


def _episodes(score: Score) -> Iterator[dict[str, Any]]:
    for k, name in enumerate(score.members):
        for episode in range(score.returns.shape[1]):
            yield {
                "run": score.settings["run"],
                "member": name,
                "episode": episode,
                "environment_seed": int(score.seeds[k, episode]),
                "episode_return": _or_none(score.returns[k, episode]),
                "episode_length": int(score.lengths[k, episode]),
                "terminated": bool(score.terminated[k, episode]),
            }


def _plain(summary: Summary) -> dict[str, float | None]:
    values = {
        "mean": summary.mean.value,
        "std": summary.std,
        "low": summary.mean.low,
        "high": summary.mean.high,
        "length": summary.length,
    }
    return {name: _or_none(value) for name, value in values.items()}


def _or_none(value: float) -> float | None:
    return None if math.isnan(value) else float(value)


def _write_csv(path: Path, rows: list[dict[str, Any]]) -> None:
    with open(path, "w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, rows[0])
        writer.writeheader()
        writer.writerows(rows)
