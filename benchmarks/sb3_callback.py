"""What PlasticityCallback costs a Stable-Baselines3 run at its default cadence.

    python benchmarks/sb3_callback.py --env HalfCheetah-v4 --rounds 8

Two models of one seed train in turn, one with the callback and one without, both logging to
TensorBoard; the share is that of the median round. The time spent inside the callback is given
beside it, which a noisy machine disturbs less.
"""

from __future__ import annotations

import argparse
import os
import statistics
import sys
import tempfile
import warnings
from pathlib import Path
from time import perf_counter
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")
sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from stable_baselines3 import PPO
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.vec_env import VecNormalize

import checkout  # noqa: F401  # isort: split
from upgd_ppo.sb3 import PlasticityCallback

ROUND = 10_240
"""Steps of a round: five rollouts, as many as pass between two measurements."""


class TimedCallback(PlasticityCallback):
    """Counts the seconds spent in it."""

    seconds = 0.0

    def _on_rollout_end(self) -> None:
        start = perf_counter()
        super()._on_rollout_end()
        self.seconds += perf_counter() - start


def main() -> None:
    """Print the cost for each policy."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--env", default="HalfCheetah-v4")
    parser.add_argument("--policies", nargs="+", default=["MlpPolicy", "UPGDPolicy"])
    parser.add_argument("--rounds", type=int, default=8)
    arguments = parser.parse_args()
    warnings.simplefilter("ignore")
    for policy in arguments.policies:
        with tempfile.TemporaryDirectory() as folder:
            report(arguments.env, policy, arguments.rounds, folder)


def report(task: str, policy: str, rounds: int, folder: str) -> None:
    """One line."""
    callback = TimedCallback()
    models: dict[str, tuple[PPO, Any]] = {
        name: (
            PPO(
                policy,
                VecNormalize(make_vec_env(task)),
                seed=1,
                device="cpu",
                tensorboard_log=f"{folder}/{name}",
            ),
            own,
        )
        for name, own in (("without", None), ("with", callback))
    }
    durations: dict[str, list[float]] = {name: [] for name in models}
    for _ in range(rounds):
        for name, (model, own) in models.items():
            start = perf_counter()
            model.learn(ROUND, callback=own, reset_num_timesteps=False)
            durations[name].append(perf_counter() - start)
    medians = {name: statistics.median(values) for name, values in durations.items()}
    share = statistics.median(
        w / o - 1 for w, o in zip(durations["with"], durations["without"], strict=True)
    )
    inside = callback.seconds / (sum(durations["with"]) - callback.seconds)
    print(
        f"{task} {policy}: {ROUND / medians['without']:.0f} steps/s without,"
        f" {ROUND / medians['with']:.0f} with; {share:+.1%} in the median round,"
        f" {inside:.1%} spent inside the callback",
        flush=True,
    )


if __name__ == "__main__":
    main()
