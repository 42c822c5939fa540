"""A run directory as an arm: `config.yaml`, `status.json` and the Parquet records."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import yaml

from analysis.arm import Arm, Episodes, InputError, Member, StatisticKey, Statistics, no_statistics

BATCH_ROWS = 1 << 18
CONFIG, STATUS, VERSIONS = "config.yaml", "status.json", "versions.json"
NAMES = ("network", "layer", "statistic")
ENDED = ("finished", "all members halted")
"""The states in `status.json` after which nothing more will come."""


def is_run_directory(path: Path) -> bool:
    """Whether this is what one `train.py` run leaves."""
    return (path / CONFIG).is_file() or (path / "records").is_dir()


def read_run(path: Path) -> Arm:
    """Read a run directory; the records themselves are only streamed through.

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

    members, notes = _members(path, settings)
    planned = settings.get("steps")
    planned = int(planned) if isinstance(planned, int | float) else None
    has_statistics = bool(_parts(path / "records/statistics"))
    return Arm(
        name=str(settings.get("opt", path.name)),
        path=path,
        environment=settings["env"],
        source="run directory",
        members=members,
        episodes=lambda: _episodes(path),
        statistics=(lambda: _statistics(path)) if has_statistics else no_statistics,
        settings=settings,
        versions=_flat(versions),
        planned=planned,
        finished=_finished(status, planned, members),
        notes=notes if has_statistics else (*notes, "It has no per-layer statistics."),
    )


def _finished(
    status: dict[str, Any], planned: int | None, members: tuple[Member, ...]
) -> bool | None:
    if "state" in status:
        return status["state"] in ENDED
    if planned is None:
        return None
    return max(member.reached for member in members) >= 0.99 * planned


def _members(path: Path, settings: dict[str, Any]) -> tuple[tuple[Member, ...], tuple[str, ...]]:
    seeds: dict[int, int] = {}
    broken: dict[int, tuple[int, str]] = {}
    last = 0
    for batch in _batches(path / "records/episodes", ("member", "seed", "step", "episode_return")):
        member, step = _integers(batch["member"]), _integers(batch["step"])
        if not len(member):
            continue
        last = max(last, int(step.max()))
        known, first = np.unique(member, return_index=True)
        seed = _integers(batch["seed"])
        seeds.update({int(who): int(seed[row]) for who, row in zip(known, first, strict=True)})
        for row in np.flatnonzero(~np.isfinite(_floats(batch["episode_return"]))):
            _earlier(broken, int(member[row]), int(step[row]), "its episode return is not finite")
    if not seeds:
        raise InputError(f"{path} has no finished episode yet: there is nothing to compare.")

    notes = []
    for batch in _batches(path / "records/events", ("member", "seed", "step", "kind", "message")):
        for event in batch.to_pylist():
            if event["kind"] == "halted":
                seeds[event["member"]] = event["seed"]
                _earlier(broken, event["member"], event["step"], event["message"])
            elif event["kind"] == "warning":
                notes.append(f"Seed {event['seed']}, step {event['step']}: {event['message']}")
    for batch in _batches(path / "records/statistics", ("step",), newest=True):
        last = max(last, pc.max(batch["step"]).as_py() or 0)

    count = settings.get("seeds")
    count = count if isinstance(count, int) else len(seeds)
    first_seed = settings.get("seed")
    first_seed = first_seed if isinstance(first_seed, int) else 0
    return tuple(
        Member(seeds.get(k, first_seed + k), last, *broken.get(k, (None, "")))
        for k in range(max(count, 1 + max(seeds)))
    ), tuple(notes)


def _flat(versions: dict[str, Any]) -> dict[str, str]:
    libraries = versions.pop("libraries", {})
    return {str(name): str(value) for name, value in (libraries | versions).items()}


def _earlier(broken: dict[int, tuple[int, str]], member: int, step: int, cause: str) -> None:
    if member not in broken or step < broken[member][0]:
        broken[member] = (step, cause)


def _episodes(path: Path) -> Iterator[Episodes]:
    for batch in _batches(path / "records/episodes", ("member", "step", "episode_return")):
        yield Episodes(
            _integers(batch["member"]), _integers(batch["step"]), _floats(batch["episode_return"])
        )


def _statistics(path: Path) -> Iterator[Statistics]:
    folder = path / "records/statistics"
    for batch in _batches(folder, ("member", "step", *NAMES, "value"), encoded=NAMES):
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


def _parts(folder: Path) -> list[str]:
    return sorted(str(part) for part in folder.glob("part-*.parquet"))


def _batches(
    folder: Path, columns: tuple[str, ...], encoded: tuple[str, ...] = (), newest: bool = False
) -> Iterator[pa.RecordBatch]:
    """Stream columns of a folder of Parquet parts, one batch in memory at a time.

    Args:
        encoded: the columns of words, read as dictionaries.
        newest: read the newest part only.
    """
    for part in _parts(folder)[-1 if newest else 0 :]:
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
        content = yaml.safe_load(text) if path.suffix == ".yaml" else json.loads(text)
    except (yaml.YAMLError, json.JSONDecodeError, UnicodeDecodeError) as error:
        raise InputError(f"{path} is damaged: {str(error).splitlines()[0]}.") from error
    if not isinstance(content, dict):
        raise InputError(f"{path} is damaged: a mapping of names to values was expected.")
    return content
