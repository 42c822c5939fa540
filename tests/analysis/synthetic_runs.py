"""Run directories of made-up training, in the format that `train.py` leaves."""

import json
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import yaml

Shape = Callable[[np.ndarray], np.ndarray]
"""Expected return as a function of the progress of training, 0 to 1."""


def climb(progress: np.ndarray) -> np.ndarray:
    """Rise to 1000 and stay there."""
    return 1000 * np.minimum(progress / 0.3, 1)


def collapse(progress: np.ndarray) -> np.ndarray:
    """Rise to 1000 by 30 %, fall to 200 from 60 % on."""
    return np.where(
        progress < 0.6, climb(progress), np.maximum(1000 - 4000 * (progress - 0.6), 200)
    )


def write_run(
    path: Path,
    shapes: list[Shape],
    opt: str = "adam",
    env: str = "Ant-v4",
    steps: int = 100_000,
    reached: int | None = None,
    halted: dict[int, int] | None = None,
    statistics: bool = True,
    parts: int = 3,
    noise: float = 20.0,
    episode_length: int = 250,
    state: str | None = None,
    **settings: object,
) -> Path:
    """Write a run directory with one member per shape; `halted` maps a member to its step."""
    reached, halted = reached or steps, halted or {}
    random = np.random.default_rng(0)
    seeds = np.arange(1, len(shapes) + 1)
    for name in ("checkpoints", "tensorboard/population", "records"):
        (path / name).mkdir(parents=True)
    config = {"env": env, "opt": opt, "opt_kwargs": {}, "seeds": len(shapes), "seed": 1}
    config |= {"steps": steps, "epochs": 10, "learning_rate": 3e-4, "anneal": False} | settings
    (path / "config.yaml").write_text(yaml.safe_dump(config))
    versions = {"libraries": {"torch": "2.13.0", "numpy": "2.4.6"}, "python": "3.11.2"}
    (path / "versions.json").write_text(json.dumps(versions))
    state = state or ("finished" if reached >= steps else "running")
    (path / "status.json").write_text(json.dumps({"state": state, "steps": reached}))

    step = np.arange(episode_length, reached + 1, episode_length)
    tables = []
    for member, shape in enumerate(shapes):
        alive = step[step <= halted.get(member, reached)]
        tables.append(
            pa.table(
                {
                    "member": pa.array(np.full(len(alive), member), pa.int32()),
                    "seed": pa.array(np.full(len(alive), seeds[member]), pa.int64()),
                    "step": pa.array(alive, pa.int64()),
                    "episode_return": shape(alive / steps)
                    + noise * random.standard_normal(len(alive)),
                    "episode_length": pa.array(np.full(len(alive), episode_length), pa.int32()),
                    "terminated": np.full(len(alive), False),
                }
            )
        )
    write_parts(path / "records/episodes", pa.concat_tables(tables), reached, parts)
    if statistics:
        table = statistics_table(len(shapes), np.arange(2000, reached + 1, 2000), halted)
        write_parts(path / "records/statistics", table, reached, parts)
    if halted:
        events = {
            "member": pa.array(list(halted), pa.int32()),
            "seed": pa.array([seeds[member] for member in halted], pa.int64()),
            "step": pa.array(list(halted.values()), pa.int64()),
            "kind": ["halted"] * len(halted),
            "message": ["the critic's weights became NaN"] * len(halted),
        }
        write_parts(path / "records/events", pa.table(events), reached, 1)
    return path


def statistics_table(members: int, steps: np.ndarray, halted: dict[int, int]) -> pa.Table:
    """Three statistics of two hidden layers of actor and critic, and PPO's KL."""
    keys = [
        (network, layer, statistic)
        for network in ("actor", "critic")
        for layer in ("layer_1", "layer_2")
        for statistic in ("dormant_fraction", "effective_rank", "weight_l2")
    ] + [("ppo", "", "approx_kl")]
    place, member, step = (
        grid.ravel() for grid in np.meshgrid(np.arange(len(keys)), np.arange(members), steps)
    )
    last = np.array([halted.get(k, steps[-1]) for k in range(members)])
    alive = step <= last[member]
    place, member, step = place[alive], member[alive], step[alive]
    kind = pa.dictionary(pa.int16(), pa.string())
    words = [pa.array(np.array(keys)[place, column].tolist()).cast(kind) for column in range(3)]
    return pa.table(
        {
            "member": pa.array(member, pa.int32()),
            "step": pa.array(step, pa.int64()),
            "network": words[0],
            "layer": words[1],
            "statistic": words[2],
            "value": place + member + step / steps[-1],
        }
    )


def write_parts(folder: Path, table: pa.Table, last: int, parts: int) -> None:
    """Split a table by step into append-only parts, named by the step that they end at."""
    folder.mkdir(parents=True)
    step = table["step"].to_numpy()
    edges = np.linspace(0, last, parts + 1).astype(int)
    for low, high in pairwise(edges):
        rows = table.filter(pa.array((step > low) & (step <= high)))
        pq.write_table(rows, folder / f"part-{high:012d}.parquet", compression="zstd")
