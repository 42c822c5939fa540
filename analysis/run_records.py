"""A run directory as an arm: `config.yaml`, `status.json` and the Parquet records."""

import json
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import yaml

from upgd_ppo.analysis.arm import (
    Arm,
    Episodes,
    Event,
    InputError,
    Member,
    StatisticKey,
    Statistics,
)

MOST_SETTINGS = 1 << 16
"""Characters; the settings of a run are a page of text."""
BATCH_ROWS = 1 << 18
CONFIG, STATUS, VERSIONS = "config.yaml", "status.json", "versions.json"
EPISODES, STATISTICS, EVENTS = "episodes", "statistics", "events"
NAMES = ("network", "layer", "statistic")
ENDED = ("finished", "all members halted")
"""The states in `status.json` after which nothing more will come."""
MISSING = 0.01
"""Episodes that cover so much less than all steps before the last one are said to be missing."""


def is_run_directory(path: Path) -> bool:
    """Whether this is what one `train.py` run leaves."""
    return (path / CONFIG).is_file() or (path / "records").is_dir()


def runs_below(path: Path) -> list[Path]:
    """The run directories in a folder, at any depth; other programs' `config.yaml` is none."""
    return sorted(file.parent for file in path.rglob(CONFIG) if is_whole_run(file.parent))


def is_whole_run(path: Path) -> bool:
    """Whether this is a run directory with its configuration, and no other program's folder."""
    described = (path / VERSIONS).is_file() or (path / "records").is_dir()
    return (path / CONFIG).is_file() and described


def read_run(path: Path) -> Arm:
    """Read a run directory; the records themselves are only streamed through.

    A part of the records that was cut short is left out, which the arm's notes say.

    Raises:
        InputError: it lacks its configuration, has no finished episode, or a file is damaged.
    """
    if not (path / CONFIG).is_file():
        raise InputError(f"{path} has records but no {CONFIG}, so nobody knows what was trained.")
    settings = _mapping(path / CONFIG)
    status = _mapping(path / STATUS) if (path / STATUS).is_file() else {}
    versions = _mapping(path / VERSIONS) if (path / VERSIONS).is_file() else {}
    if not isinstance(settings.get("env"), str):
        raise InputError(f"{path / CONFIG} names no environment: a line `env: …` was expected.")

    notes: list[str] = []
    parts = {
        table: _whole_parts(path / "records" / table, notes)
        for table in (EPISODES, STATISTICS, EVENTS)
    }
    if not parts[STATISTICS]:
        notes.append("It has no per-layer statistics.")
    events = tuple(_events(parts[EVENTS]))
    members = _members(path, settings, parts, _halts(events, status, notes), notes)
    planned = settings.get("steps")
    planned = int(planned) if isinstance(planned, int | float) else None
    return Arm(
        name=_arm_name(settings, path.name),
        path=path,
        environment=str(settings.get("stream") or settings["env"]),
        source="run directory",
        members=members,
        episodes=lambda: _episodes(parts[EPISODES]),
        statistics=lambda: _statistics(parts[STATISTICS]),
        settings=settings,
        versions=_flat(versions),
        planned=planned,
        finished=_finished(status, planned, members),
        events=events,
        notes=tuple(notes),
    )


def _arm_name(settings: dict[str, Any], otherwise: str) -> str:
    """Optimizer and methods, such as "adam+random_reset"."""
    methods = settings.get("methods")
    names = list(methods) if isinstance(methods, dict) else []
    return "+".join(map(str, [settings.get("opt", otherwise), *names]))


def _finished(
    status: dict[str, Any], planned: int | None, members: tuple[Member, ...]
) -> bool | None:
    if "state" in status:
        return status["state"] in ENDED
    if planned is None:
        return None
    return max(member.reached for member in members) >= 0.99 * planned


class _Halt(NamedTuple):
    """When a seed's training became non-finite, and why."""

    step: int
    cause: str


def _events(parts: list[Path]) -> Iterator[Event]:
    for batch in _batches(parts, ("seed", "step", "kind", "message")):
        for row in batch.to_pylist():
            yield Event(row["seed"], row["step"], row["kind"], row["message"])


def _halts(events: tuple[Event, ...], status: dict[str, Any], notes: list[str]) -> dict[int, _Halt]:
    """The halt of each seed that halted: what the events and `status.json` know of it together."""
    halts: dict[int, _Halt] = {}
    for event in events:
        if event.kind == "halted":
            _earlier(halts, event.seed, _Halt(event.step, event.message))
    if not isinstance(status.get("halted"), list):
        return halts
    told = {one["seed"]: _Halt(one["step"], one["cause"]) for one in status["halted"]}
    for seed in sorted(halts.keys() | told.keys()):
        if seed not in halts:
            notes.append(
                f"Seed {seed} halted at step {told[seed].step:,} by {STATUS}, but the records of "
                "events do not know of it; it counts as halted."
            )
        elif seed not in told:
            notes.append(
                f"Seed {seed} halted at step {halts[seed].step:,} by the records of events, but "
                f"{STATUS} does not know of it; it counts as halted."
            )
        elif halts[seed].step != told[seed].step:
            notes.append(
                f"Seed {seed} halted at step {halts[seed].step:,} by the records of events, but at "
                f"step {told[seed].step:,} by {STATUS}; the earlier one counts."
            )
    for seed, halt in told.items():
        _earlier(halts, seed, halt)
    return halts


def _members(
    path: Path,
    settings: dict[str, Any],
    parts: dict[str, list[Path]],
    halts: dict[int, _Halt],
    notes: list[str],
) -> tuple[Member, ...]:
    count, first_seed = settings.get("seeds"), settings.get("seed")
    first_seed = first_seed if isinstance(first_seed, int) else 0
    seeds = {k: first_seed + k for k in range(count if isinstance(count, int) else 0)}
    broken: dict[int, _Halt] = {}
    covered: dict[int, int] = defaultdict(int)
    ended: dict[int, int] = {}
    last = longest = episodes = 0
    columns = ("member", "seed", "step", "episode_return", "episode_length")
    for batch in _batches(parts[EPISODES], columns):
        member, step = _integers(batch["member"]), _integers(batch["step"])
        if not len(member):
            continue
        episodes += len(member)
        last = max(last, int(step.max()))
        known, first = np.unique(member, return_index=True)
        seed, length = _integers(batch["seed"]), _integers(batch["episode_length"])
        seeds.update({int(who): int(seed[row]) for who, row in zip(known, first, strict=True)})
        longest = max(longest, int(length.max()))
        for k, steps in enumerate(np.bincount(member, length)):
            covered[k] += int(steps)
        for k in known.tolist():
            ended[k] = max(ended.get(k, 0), int(step[member == k].max()))
        for row in np.flatnonzero(~np.isfinite(_floats(batch["episode_return"]))):
            halt = _Halt(int(step[row]), "its episode return is not finite")
            _earlier(broken, int(seed[row]), halt)
    if not episodes:
        raise InputError(f"{path} has no finished episode yet: there is nothing to compare.")
    for batch in _batches(parts[STATISTICS][-1:], ("step",)):
        last = max(last, pc.max(batch["step"]).as_py() or 0)

    for halted, halt in halts.items():
        _earlier(broken, halted, halt)
    numbers = [seeds.get(k, first_seed + k) for k in range(max(seeds) + 1)]
    members = tuple(Member(seed, last, *broken.get(seed, (None, ""))) for seed in numbers)
    # When one of a seed's environments ends an episode, its others are in the middle of theirs.
    each = settings.get("envs_per_seed")
    others = each - 1 if isinstance(each, int) else 0
    covered = {k: steps + others * longest for k, steps in covered.items()}
    _say_what_is_missing(seeds, ended, covered, notes)
    return members


def _say_what_is_missing(
    seeds: dict[int, int], ended: dict[int, int], covered: dict[int, int], notes: list[str]
) -> None:
    """Note the steps before a member's last episode that no recorded episode covers.

    Args:
        seeds: the seed of each member.
        ended: the step at which each member's last episode ended.
        covered: the length of each member's episodes together, and of those that may be unfinished.
    """
    missing = {seeds[k]: end - covered[k] for k, end in ended.items()}
    missing = {
        seed: steps for seed, steps in missing.items() if steps > MISSING * max(ended.values())
    }
    if missing:
        worst = max(missing, key=lambda seed: missing[seed])
        notes.append(
            f"Episodes are missing from the records of {len(missing)} of {len(seeds)} seeds, the "
            f"most from seed {worst}: those of {missing[worst]:,} steps. An empty bin takes the "
            "value before it."
        )


def _flat(versions: dict[str, Any]) -> dict[str, str]:
    libraries = versions.pop("libraries", {})
    return {str(name): str(value) for name, value in (libraries | versions).items()}


def _earlier(halts: dict[int, _Halt], seed: int, halt: _Halt) -> None:
    if seed not in halts or halt.step < halts[seed].step:
        halts[seed] = halt


def _episodes(parts: list[Path]) -> Iterator[Episodes]:
    for batch in _batches(parts, ("member", "step", "episode_return")):
        yield Episodes(
            _integers(batch["member"]), _integers(batch["step"]), _floats(batch["episode_return"])
        )


def _statistics(parts: list[Path]) -> Iterator[Statistics]:
    for batch in _batches(parts, ("member", "step", *NAMES, "value"), encoded=NAMES):
        if batch.num_rows:
            key, keys = _keys(batch)
            yield Statistics(
                _integers(batch["member"]),
                _integers(batch["step"]),
                key,
                _floats(batch["value"]),
                keys,
            )


class _Column(NamedTuple):
    codes: np.ndarray
    words: list[str]


def _keys(batch: pa.RecordBatch) -> tuple[np.ndarray, list[StatisticKey]]:
    """One integer per row for its three names, through the columns' dictionaries."""
    columns = []
    for name in NAMES:
        column = batch[name]
        if not isinstance(column, pa.DictionaryArray):
            column = column.dictionary_encode()
        codes = column.indices.to_numpy(zero_copy_only=False)
        columns.append(_Column(codes.astype(np.int64), column.dictionary.to_pylist()))
    network, layer, statistic = columns
    shape = tuple(len(column.words) for column in columns)
    flat = np.ravel_multi_index((network.codes, layer.codes, statistic.codes), shape)
    present = np.flatnonzero(np.bincount(flat))
    compact = np.zeros(int(np.prod(shape)), dtype=np.int64)
    compact[present] = np.arange(len(present))
    keys = [
        (network.words[of_network], layer.words[of_layer], statistic.words[of_statistic])
        for of_network, of_layer, of_statistic in zip(
            *np.unravel_index(present, shape), strict=True
        )
    ]
    return compact[flat], keys


def _whole_parts(folder: Path, notes: list[str]) -> list[Path]:
    """The parts of a table in the order of steps; one that cannot be opened is left out and noted.

    A Parquet file ends with its table of contents, so one that was cut short does not open.
    """
    whole: list[Path] = []
    for part in sorted(folder.glob("part-*.parquet")):
        try:
            pq.read_metadata(part)
        except (pa.ArrowException, OSError):
            before = int(whole[-1].stem.removeprefix("part-")) if whole else 0
            notes.append(
                f"{part} is not a readable Parquet file (cut short or damaged): the {folder.name} "
                f"after step {before:,} that it held are missing."
            )
        else:
            whole.append(part)
    return whole


def _batches(
    parts: list[Path], columns: tuple[str, ...], encoded: tuple[str, ...] = ()
) -> Iterator[pa.RecordBatch]:
    """Stream columns of Parquet parts, one batch in memory at a time.

    Args:
        encoded: the columns of words, read as dictionaries.
    """
    for part in parts:
        try:
            with pq.ParquetFile(part, read_dictionary=list(encoded)) as file:
                missing = [column for column in columns if column not in file.schema_arrow.names]
                if missing:
                    raise InputError(
                        f"{part} lacks the column {missing[0]!r}: it is no such record."
                    )
                yield from file.iter_batches(BATCH_ROWS, columns=list(columns))
        except (pa.ArrowException, OSError) as error:
            raise InputError(
                f"{part} is not a readable Parquet file (cut short or damaged): restore it, or "
                "move it away to compare what the other parts hold."
            ) from error


def _integers(column: pa.Array) -> np.ndarray:
    return column.to_numpy(zero_copy_only=False).astype(np.int64, copy=False)


def _floats(column: pa.Array) -> np.ndarray:
    return column.to_numpy(zero_copy_only=False).astype(np.float64, copy=False)


def _mapping(path: Path) -> dict[str, Any]:
    try:
        text = path.read_text(encoding="utf-8")
        content = _settings(path, text) if path.suffix == ".yaml" else json.loads(text)
    except OSError as error:
        raise InputError(f"{path} cannot be read: {error.strerror}.") from error
    except (yaml.YAMLError, json.JSONDecodeError, UnicodeDecodeError, RecursionError) as error:
        raise InputError(f"{path} is damaged: {str(error).splitlines()[0]}.") from error
    if not isinstance(content, dict):
        raise InputError(f"{path} is damaged: a mapping of names to values was expected.")
    return content


def _settings(path: Path, text: str) -> Any:
    """What a run's settings say, if they are whole and no trap."""
    if len(text) > MOST_SETTINGS or any(
        isinstance(event, yaml.AliasEvent) for event in yaml.parse(text, Loader=yaml.SafeLoader)
    ):
        raise InputError(
            f"{path} holds no settings of a run: it is too large, or has YAML aliases."
        )
    lines = text.splitlines()
    if not lines or (lines[0] == "---" and lines[-1] != "..."):
        raise InputError(
            f"{path} is damaged: it was cut short after line {len(lines)}, so nobody knows what "
            "was trained; put back a copy of it."
        )
    return yaml.safe_load(text)
