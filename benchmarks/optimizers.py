"""What a step of AdaptiveUPGD costs, against Adam and against a plain loop.

    python benchmarks/optimizers.py --out optimizers.json

Three models: the PPO network (12.5 thousand weights in 13 tensors), a multilayer perceptron of 10
million weights, and a population of 16 PPO networks in one tensor. Repetitions are interleaved, so
that whatever else the machine does falls on all alike; medians are reported. `--clock cpu` counts
the process's CPU time instead of wall time, for a machine that is not quiet.
"""

from __future__ import annotations

import argparse
import gc
import json
import math
import platform
import statistics
import sys
import time
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path

import torch
from torch import Tensor, nn

sys.path.insert(0, str(Path(__file__).parents[1]))

import checkout  # noqa: F401  # isort: split
from upgd_ppo import AdaptiveUPGD

CLOCKS = {"wall": time.perf_counter, "cpu": time.process_time}
MEMBERS = 16


class PlainLoop(torch.optim.Optimizer):
    """AdaptiveUPGD as one would write it: for each tensor, one formula after another."""

    def __init__(self, params: list[Tensor], sigma: float) -> None:
        defaults = dict(lr=3e-4, betas=(0.9, 0.999), eps=1e-5, beta_utility=0.999, decay=1e-3)
        super().__init__(params, {**defaults, "sigma": sigma})

    @torch.no_grad()
    def step(self) -> None:  # type: ignore[override]
        largest = -math.inf
        for group in self.param_groups:
            for p in group["params"]:
                state = self.state[p]
                if not state:
                    state["step"] = 0
                    for name in ("utility", "exp_avg", "exp_avg_sq"):
                        state[name] = torch.zeros_like(p)
                state["step"] += 1
                beta = group["beta_utility"]
                state["utility"].mul_(beta).add_(-p.grad * p, alpha=1 - beta)
                largest = max(largest, state["utility"].max().item())
        for group in self.param_groups:
            (beta1, beta2), beta = group["betas"], group["beta_utility"]
            for p in group["params"]:
                state = self.state[p]
                t = state["step"]
                scaled = torch.sigmoid(state["utility"] / (1 - beta**t) / largest)
                state["exp_avg"].mul_(beta1).add_(p.grad, alpha=1 - beta1)
                state["exp_avg_sq"].mul_(beta2).addcmul_(p.grad, p.grad, value=1 - beta2)
                first = state["exp_avg"] / (1 - beta1**t)
                second = state["exp_avg_sq"] / (1 - beta2**t)
                direction = first / (second.sqrt() + group["eps"])
                if group["sigma"]:
                    direction = direction + torch.randn_like(p) * group["sigma"]
                p.mul_(1 - group["lr"] * group["decay"])
                p.add_(direction * (1 - scaled), alpha=-2 * group["lr"])


def mlp(*sizes: int) -> list[Tensor]:
    layers = [nn.Linear(i, o) for i, o in pairwise(sizes)]
    return [p for layer in layers for p in layer.parameters()]


def ppo_network() -> list[Tensor]:
    """Actor and critic of Ant-v4: 27 observations, 8 actions, two hidden layers of 64."""
    return [*mlp(27, 64, 64, 8), nn.Parameter(torch.zeros(8)), *mlp(27, 64, 64, 1)]


def population() -> list[Tensor]:
    return [nn.Parameter(torch.randn(MEMBERS, 12544) * 0.1)]


MODELS: dict[str, tuple[Callable[[], list[Tensor]], int]] = {
    "ppo_network": (ppo_network, 400),
    "mlp_10m": (lambda: mlp(784, 2048, 2048, 2048, 10), 15),
    f"population_of_{MEMBERS}": (population, 60),
}


def optimizers(model: str) -> dict[str, Callable[[list[Tensor]], torch.optim.Optimizer]]:
    stacked = model.startswith("population")

    def upgd(sigma: float) -> Callable[[list[Tensor]], AdaptiveUPGD]:
        generator = [torch.Generator() for _ in range(MEMBERS)] if stacked else None
        return lambda params: AdaptiveUPGD(
            params, sigma=sigma, generator=generator, members=stacked
        )

    candidates: dict[str, Callable[[list[Tensor]], torch.optim.Optimizer]] = {
        "adam (foreach)": lambda params: torch.optim.Adam(params, eps=1e-5, foreach=True),
        "adam (fused)": lambda params: torch.optim.Adam(params, eps=1e-5, fused=True),
        "upgd without noise": upgd(0.0),
        "upgd": upgd(1e-3),
    }
    if not stacked:
        candidates["plain loop without noise"] = lambda params: PlainLoop(params, 0.0)
        candidates["plain loop"] = lambda params: PlainLoop(params, 1e-3)
    return candidates


def live_bytes() -> int:
    gc.collect()
    storages = {}
    for thing in gc.get_objects():
        if type(thing) in (Tensor, nn.Parameter):
            storage = thing.untyped_storage()
            storages[storage.data_ptr()] = storage.nbytes()
    return sum(storages.values())


def measure(model: str, repetitions: int, clock: Callable[[], float]) -> dict[str, dict]:
    """Seconds a step, nanoseconds and bytes a weight, by optimizer."""
    make, _ = MODELS[model]
    running, memory = {}, {}
    for name, build in optimizers(model).items():
        torch.manual_seed(0)
        params = make()
        for p in params:
            p.grad = torch.randn_like(p) * 0.01
        weights = sum(p.numel() for p in params)
        before = live_bytes()
        optimizer = build(params)
        optimizer.step()
        memory[name] = (live_bytes() - before) / weights
        running[name] = optimizer.step
    normals = torch.empty(weights)
    running["drawing normals alone"] = normals.normal_
    seconds: dict[str, list[float]] = {name: [] for name in running}
    for repetition in range(repetitions + 3):
        for name, step in running.items():
            start = clock()
            step()
            if repetition >= 3:
                seconds[name].append(clock() - start)
    medians = {name: statistics.median(times) for name, times in seconds.items()}
    adam = medians["adam (foreach)"]
    return {
        name: {
            "microseconds": 1e6 * median,
            "nanoseconds_per_weight": 1e9 * median / weights,
            "times_adam": median / adam,
            "bytes_per_weight": memory.get(name),
        }
        for name, median in medians.items()
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--clock", choices=CLOCKS, default="wall")
    parser.add_argument("--threads", type=int, default=1, help="intra-op threads (default 1)")
    parser.add_argument("--models", nargs="+", choices=MODELS, default=list(MODELS))
    parser.add_argument("--scale", type=float, default=1.0, help="times the repetitions")
    parser.add_argument("--out", type=Path, help="write the numbers here as JSON")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    report = {
        "machine": platform.processor() or platform.machine(),
        "system": platform.platform(),
        "cores": torch.get_num_threads(),
        "torch": torch.__version__,
        "python": platform.python_version(),
        "clock": args.clock,
        "results": {},
    }
    print({key: value for key, value in report.items() if key != "results"})
    for model in args.models:
        repetitions = max(3, round(MODELS[model][1] * args.scale))
        results = measure(model, repetitions, CLOCKS[args.clock])
        report["results"][model] = results
        print(f"\n{model}\n{'':28}{'µs':>10}{'ns/weight':>11}{'× Adam':>8}{'B/weight':>10}")
        for name, row in results.items():
            memory = row["bytes_per_weight"]
            print(
                f"{name:28}{row['microseconds']:10.0f}{row['nanoseconds_per_weight']:11.2f}"
                f"{row['times_adam']:8.2f}" + ("" if memory is None else f"{memory:10.1f}")
            )
    if args.out:
        args.out.write_text(json.dumps(report, indent=2) + "\n")


if __name__ == "__main__":
    main()
