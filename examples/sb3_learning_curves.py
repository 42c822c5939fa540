"""Stable-Baselines3's PPO with Adam and with UPGDPolicy on one task, several seeds each.

    python examples/sb3_learning_curves.py --env HalfCheetah-v4 --steps 300000 --seeds 1 2 3
    python evaluate.py compare curves/adam curves/upgd --out curves/report
    tensorboard --logdir curves

Every seed leaves `POLICY/seed_N.monitor.csv`, the plasticity of every layer in
`POLICY/seed_N_1/plasticity.csv`, and both in TensorBoard.
"""

from __future__ import annotations

import argparse
import sys
import warnings
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import gymnasium as gym
import torch
from stable_baselines3 import PPO
from stable_baselines3.common.monitor import Monitor
from stable_baselines3.common.vec_env import DummyVecEnv, VecNormalize

import checkout  # noqa: F401  # isort: split
from upgd_ppo.sb3 import PlasticityCallback

POLICIES = {"adam": "MlpPolicy", "upgd": "UPGDPolicy"}


def main() -> None:
    """Train every policy with every seed, one after the other; seeds already there are kept."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--env", default="HalfCheetah-v4")
    parser.add_argument("--steps", type=int, default=300_000)
    parser.add_argument("--seeds", type=int, nargs="+", default=[1, 2, 3])
    parser.add_argument("--out", type=Path, default=Path("curves"))
    arguments = parser.parse_args()
    warnings.simplefilter("ignore", DeprecationWarning)
    torch.set_num_threads(1)
    for seed in arguments.seeds:
        for name in POLICIES:
            folder = arguments.out / name
            if not (folder / f"seed_{seed}.zip").exists():
                train(arguments.env, name, seed, arguments.steps, folder)


def train(task: str, name: str, seed: int, steps: int, folder: Path) -> None:
    """One run; the model is written when it is done."""
    folder.mkdir(parents=True, exist_ok=True)
    monitor_file = str(folder / f"seed_{seed}")
    env = VecNormalize(DummyVecEnv([lambda: Monitor(gym.make(task), monitor_file)]))
    model = PPO(POLICIES[name], env, seed=seed, device="cpu", tensorboard_log=str(folder))
    model.learn(steps, callback=PlasticityCallback(), tb_log_name=f"seed_{seed}")
    model.save(folder / f"seed_{seed}")
    env.close()
    print(f"{name}, seed {seed}: done", flush=True)


if __name__ == "__main__":
    main()
