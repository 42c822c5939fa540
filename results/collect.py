"""Make run directories small enough to be kept here: settings, versions and compressed records.

    python results/collect.py runs/Hopper-v4-adam runs/Hopper-v4-upgd --out results/hopper

What it leaves are run directories still: `evaluate.py compare` reads them, `train.py --config` on
their `config.yaml` repeats them. Checkpoints and TensorBoard logs stay behind.
"""

from __future__ import annotations

import argparse
import shutil
from pathlib import Path

import pyarrow.parquet as pq

TABLES = ("episodes", "statistics", "events")


def main() -> None:
    """Collect every run under the name of its folder."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("runs", type=Path, nargs="+")
    parser.add_argument("--out", type=Path, required=True)
    arguments = parser.parse_args()
    for run in arguments.runs:
        collect(run, arguments.out / run.name)


def collect(run: Path, out: Path) -> None:
    """Copy a run's settings and write each table as one file."""
    out.mkdir(parents=True)
    for name in ("config.yaml", "versions.json", "status.json"):
        shutil.copy(run / name, out)
    for name in TABLES:
        parts = sorted((run / "records" / name).glob("part-*.parquet"))
        if not parts:
            continue
        table = pq.read_table(run / "records" / name)
        folder = out / "records" / name
        folder.mkdir(parents=True)
        pq.write_table(
            table,
            folder / parts[-1].name,
            compression="zstd",
            compression_level=19,
            use_byte_stream_split=["value"] if name == "statistics" else False,
            use_dictionary=[c for c in table.column_names if c not in ("value", "episode_return")],
        )
        size = sum(path.stat().st_size for path in folder.iterdir())
        print(f"{folder}: {table.num_rows:,} rows, {size / 1e6:.2f} MB")


if __name__ == "__main__":
    main()
