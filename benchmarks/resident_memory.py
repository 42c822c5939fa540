"""Resident memory and files of runs while they go on, and a picture of them.

    python benchmarks/resident_memory.py runs/Hopper-v4-adam runs/Hopper-v4-upgd --out memory.csv &
    python benchmarks/resident_memory.py --plot memory.png --out memory.csv

The first watches until the runs are no longer running, adding a line for each of them twice a
minute; the second draws what was written. Memory is that of a run's process and of its workers
(what they share is counted once), as Linux tells it.
"""

from __future__ import annotations

import argparse
import csv
import json
import time
from pathlib import Path
from typing import Any

FOLDERS = ("records", "tensorboard", "checkpoints")
COLUMNS = ("time", "run", "process", "member_steps", "resident_mb", *(f"{f}_mb" for f in FOLDERS))


def main() -> None:
    """Watch, or draw."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("runs", type=Path, nargs="*")
    parser.add_argument("--out", type=Path, default=Path("memory.csv"), help="the CSV file")
    parser.add_argument("--every", type=float, default=30.0, help="seconds between two lines")
    parser.add_argument("--plot", type=Path, help="draw the CSV file as PNG instead")
    arguments = parser.parse_args()
    if arguments.plot:
        draw(arguments.out, arguments.plot)
    else:
        watch(arguments.runs, arguments.out, arguments.every)


def watch(runs: list[Path], out: Path, every: float) -> None:
    """Add lines until no run is running."""
    begins = not out.exists()
    with open(out, "a", newline="") as file:
        writer = csv.DictWriter(file, COLUMNS)
        if begins:
            writer.writeheader()
        while lines := [line for line in map(measure, runs) if line]:
            writer.writerows(lines)
            file.flush()
            time.sleep(every)


def measure(run: Path) -> dict[str, Any] | None:
    """A line for a run; None if it is not running."""
    status = json.loads((run / "status.json").read_text())
    process = status["process"]
    if status["state"] != "running" or not Path("/proc", str(process)).exists():
        return None
    return {
        "time": round(time.time()),
        "run": run.name,
        "process": process,
        "member_steps": status["steps"] * status["members"],
        "resident_mb": round(megabytes_of(process), 1),
        **{f"{folder}_mb": round(megabytes_in(run / folder), 2) for folder in FOLDERS},
    }


def megabytes_of(process: int) -> float:
    """Resident memory of a process, and what its workers, forked from it, have for themselves."""
    workers = children_of(process)
    return kilobytes(process, "Rss") / 1024 + sum(
        kilobytes(worker, "Private_Clean", "Private_Dirty") / 1024 for worker in workers
    )


def children_of(process: int) -> list[int]:
    """A process's workers."""
    tasks = Path("/proc", str(process), "task").glob("*/children")
    return [int(child) for task in tasks for child in task.read_text().split()]


def kilobytes(process: int, *names: str) -> int:
    """The sum of some of the figures that Linux gives of a process's memory."""
    lines = Path("/proc", str(process), "smaps_rollup").read_text().splitlines()
    return sum(int(line.split()[1]) for line in lines if line.partition(":")[0] in names)


def megabytes_in(folder: Path) -> float:
    """What lies in a folder."""
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file()) / 1e6


def draw(table: Path, path: Path) -> None:
    """Memory, records and TensorBoard logs against member-steps, a curve for each run."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    rows = list(csv.DictReader(table.read_text().splitlines()))
    panels = {"resident_mb": "resident memory", "records_mb": "records", "tensorboard_mb": "logs"}
    figure, axes = plt.subplots(1, len(panels), figsize=(4 * len(panels), 3))
    for axis, (column, title) in zip(axes, panels.items(), strict=True):
        for name, color in zip(dict.fromkeys(row["run"] for row in rows), COLORS, strict=False):
            own = [row for row in rows if row["run"] == name]
            steps = [float(row["member_steps"]) / 1e6 for row in own]
            axis.plot(steps, [float(row[column]) for row in own], color=color, label=name)
        axis.set(title=f"{title}, MB", xlabel="million steps, all seeds", ylim=(0, None))
    axes[0].legend(fontsize=7)
    figure.tight_layout()
    figure.savefig(path, dpi=130)


COLORS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7")

if __name__ == "__main__":
    main()
