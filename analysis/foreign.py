"""Logs that others left, as arms: SB3's `monitor.csv`, TensorBoard of SB3 and CleanRL.

One folder is one arm and holds the logs of its seeds:

- every folder of TensorBoard event files is a seed (SB3 `PPO_1`, `PPO_2`; CleanRL's run folders);
- monitor files named `0.monitor.csv`, `1.monitor.csv`, … in one folder are the sub-environments of
  one seed, as `make_vec_env(monitor_dir=…)` names them; any other `*monitor.csv` is a seed.

Where both are there the monitor files are read: they hold every episode, SB3's TensorBoard only
the mean of the last hundred.
"""

import csv
import json
import re
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from tensorboard.backend.event_processing.event_file_loader import RawEventFileLoader
from tensorboard.compat.proto.event_pb2 import Event
from tensorboard.util import tensor_util

from upgd_ppo.analysis.arm import Arm, Episodes, InputError, Member

CLEANRL, SB3 = "charts/episodic_return", "rollout/ep_rew_mean"
SOURCES = {CLEANRL: "CleanRL TensorBoard", SB3: "Stable-Baselines3 TensorBoard"}
SUB_ENVIRONMENT = re.compile(r"\d+\.monitor\.csv")
POPULATION = "population"
RECORD_FRAME = 16
"""Bytes around each record of an event file: its length and two checksums."""
HYPERPARAMETER = re.compile(r"^\|([^|\n]+)\|([^|\n]*)\|$", re.MULTILINE)


class _Log(NamedTuple):
    """One seed's log."""

    name: str
    step: np.ndarray
    episode_return: np.ndarray
    environment: str | None
    settings: dict[str, Any]


def is_foreign(path: Path) -> bool:
    """Whether the folder holds monitor files or TensorBoard event files."""
    return bool(monitor_files(path) or event_folders(path))


def read_logs(path: Path, environment: str | None = None) -> Arm:
    """Read one folder of seeds' logs as an arm.

    Args:
        environment: the task, for logs that do not name it.

    Raises:
        InputError: no episode is logged, the task is unknown, or the seeds differ in the task.
    """
    notes: list[str] = []
    monitors = monitor_files(path)
    if monitors:
        source = "Stable-Baselines3 monitor.csv"
        logs = _read_monitors(path, monitors, notes)
    else:
        folders = event_folders(path)
        tag, logs = _read_tensorboard(path, folders, notes)
        source = SOURCES[tag]
        if tag == SB3:
            notes.append(
                "Its returns are means over the last 100 episodes (`rollout/ep_rew_mean`), so its "
                "peaks are lower and its falls later than those of arms with single episodes."
            )
    logs = [log for log in logs if len(log.step)]
    if not logs:
        raise InputError(f"{path} has no finished episode: there is nothing to compare.")

    named = sorted({log.environment for log in logs if log.environment})
    if len(named) > 1:
        raise InputError(
            f"{path} mixes the tasks {' and '.join(named)}: one folder is one arm, on one task."
        )
    environment = named[0] if named else environment
    if environment is None:
        raise InputError(
            f"The logs in {path} do not name their environment: add --env, e.g. Ant-v4."
        )

    return Arm(
        name=path.name,
        path=path,
        environment=environment,
        source=source,
        members=tuple(_member(position, log) for position, log in enumerate(logs)),
        episodes=lambda: _episodes(logs),
        settings=_common([log.settings for log in logs]) or None,
        notes=tuple(notes),
    )


def _member(position: int, log: _Log) -> Member:
    seed = log.settings.get("seed")
    seed = int(seed) if isinstance(seed, str) and seed.isdigit() else position
    broken = np.flatnonzero(~np.isfinite(log.episode_return))
    if not len(broken):
        return Member(seed, int(log.step.max()))
    first = int(log.step[broken[0]])
    return Member(seed, int(log.step.max()), first, "its episode return is not finite")


def _episodes(logs: list[_Log]) -> Iterator[Episodes]:
    for position, log in enumerate(logs):
        yield Episodes(np.full(len(log.step), position), log.step, log.episode_return)


def _common(settings: list[dict[str, Any]]) -> dict[str, Any]:
    """The settings that all seeds share."""
    return {
        name: value
        for name, value in settings[0].items()
        if all(other.get(name) == value for other in settings)
    }


def monitor_files(path: Path) -> list[Path]:
    """The episodes' logs that Stable-Baselines3's `Monitor` wrote, at any depth."""
    return sorted(path.rglob("*monitor.csv"))


def _read_monitors(path: Path, files: list[Path], notes: list[str]) -> list[_Log]:
    seeds: dict[Path, list[Path]] = defaultdict(list)
    for file in files:
        seeds[file.parent if SUB_ENVIRONMENT.fullmatch(file.name) else file].append(file)
    for folder, group in seeds.items():
        if len(group) > 1:
            notes.append(
                f"The {len(group)} monitor files in {folder.relative_to(path.parent)} are read as "
                "the sub-environments of one seed; rename them if each is a seed."
            )
    return [_read_monitor(path, group, notes) for group in seeds.values()]


def _read_monitor(path: Path, group: list[Path], notes: list[str]) -> _Log:
    """One seed. Its sub-environments step together, so the seed's step is theirs × their number."""
    steps, returns, names = [], [], set()
    for file in group:
        header, rows, cut = _read_csv(file)
        if cut:
            notes.append(f"{file} ends in the middle of a line: that episode is not read.")
        names.add(header.get("env_id"))
        if rows:
            value, length = np.array(rows).T
            steps.append(np.cumsum(length).astype(np.int64) * len(group))
            returns.append(value)
    step = np.concatenate(steps) if steps else np.empty(0, dtype=np.int64)
    value = np.concatenate(returns) if returns else np.empty(0)
    order = np.argsort(step, kind="stable")
    named = {name for name in names if name and name != "None"}
    if len(named) > 1:
        raise InputError(f"{path} mixes the tasks {' and '.join(sorted(named))} in one seed.")
    name = str(group[0].relative_to(path))
    return _Log(name, step[order], value[order], named.pop() if named else None, {})


def _read_csv(file: Path) -> tuple[dict[str, Any], list[tuple[float, int]], bool]:
    """A monitor file's header, its episodes (return, length), and whether its last line is cut."""
    try:
        with file.open(encoding="utf-8", newline="") as lines:
            header = json.loads(lines.readline().removeprefix("#"))
            table = list(csv.DictReader(lines))
        cut = bool(table) and not all(table[-1].get(name) for name in ("r", "l", "t"))
        rows = [(float(row["r"]), int(row["l"])) for row in (table[:-1] if cut else table)]
        return dict(header), rows, cut
    except (ValueError, KeyError, TypeError) as error:
        raise InputError(
            f"{file} is no monitor file of Stable-Baselines3: it should have a JSON comment, the "
            "columns r, l, t, and one line per episode."
        ) from error


def event_folders(path: Path) -> list[Path]:
    """The folders of TensorBoard logs, a seed each; the mean over the seeds of a run is no seed."""
    folders = {file.parent for file in path.rglob("events.out.tfevents.*")}
    return sorted(folder for folder in folders if not _is_population(folder))


def _is_population(folder: Path) -> bool:
    """Whether `train.py` wrote this log, beside one for each seed, about all of them together."""
    return folder.name == POPULATION and any(folder.parent.glob("seed_*"))


def _read_tensorboard(path: Path, folders: list[Path], notes: list[str]) -> tuple[str, list[_Log]]:
    scalars = {folder: _scalars(folder, notes) for folder in folders}
    for tag in SOURCES:
        logs = [
            _tensorboard_log(path, folder, found[tag], settings)
            for folder, (found, settings) in scalars.items()
            if found.get(tag)
        ]
        if logs:
            return tag, logs
    raise InputError(
        f"The TensorBoard logs in {path} hold neither {SB3} (Stable-Baselines3) nor {CLEANRL} "
        "(CleanRL), so no returns can be read."
    )


def _tensorboard_log(
    path: Path, folder: Path, points: list[tuple[int, float]], settings: dict[str, Any]
) -> _Log:
    step, value = np.array(points, dtype=float).T
    order = np.argsort(step, kind="stable")
    # CleanRL names a run's folder <environment>__<script>__<seed>__<time>.
    named = folder.name.split("__")[0] if folder.name.count("__") == 3 else None
    return _Log(
        str(folder.relative_to(path)),
        step[order].astype(np.int64),
        value[order],
        settings.get("env_id", named),
        settings,
    )


def _scalars(
    folder: Path, notes: list[str]
) -> tuple[dict[str, list[tuple[int, float]]], dict[str, Any]]:
    """The points of the tags of interest, and CleanRL's hyper-parameters where they are logged.

    A run that was continued leaves a file for each time. Where two overlap, the steps of the older
    one were abandoned: the newer is read from its first step on, as in TensorBoard itself.

    Only records that contain such a tag are parsed, so that long logs are read quickly.
    """
    points: dict[str, list[tuple[int, float]]] = defaultdict(list)
    settings: dict[str, Any] = {}
    for file in sorted(folder.glob("events.out.tfevents.*"), key=_begun):
        newer: dict[str, list[tuple[int, float]]] = defaultdict(list)
        left = file.stat().st_size
        for record in RawEventFileLoader(str(file)).Load():
            left -= len(record) + RECORD_FRAME
            if b"hyperparameters" in record:
                settings |= _hyperparameters(Event.FromString(record))
            elif any(tag.encode() in record for tag in SOURCES):
                event = Event.FromString(record)
                for value in event.summary.value:
                    if value.tag in SOURCES:
                        newer[value.tag].append((event.step, _number(value)))
        if left > 0:
            notes.append(f"{file} is cut short or damaged: its last {left:,} bytes are not read.")
        for tag, found in newer.items():
            first = min(step for step, _ in found)
            kept = [point for point in points[tag] if point[0] < first]
            if len(kept) < len(points[tag]):
                notes.append(
                    f"{folder.name} was continued from step {first:,}: the "
                    f"{len(points[tag]) - len(kept):,} older values of {tag} from there on are "
                    "not read."
                )
            points[tag] = kept + found
    return points, settings


def _begun(file: Path) -> list[int]:
    """Sorts event files by when they were begun: `events.out.tfevents.SECONDS.HOST.PROCESS.N`."""
    return [int(number) for number in re.findall(r"\d+", file.name)]


def _number(value: Any) -> float:
    if value.HasField("simple_value"):
        return float(value.simple_value)
    return float(tensor_util.make_ndarray(value.tensor).item())


def _hyperparameters(event: Event) -> dict[str, Any]:
    """CleanRL logs its settings as a Markdown table `|param|value|`."""
    found: dict[str, Any] = {}
    for value in event.summary.value:
        if value.tag.startswith("hyperparameters"):
            text = b"".join(value.tensor.string_val).decode(errors="replace")
            found |= dict(HYPERPARAMETER.findall(text))
    return {name: text for name, text in found.items() if name not in ("param", "-")}
