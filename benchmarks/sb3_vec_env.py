"""Environment steps per second of BatchedMujocoVecEnv beside DummyVecEnv and SubprocVecEnv.

    python benchmarks/sb3_vec_env.py --env HalfCheetah-v4 --num-envs 16

The three take turns, so that whatever else the machine does falls on all alike; the median of the
rounds is reported.
"""

from __future__ import annotations

import argparse
import os
import statistics
import sys
import warnings
from collections.abc import Callable
from pathlib import Path
from time import perf_counter

os.environ.setdefault("OMP_NUM_THREADS", "1")
sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import numpy as np
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.vec_env import DummyVecEnv, SubprocVecEnv, VecEnv

import checkout  # noqa: F401  # isort: split
from upgd_ppo.sb3 import BatchedMujocoVecEnv


def steps_per_second(env: VecEnv, seconds: float) -> float:
    """Environment steps per second, all sub-environments together, with random actions."""
    space = env.action_space
    rng = np.random.default_rng(0)
    actions = rng.uniform(space.low, space.high, (64, env.num_envs, *space.shape))
    actions = actions.astype(np.float32)
    count, start = 0, perf_counter()
    while perf_counter() - start < seconds:
        env.step(actions[count % len(actions)])
        count += 1
    return count * env.num_envs / (perf_counter() - start)


def main() -> None:
    """Print a table of the three, with their ratios to DummyVecEnv."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--env", nargs="+", default=["HalfCheetah-v4", "Ant-v4", "Hopper-v4"])
    parser.add_argument("--num-envs", type=int, nargs="+", default=[1, 8, 16])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=1.0, help="of each, per round")
    arguments = parser.parse_args()
    warnings.simplefilter("ignore")
    print(f"{'task':<18}{'envs':>5}{'Dummy':>10}{'Subproc':>16}{'Batched':>16}")
    for task in arguments.env:
        for num_envs in arguments.num_envs:
            report(task, num_envs, arguments.rounds, arguments.seconds)


def report(task: str, num_envs: int, rounds: int, seconds: float) -> None:
    """One line of the table."""
    makers: dict[str, Callable[[], VecEnv]] = {
        "Dummy": lambda: make_vec_env(task, num_envs, seed=0, vec_env_cls=DummyVecEnv),
        "Subproc": lambda: make_vec_env(task, num_envs, seed=0, vec_env_cls=SubprocVecEnv),
        "Batched": lambda: BatchedMujocoVecEnv(task, num_envs, seed=0),
    }
    envs = {name: make() for name, make in makers.items()}
    speeds: dict[str, list[float]] = {name: [] for name in envs}
    try:
        for env in envs.values():
            env.reset()
        for _ in range(rounds):
            for name, env in envs.items():
                speeds[name].append(steps_per_second(env, seconds))
    finally:
        for env in envs.values():
            env.close()
    medians = {name: statistics.median(values) for name, values in speeds.items()}
    # Ratios within a round are steadier than the speeds themselves.
    ratios = {
        name: statistics.median(
            mine / dummy for mine, dummy in zip(values, speeds["Dummy"], strict=True)
        )
        for name, values in speeds.items()
    }
    cells = "".join(
        f"{medians[name]:>9,.0f} ({ratios[name]:.1f}×)" for name in ("Subproc", "Batched")
    )
    print(f"{task:<18}{num_envs:>5}{medians['Dummy']:>10,.0f}{cells}", flush=True)


if __name__ == "__main__":
    main()
