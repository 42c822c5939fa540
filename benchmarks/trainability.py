"""What the trainability probe says of fresh networks, where the answer is 1 by definition.

python benchmarks/trainability.py --networks 100
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from time import process_time

import numpy as np
import torch

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import checkout  # noqa: F401  # isort: split
from upgd_ppo.agents.networks.actor_critic import ActorCritic
from upgd_ppo.agents.plasticity import trainability


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--networks", type=int, default=100)
    count = parser.parse_args().networks
    torch.set_num_threads(1)
    wide = torch.randn(count, 2048, 11, generator=torch.Generator().manual_seed(1))
    state = torch.randn(count, 1, 11, generator=torch.Generator().manual_seed(2))
    batches = {"wide": wide, "one state ± 5 %": state + 0.05 * wide}
    print("| activation | network | batch | median | 95 % of them | largest | seconds each |")
    print("| --- | --- | --- | --- | --- | --- | --- |")
    for activation in ("tanh", "relu"):
        networks = ActorCritic(list(range(count)), 11, 3, (64, 64), activation)
        for batch, observations in batches.items():
            for name, mlp in (("actor", networks.actor), ("critic", networks.critic)):
                began = process_time()
                ratios = trainability(
                    mlp.all_layers, networks.parameters.views, observations, range(count)
                ).numpy()
                low, high = np.quantile(ratios, [0.025, 0.975])
                print(
                    f"| {activation} | {name} | {batch} | {np.median(ratios):.2f} "
                    f"| {low:.2f}–{high:.2f} | {ratios.max():.2f} "
                    f"| {(process_time() - began) / count:.2f} |",
                    flush=True,
                )


if __name__ == "__main__":
    main()
