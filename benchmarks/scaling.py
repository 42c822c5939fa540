"""How the cost of training grows with network width and environments, and what two runs cost.

    python benchmarks/scaling.py
    python benchmarks/scaling.py --env Hopper-v4 --seeds 8 --repetitions 3

Everything is measured as in `throughput.py`: whole training with statistics and logging on, in
processes of their own that take turns.
"""

from __future__ import annotations

import statistics
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import tyro
from contestants import CORES, Contestant

ROOT = Path(__file__).resolve().parent.parent


@dataclass(frozen=True)
class Options:
    """What to measure."""

    env: str = "HalfCheetah-v4"
    """Environment."""
    opt: str = "upgd"
    """Optimizer."""
    seeds: int = 16
    """Seeds in one run."""
    blocks: tuple[int, ...] = (1, 2, 4, 8, 15)
    """Seeds in a block of its own core, for what more cores would give."""
    widths: tuple[int, ...] = (64, 128, 256, 512)
    """Units of each of the two hidden layers."""
    envs_per_seed: tuple[int, ...] = (1, 4, 16)
    """Environments per seed; a rollout stays 2048 steps in all."""
    repetitions: int = 3
    """Times that everything is measured, in turn."""
    seconds: float = 5.0
    """At least this long is each figure measured."""
    threads: int = CORES
    """Threads of a run."""


def measure(options: Options) -> dict[str, list[float]]:
    """Name → steps per second in each repetition; start-up in seconds."""
    base: dict[str, Any] = {
        "env_id": options.env,
        "opt": options.opt,
        "seeds": options.seeds,
        "threads": options.threads,
    }
    plan: list[tuple[str, int, dict[str, Any]]] = [
        *((f"width {width}", 1, {"hidden_size": width}) for width in options.widths),
        *((f"{n} seeds per core", 1, {"seeds": n * options.threads}) for n in options.blocks),
        *((f"{n} environments per seed", 1, {"envs_per_seed": n}) for n in options.envs_per_seed),
        ("two runs side by side, each on all threads", 2, {}),
    ]
    entered = {
        name: Contestant("training", count, **{**base, **changes}) for name, count, changes in plan
    }
    rates: dict[str, list[float]] = {}
    for _ in range(options.repetitions):
        for name, contestant in entered.items():
            result = contestant.measure(options.seconds)
            rates.setdefault(name, []).append(result["steps_per_second"])
            print(f"{name:45} {rates[name][-1]:10,.0f} steps/s", file=sys.stderr, flush=True)
        rates.setdefault("start-up", []).append(start_up(options))
    for contestant in entered.values():
        contestant.close()
    return rates


FIRST_STEP = """
import os, sys, time
import upgd_ppo.agents.learners.collector

def first_step(self):
    print(time.time(), flush=True)
    os._exit(0)

upgd_ppo.agents.learners.collector.Collector.collect = first_step
from upgd_ppo import train
train.main(sys.argv[1:])
"""


def start_up(options: Options) -> float:
    """Seconds from the command to the first step."""
    arguments = [
        *("--env", options.env, "--opt", options.opt, "--seeds", str(options.seeds)),
        *("--threads", str(options.threads)),
    ]
    with tempfile.TemporaryDirectory() as folder:
        began = time.time()
        finished = subprocess.run(
            [sys.executable, "-c", FIRST_STEP, *arguments, "--out", f"{folder}/run"],
            cwd=ROOT,
            check=True,
            capture_output=True,
            text=True,
        )
    return float(finished.stdout.split()[-1]) - began


def main() -> None:
    """Measure and print medians, with ratios to the first row."""
    options = tyro.cli(Options, description=__doc__)
    rates = measure(options)
    began = rates.pop("start-up")
    first = statistics.median(next(iter(rates.values())))
    print(f"{options.env}, {options.opt}, {options.seeds} seeds, {options.threads} threads")
    for name, values in rates.items():
        median = statistics.median(values)
        print(
            f"{name:45} {median:10,.0f} steps/s  {min(values):,.0f} to {max(values):,.0f}"
            f"  {median / first:5.2f} of the first"
        )
    print(
        f"from the command to the first step: {statistics.median(began):.1f} s"
        f"  ({min(began):.1f} to {max(began):.1f})"
    )


if __name__ == "__main__":
    main()
