"""Total environment steps per second: physics alone, our environment, our training, and SB3's.

    python benchmarks/throughput.py
    python benchmarks/throughput.py --envs HalfCheetah-v4 --seeds 16 --repetitions 5

Every figure is measured in a process of its own. They take turns, one at a time, physics alone
between each two of the others, and ratios are those of neighbours in time: a machine whose speed
drifts disturbs both alike.
"""

from __future__ import annotations

import json
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import tyro
from contestants import CORES, Contestant
from throughput_report import breakdown, draw, table


@dataclass(frozen=True)
class Options:
    """What to measure."""

    envs: tuple[str, ...] = ("Ant-v4", "HalfCheetah-v4", "Hopper-v4", "Humanoid-v4")
    """Environments."""
    seeds: tuple[int, ...] = (1, 4, 16, 30, 60)
    """Numbers of seeds in one process."""
    optimizers: tuple[str, ...] = ("adam", "upgd")
    """Optimizers of our training."""
    repetitions: int = 3
    """Times that everything is measured, in turn."""
    seconds: float = 5.0
    """About this long is each figure measured, and for at least a few iterations."""
    phases: bool = True
    """Measure the phases of our loop as well, apart from its speed."""
    stable_baselines: bool = True
    """Measure Stable-Baselines3 as well."""
    threads: int = CORES
    """Threads of one of our processes; as many Stable-Baselines3 processes run side by side."""
    out: Path | None = None
    """Where to write the figures, as JSON; from an earlier run there, others are kept."""
    plot: Path | None = None
    """Where to draw them, as PNG."""


def contestants(env_id: str, options: Options) -> dict[str, tuple[str, int, dict[str, Any]]]:
    """Name → kind, number of processes and arguments."""
    threads = options.threads
    plan: dict[str, tuple[str, int, dict[str, Any]]] = {
        "physics alone": ("physics", 1, {"threads": threads}),
        "environment": ("environment", 1, {"threads": threads}),
    }
    for seeds in options.seeds:
        for opt in options.optimizers:
            arguments = {"opt": opt, "seeds": seeds, "threads": threads}
            plan[f"{opt}, {seeds} seeds"] = ("training", 1, arguments)
            if options.phases and seeds % threads == 0:
                block = {"opt": opt, "seeds": seeds // threads, "threads": 1, "by_phase": True}
                plan[f"{opt}, {seeds} seeds, by phase"] = ("training", threads, block)
    if options.stable_baselines:
        plan[f"SB3, {threads} processes"] = ("stable_baselines", threads, {"num_envs": 1})
        plan["SB3, one process"] = ("stable_baselines", 1, {"num_envs": 1})
        plan[f"SB3, {threads} envs"] = ("stable_baselines", 1, {"num_envs": threads})
    return {name: (kind, n, {"env_id": env_id, **a}) for name, (kind, n, a) in plan.items()}


def measure(options: Options) -> list[dict[str, Any]]:
    """All figures, environment by environment, interleaved repetition by repetition."""
    rows = []
    for env_id in options.envs:
        entered = {
            name: Contestant(kind, count, **arguments)
            for name, (kind, count, arguments) in contestants(env_id, options).items()
        }
        turns = [turn for name in entered for turn in ("physics alone", name)][1:]
        for repetition in range(options.repetitions):
            for name in [*turns, "physics alone"]:
                result = entered[name].measure(options.seconds)
                rows.append({"env": env_id, "name": name, "repetition": repetition, **result})
                print(
                    f"[{repetition + 1}/{options.repetitions}] {env_id:16} {name:24}"
                    f" {result['steps_per_second']:10,.0f} steps/s",
                    file=sys.stderr,
                    flush=True,
                )
        for contestant in entered.values():
            contestant.close()
    return rows


def main() -> None:
    """Measure, print, write."""
    from upgd_ppo.agents.runs.run_directory import versions

    options = tyro.cli(Options, description=__doc__)
    machine = versions()
    print(f"{machine['processor']}, {CORES} core(s) usable, {options.threads} thread(s)")
    print(", ".join(f"{name} {version}" for name, version in machine["libraries"].items()))
    rows = measure(options)
    if options.out and options.out.exists():
        earlier = json.loads(options.out.read_text())["rows"]
        rows = [row for row in earlier if row["env"] not in options.envs] + rows
    print(table(rows))
    print(breakdown(rows))
    if options.out:
        options.out.parent.mkdir(parents=True, exist_ok=True)
        options.out.write_text(json.dumps({"machine": machine, "rows": rows}, indent=1) + "\n")
    if options.plot:
        draw(rows, options.plot)


if __name__ == "__main__":
    main()
