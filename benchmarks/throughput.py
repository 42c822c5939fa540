"""Total environment steps per second: physics alone, our environment, our training, and SB3's.

    python benchmarks/throughput.py
    python benchmarks/throughput.py --envs HalfCheetah-v4 --seeds 16 --repetitions 5

Every figure is measured in a process of its own; repetitions are interleaved, so that a machine
whose speed drifts disturbs all of them alike. Compare ratios within one run.
"""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
os.environ.setdefault("OMP_NUM_THREADS", "1")
sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

CORES = len(os.sched_getaffinity(0))
PHYSICS_SIMULATIONS = 60


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
    """At least this long is each figure measured, after a warm-up."""
    phases: bool = True
    """Measure the phases of our loop as well, apart from its speed."""
    threads: int = CORES
    """Threads of one of our processes; as many Stable-Baselines3 processes run side by side."""
    out: Path | None = None
    """Where to write the figures, as JSON."""
    plot: Path | None = None
    """Where to draw them, as PNG."""


def rate(step: Any, steps_per_call: int, seconds: float) -> float:
    """Environment steps per second of a repeated call, after one that is not counted."""
    step()
    calls, start = 0, time.perf_counter()
    while time.perf_counter() - start < seconds:
        step()
        calls += 1
    return calls * steps_per_call / (time.perf_counter() - start)


def physics(env_id: str, threads: int, seconds: float) -> dict[str, Any]:
    """The native batch alone, under random controls and with Gymnasium's resets: the limit."""
    import numpy as np

    import envs

    env = envs.make(env_id, PHYSICS_SIMULATIONS, threads=threads).unwrapped
    env.reset(seed=1)
    low, high = env.action_space.low, env.action_space.high
    controls = np.random.default_rng(1).uniform(low, high, (100, *low.shape))
    simulation, frame_skip = env.simulation, env._frame_skip
    state = simulation.state.copy()
    calls = 0

    def step() -> None:
        nonlocal calls
        simulation.ctrl[...] = controls[calls % 100]
        if calls % 200 == 0:
            simulation.state[...] = state
        simulation.batch.step(nstep=frame_skip)
        calls += 1

    return {"steps_per_second": rate(step, PHYSICS_SIMULATIONS, seconds)}


def environment(env_id: str, threads: int, seconds: float) -> dict[str, Any]:
    """Our environment with task logic, resets and normalisation, under random actions."""
    import numpy as np

    import envs

    env = envs.make(env_id, PHYSICS_SIMULATIONS, threads=threads)
    env = envs.NormalizeObservation(env, PHYSICS_SIMULATIONS)
    env = envs.NormalizeReward(env, PHYSICS_SIMULATIONS)
    env.reset(seed=list(range(PHYSICS_SIMULATIONS)))
    low, high = env.action_space.low, env.action_space.high
    actions = np.random.default_rng(1).uniform(low, high, (100, *low.shape)).astype(np.float32)
    calls = iter(range(10**12))
    return {
        "steps_per_second": rate(
            lambda: env.step(actions[next(calls) % 100]), PHYSICS_SIMULATIONS, seconds
        )
    }


def training(
    env_id: str,
    threads: int,
    seconds: float,
    opt: str,
    seeds: int,
    by_phase: bool = False,
    hidden_size: int = 64,
    envs_per_seed: int = 1,
) -> dict[str, Any]:
    """Our whole loop, statistics and logging on.

    The layers' statistics are measured every other iteration here, and their cost is then counted
    at the cadence at which they are measured by default.
    """
    started = time.perf_counter()
    from memory import megabytes_of

    from agents.config import TrainConfig
    from agents.population import Population
    from agents.run_directory import RunDirectory
    from agents.runner import Runner
    from agents.stopping import StopSignals

    timers = None
    if by_phase:
        from phases import PhaseTimers

        timers = PhaseTimers()
    default = TrainConfig()
    with tempfile.TemporaryDirectory() as folder:
        config = default.with_flat(
            {
                "env": env_id,
                "opt": opt,
                "seeds": seeds,
                "steps": 10**8,
                "threads": threads,
                "hidden_sizes": (hidden_size, hidden_size),
                "envs_per_seed": envs_per_seed,
                "statistics_every": 2,
                "out": Path(folder, "run"),
            }
        )
        population = Population(config)
        runner = Runner(config, population, RunDirectory.create(config))
        signals = StopSignals()
        start_up = time.perf_counter() - started
        runner._advance(signals)
        usual, inspected = [], []
        phases: dict[str, float] = {}
        share = 1 / default.plasticity.statistics_every
        start = time.perf_counter()
        while not inspected or time.perf_counter() - start < seconds:
            for durations, weight in ((usual, 1 - share), (inspected, share)):
                if timers:
                    timers.clear()
                began = time.perf_counter()
                runner._advance(signals)
                durations.append(time.perf_counter() - began)
                for phase, spent in timers.seconds.items() if timers else ():
                    phases[phase] = phases.get(phase, 0.0) + weight * spent
        steps = config.steps_per_iteration * seeds
        megabytes = megabytes_of(os.getpid())
        population.close()
    duration = (1 - share) * statistics.mean(usual) + share * statistics.mean(inspected)
    return {
        "steps_per_second": steps / duration,
        "statistics_share": share * (statistics.mean(inspected) / statistics.mean(usual) - 1),
        "microseconds_per_step": {
            name: 1e6 * spent / len(usual) / steps for name, spent in phases.items()
        },
        "start_up_seconds": start_up,
        "megabytes": megabytes,
    }


def stable_baselines(env_id: str, num_envs: int, seconds: float) -> dict[str, Any]:
    """One Stable-Baselines3 process: PPO's defaults, VecNormalize, one torch thread."""
    import torch
    from stable_baselines3 import PPO
    from stable_baselines3.common.callbacks import BaseCallback
    from stable_baselines3.common.env_util import make_vec_env
    from stable_baselines3.common.vec_env import VecNormalize

    torch.set_num_threads(1)

    class Clock(BaseCallback):
        """Stops once enough rollouts with their updates were timed; the first is a warm-up."""

        rollouts = 0
        start = elapsed = 0.0

        def _on_rollout_start(self) -> None:
            now = time.perf_counter()
            if self.rollouts == 1:
                self.start = now
            if self.rollouts > 1:
                self.elapsed = now - self.start
            self.rollouts += 1

        def _on_step(self) -> bool:
            return self.elapsed < seconds

    env = VecNormalize(make_vec_env(env_id, num_envs))
    clock = Clock()
    model = PPO("MlpPolicy", env, n_steps=2048 // num_envs, device="cpu")
    model.learn(10**9, callback=clock)
    counted = (clock.rollouts - 2) * (2048 // num_envs) * num_envs
    return {"steps_per_second": counted / clock.elapsed}


WORKERS = {
    "physics": physics,
    "environment": environment,
    "training": training,
    "stable_baselines": stable_baselines,
}


def in_processes(worker: str, count: int = 1, **arguments: Any) -> dict[str, Any]:
    """Run a worker in `count` processes side by side; their steps per second are added."""
    command = [sys.executable, __file__, "--worker", worker, json.dumps(arguments)]
    running = [
        subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
        for _ in range(count)
    ]
    results = []
    for process in running:
        output, _ = process.communicate()
        if process.returncode:
            raise SystemExit(f"{worker} {arguments} failed; run {' '.join(command)} to see why.")
        results.append(json.loads(output.splitlines()[-1]))
    return {**results[0], "steps_per_second": sum(r["steps_per_second"] for r in results)}


def measure(options: Options) -> list[dict[str, Any]]:
    """All figures, interleaved repetition by repetition."""
    seconds, threads = options.seconds, options.threads
    rows: list[dict[str, Any]] = []
    for repetition in range(options.repetitions):
        for env_id in options.envs:
            plan: list[tuple[str, str, int, dict[str, Any]]] = [
                ("physics alone", "physics", 1, {"threads": threads}),
                ("environment", "environment", 1, {"threads": threads}),
                *(
                    (
                        f"{opt}, {seeds} seeds",
                        "training",
                        1,
                        {"threads": threads, "opt": opt, "seeds": seeds},
                    )
                    for seeds in options.seeds
                    for opt in options.optimizers
                ),
                *(
                    (
                        f"{opt}, {seeds} seeds, by phase",
                        "training",
                        threads,
                        {"threads": 1, "opt": opt, "seeds": seeds // threads, "by_phase": True},
                    )
                    for seeds in options.seeds
                    for opt in options.optimizers
                    if options.phases and seeds % threads == 0
                ),
                (f"SB3, {threads} processes", "stable_baselines", threads, {"num_envs": 1}),
                ("SB3, one process", "stable_baselines", 1, {"num_envs": 1}),
                (f"SB3, {threads} envs", "stable_baselines", 1, {"num_envs": threads}),
            ]
            for name, worker, count, arguments in plan:
                result = in_processes(worker, count, env_id=env_id, seconds=seconds, **arguments)
                row = {"env": env_id, "name": name, "repetition": repetition, **result}
                rows.append(row)
                print(
                    f"[{repetition + 1}/{options.repetitions}] {env_id:16} {name:20}"
                    f" {row['steps_per_second']:10,.0f} steps/s",
                    file=sys.stderr,
                    flush=True,
                )
    return rows


def table(rows: list[dict[str, Any]]) -> str:
    """Medians and spread, ratios to physics alone and to SB3, and what our processes hold."""
    lines = []
    for env_id in dict.fromkeys(row["env"] for row in rows):
        own = [row for row in rows if row["env"] == env_id]
        rates = {
            name: [row["steps_per_second"] for row in own if row["name"] == name]
            for name in dict.fromkeys(row["name"] for row in own)
            if "by phase" not in name
        }
        limit = statistics.median(rates["physics alone"])
        peers = next(name for name in rates if name.startswith("SB3") and "processes" in name)
        peer = statistics.median(rates[peers])
        lines += [
            "",
            f"{env_id:22} {'steps/s':>10} {'min':>10} {'max':>10} {'÷ physics':>10} {'÷ SB3':>8}"
            f" {'statistics':>10} {'MB':>6}",
        ]
        for name, values in rates.items():
            median = statistics.median(values)
            lines.append(
                f"{name:22} {median:10,.0f} {min(values):10,.0f} {max(values):10,.0f}"
                f" {median / limit:10.2f} {median / peer:8.2f}" + _ours(own, name)
            )
    return "\n".join(lines)


def _ours(rows: list[dict[str, Any]], name: str) -> str:
    """The share of the time that statistics take, and memory."""
    same = [row for row in rows if row["name"] == name and "megabytes" in row]
    if not same:
        return ""
    share = statistics.median(row["statistics_share"] for row in same)
    return f" {share:10.1%} {statistics.median(row['megabytes'] for row in same):6.0f}"


def breakdown(rows: list[dict[str, Any]]) -> str:
    """Where our loop spends its time, in core-microseconds per environment step."""
    lines = []
    timed = [row for row in rows if row.get("microseconds_per_step")]
    for env_id in dict.fromkeys(row["env"] for row in timed):
        own = [row for row in timed if row["env"] == env_id]
        phases = list(dict.fromkeys(phase for row in own for phase in row["microseconds_per_step"]))
        lines += ["", f"{env_id + ', µs/step':22} " + " ".join(f"{p:>13}" for p in phases)]
        for name in dict.fromkeys(row["name"] for row in own):
            same = [row["microseconds_per_step"] for row in own if row["name"] == name]
            medians = [statistics.median(t.get(phase, 0.0) for t in same) for phase in phases]
            lines.append(
                f"{name.removesuffix(', by phase'):22} "
                + " ".join(f"{median:13.2f}" for median in medians)
            )
    return "\n".join(lines)


def draw(rows: list[dict[str, Any]], path: Path) -> None:
    """A panel per environment: steps per second against the number of seeds."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    names = list(dict.fromkeys(row["env"] for row in rows))
    figure, axes = plt.subplots(1, len(names), figsize=(4 * len(names), 3.4), squeeze=False)
    for axis, env_id in zip(axes[0], names, strict=True):
        own = [row for row in rows if row["env"] == env_id and "by phase" not in row["name"]]
        levels: dict[str, list[float]] = {}
        curves: dict[str, dict[int, list[float]]] = {}
        for row in own:
            if row["name"].endswith("seeds"):
                opt, count = row["name"].removesuffix(" seeds").split(", ")
                curves.setdefault(opt, {}).setdefault(int(count), []).append(
                    row["steps_per_second"]
                )
            else:
                levels.setdefault(row["name"], []).append(row["steps_per_second"])
        for (name, values), style in zip(levels.items(), ("-", "--", ":", "-.", (0, (1, 4)))):  # noqa: B905
            axis.axhline(statistics.median(values), color="0.4", linestyle=style, label=name)
        for (opt, points), color, marker in zip(  # noqa: B905
            curves.items(), ("#0072B2", "#D55E00", "#009E73"), "os^"
        ):
            counts = sorted(points)
            medians = [statistics.median(points[count]) for count in counts]
            axis.plot(counts, medians, color=color, marker=marker, label=f"ours, {opt}")
        axis.set(title=env_id, xlabel="seeds in one process", xscale="log", ylim=(0, None))
        axis.set_xticks(counts, counts)
        axis.minorticks_off()
    axes[0][0].set_ylabel("environment steps per second")
    axes[0][-1].legend(fontsize=7)
    figure.tight_layout()
    figure.savefig(path, dpi=130)


def main() -> None:
    """Measure, print, write."""
    import tyro

    from agents.run_directory import versions

    options = tyro.cli(Options, description=__doc__)
    machine = versions()
    print(f"{machine['processor']}, {CORES} core(s) usable, {options.threads} thread(s)")
    print(", ".join(f"{name} {version}" for name, version in machine["libraries"].items()))
    rows = measure(options)
    print(table(rows))
    print(breakdown(rows))
    if options.out:
        options.out.parent.mkdir(parents=True, exist_ok=True)
        options.out.write_text(json.dumps({"machine": machine, "rows": rows}, indent=1) + "\n")
    if options.plot:
        draw(rows, options.plot)


if __name__ == "__main__":
    if sys.argv[1:2] == ["--worker"]:
        print(json.dumps(WORKERS[sys.argv[2]](**json.loads(sys.argv[3]))))
    else:
        main()
