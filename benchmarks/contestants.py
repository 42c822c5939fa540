"""What `throughput.py` and `scaling.py` measure: each contestant lives in a process of its own, is
warmed up once, and then works whenever it is asked to, while all others wait.

    python benchmarks/contestants.py training '{"env_id": "Hopper-v4", "opt": "upgd", "seeds": 4}'

makes one by hand; every line typed is a number of seconds to work for, every line printed a
measurement.
"""

from __future__ import annotations

import contextlib
import itertools
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
os.environ.setdefault("OMP_NUM_THREADS", "1")
sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import checkout  # noqa: F401  # isort: split
from upgd_ppo.agents.machine.cores import available_cores

CORES = available_cores()
PHYSICS_SIMULATIONS = 60
RECORDED_STEPS = 300
MIN_ITERATIONS = 3
"""Iterations of training that one measurement has at least."""

Measure = Callable[[float], dict[str, Any]]


class Contestant:
    """One or several processes that do the same side by side.

    Args:
        kind: a key of `KINDS`.
        count: how many processes.
        **arguments: of the function that `KINDS` has.

    Raises:
        SystemExit: here and below, if a process fails.
    """

    def __init__(self, kind: str, count: int = 1, **arguments: Any) -> None:
        self._command = [sys.executable, __file__, kind, json.dumps(arguments)]
        self._processes = [
            subprocess.Popen(
                self._command,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.DEVNULL,
                text=True,
            )
            for _ in range(count)
        ]
        for process in self._processes:
            self._read(process)

    def measure(self, seconds: float) -> dict[str, Any]:
        """Work for about that long; the steps per second of the processes are added."""
        for process in self._processes:
            assert process.stdin
            with contextlib.suppress(BrokenPipeError):
                print(seconds, file=process.stdin, flush=True)
        results = [self._read(process) for process in self._processes]
        return {**results[0], "steps_per_second": sum(r["steps_per_second"] for r in results)}

    def close(self) -> None:
        """End the processes."""
        for process in self._processes:
            assert process.stdin
            process.stdin.close()
        for process in self._processes:
            process.wait()

    def _read(self, process: subprocess.Popen[str]) -> dict[str, Any]:
        assert process.stdout
        while line := process.stdout.readline():
            if line.startswith("{"):
                return json.loads(line)
        command = " ".join([*self._command[:-1], f"'{self._command[-1]}'"])
        raise SystemExit(f"A contestant failed; run {command} to see why.")


def repeat(step: Callable[[], object], steps_per_call: int) -> Measure:
    """Measures environment steps per second of a repeated call."""
    step()

    def measure(seconds: float) -> dict[str, Any]:
        calls, start = 0, time.perf_counter()
        while time.perf_counter() - start < seconds:
            step()
            calls += 1
        return {"steps_per_second": calls * steps_per_call / (time.perf_counter() - start)}

    return measure


@contextlib.contextmanager
def physics(env_id: str, threads: int = CORES) -> Iterator[Measure]:
    """The native batch alone, the limit: steps that the environment took under random actions,
    episodes ending and beginning, once more without it."""
    import numpy as np

    from upgd_ppo import envs

    env = envs.make(env_id, PHYSICS_SIMULATIONS, threads=threads).unwrapped
    env.reset(seed=1)
    low, high = env.action_space.low, env.action_space.high
    random = np.random.default_rng(1)
    simulation, frame_skip = env.simulation, env._frame_skip
    states = []
    for _ in range(RECORDED_STEPS):
        actions = random.uniform(low, high)
        simulation.ctrl[...] = actions
        states.append(simulation.state.copy())
        env.step(actions)
    recorded = itertools.cycle(states[RECORDED_STEPS // 3 :])

    def step() -> None:
        simulation.state[...] = next(recorded)
        simulation.batch.step(nstep=frame_skip)

    yield repeat(step, PHYSICS_SIMULATIONS)


@contextlib.contextmanager
def environment(env_id: str, threads: int = CORES) -> Iterator[Measure]:
    """Our environment with task logic, resets and normalisation, under random actions."""
    import numpy as np

    from upgd_ppo import envs

    env = envs.make(env_id, PHYSICS_SIMULATIONS, threads=threads, task_infos=False)
    env = envs.NormalizeObservation(env, PHYSICS_SIMULATIONS)
    env = envs.NormalizeReward(env, PHYSICS_SIMULATIONS)
    env.reset(seed=list(range(PHYSICS_SIMULATIONS)))
    low, high = env.action_space.low, env.action_space.high
    actions = np.random.default_rng(1).uniform(low, high, (100, *low.shape)).astype(np.float32)
    calls = iter(range(10**12))
    yield repeat(lambda: env.step(actions[next(calls) % 100]), PHYSICS_SIMULATIONS)


@contextlib.contextmanager
def training(
    env_id: str,
    opt: str,
    seeds: int,
    threads: int = CORES,
    by_phase: bool = False,
    hidden_size: int = 64,
    envs_per_seed: int = 1,
) -> Iterator[Measure]:
    """Our whole loop, statistics and logging on.

    A measurement measures the layers' statistics once, and counts their time at the cadence at
    which they are measured by default. No block of seeds is ahead when it begins or ends.
    """
    from memory import megabytes_of
    from phases import PhaseTimers

    import upgd_ppo.agents.population.population
    from upgd_ppo.agents.runs.run_directory import RunDirectory
    from upgd_ppo.agents.runs.stopping import StopSignals
    from upgd_ppo.agents.settings.config import TrainConfig
    from upgd_ppo.train import make_runner

    default = TrainConfig()
    timers = PhaseTimers() if by_phase else PhaseTimers(only={"statistics"})
    lookahead = upgd_ppo.agents.population.population.LOOKAHEAD
    with tempfile.TemporaryDirectory() as folder:
        config = default.with_flat(
            {
                "env": env_id,
                "opt": opt,
                "seeds": seeds,
                "steps": 10**9,
                "threads": threads,
                "hidden_sizes": (hidden_size, hidden_size),
                "envs_per_seed": envs_per_seed,
                "rollout_steps": default.ppo.rollout_steps // envs_per_seed,
                "statistics_every": MIN_ITERATIONS,
                "out": Path(folder, "run"),
            }
        )
        population = upgd_ppo.agents.population.population.Population(config)
        runner = make_runner(config, population, RunDirectory.create(config))
        signals = StopSignals()

        def advance(ahead: int) -> float:
            upgd_ppo.agents.population.population.LOOKAHEAD = ahead
            start = time.perf_counter()
            runner._log(runner._advance(signals))
            runner._hold()
            return time.perf_counter() - start

        iteration = advance(0)

        def measure(seconds: float) -> dict[str, Any]:
            groups = max(1, round(seconds / iteration / MIN_ITERATIONS))
            iterations = groups * MIN_ITERATIONS
            timers.clear()
            duration = sum(advance(lookahead) for _ in range(iterations - 1)) + advance(0)
            spent = dict(timers.seconds)
            statistics = spent["statistics"] * MIN_ITERATIONS / default.plasticity.statistics_every
            duration += statistics - spent["statistics"]
            steps = iterations * config.steps_per_iteration * seeds
            result = {
                "steps_per_second": steps / duration,
                "statistics_share": statistics / duration,
                "megabytes": megabytes_of(os.getpid()),
            }
            if by_phase:
                spent["statistics"] = statistics
                result["microseconds_per_step"] = {
                    phase: 1e6 * time_spent / steps for phase, time_spent in spent.items()
                }
            return result

        try:
            yield measure
        finally:
            population.close()


@contextlib.contextmanager
def stable_baselines(env_id: str, num_envs: int) -> Iterator[Measure]:
    """One Stable-Baselines3 process: PPO's defaults, VecNormalize, one torch thread."""
    import torch
    from stable_baselines3 import PPO
    from stable_baselines3.common.env_util import make_vec_env
    from stable_baselines3.common.vec_env import VecNormalize

    torch.set_num_threads(1)
    steps = 2048 // num_envs * num_envs
    env = VecNormalize(make_vec_env(env_id, num_envs))
    model = PPO("MlpPolicy", env, n_steps=2048 // num_envs, device="cpu")
    yield repeat(lambda: model.learn(steps, reset_num_timesteps=False), steps)


KINDS: dict[str, Any] = {
    "physics": physics,
    "environment": environment,
    "training": training,
    "stable_baselines": stable_baselines,
}


def main() -> None:
    """Be a contestant."""
    kind, arguments = sys.argv[1], json.loads(sys.argv[2])
    with KINDS[kind](**arguments) as measure:
        print("{}", flush=True)
        for line in sys.stdin:
            print(json.dumps(measure(float(line))), flush=True)


if __name__ == "__main__":
    main()
