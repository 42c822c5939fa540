"""How good HesScale's curvature and the utilities are: correlations with the exact values.

    python benchmarks/hesscale.py

For small classifiers, fresh and after training: Pearson's correlation of HesScale's curvature with
the exact diagonal of the Hessian over all weights, and Spearman's of three utilities with the true
one, the loss when a weight is set to zero minus the loss as it is.
"""

from __future__ import annotations

import statistics
import sys
from itertools import pairwise
from pathlib import Path

import torch
from scipy.stats import spearmanr
from torch import Tensor, nn

sys.path.insert(0, str(Path(__file__).parents[1]))

import checkout  # noqa: F401  # isort: split
from upgd_ppo import hesscale

SEEDS = 5
LOSS = nn.CrossEntropyLoss()


def classifier(activation: type[nn.Module], hidden_layers: int) -> nn.Sequential:
    sizes = [8, *[16] * hidden_layers, 4]
    layers = [m for i, o in pairwise(sizes) for m in (nn.Linear(i, o), activation())]
    return nn.Sequential(*layers[:-1]).double()


def loss_at(model: nn.Module, flat: Tensor, x: Tensor, y: Tensor) -> Tensor:
    named, start = {}, 0
    for name, p in model.named_parameters():
        named[name] = flat[start : start + p.numel()].view(p.shape)
        start += p.numel()
    return LOSS(torch.func.functional_call(model, named, (x,)), y)


def correlations(model: nn.Module, x: Tensor, y: Tensor) -> list[float]:
    model.zero_grad()
    loss = hesscale(model, x, y, LOSS)
    parameters = list(model.parameters())
    w = torch.cat([p.detach().flatten() for p in parameters])
    g = torch.cat([p.grad.flatten() for p in parameters])
    h = torch.cat([p.curvature.flatten() for p in parameters])
    exact = torch.autograd.functional.hessian(lambda v: loss_at(model, v, x, y), w).diagonal()
    with torch.no_grad():
        removed = w.repeat(len(w), 1).fill_diagonal_(0.0)
        true = torch.stack([loss_at(model, v, x, y) for v in removed]) - loss
    utilities = [-g * w, 0.5 * h * w**2 - g * w, 0.5 * exact * w**2 - g * w]
    pearson = torch.corrcoef(torch.stack([h, exact]))[0, 1].item()
    return [pearson, *(spearmanr(u, true).statistic for u in utilities)]


def main() -> None:
    torch.set_num_threads(1)
    print("| network | | curvature | first order | second order, HesScale | … exact diagonal |")
    print("| --- | --- | --- | --- | --- | --- |")
    for activation in (nn.Tanh, nn.ReLU):
        for hidden_layers in (1, 2, 3):
            rows: dict[str, list[list[float]]] = {"fresh": [], "trained": []}
            for seed in range(SEEDS):
                torch.manual_seed(seed)
                model = classifier(activation, hidden_layers)
                x = torch.randn(128, 8, dtype=torch.float64)
                y = classifier(nn.Tanh, 1)(x * 3).argmax(1)
                rows["fresh"].append(correlations(model, x, y))
                optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
                for _ in range(150):
                    optimizer.zero_grad()
                    LOSS(model(x), y).backward()
                    optimizer.step()
                rows["trained"].append(correlations(model, x, y))
            for state, measured in rows.items():
                means = [statistics.mean(column) for column in zip(*measured, strict=True)]
                numbers = " | ".join(f"{mean:.3f}" for mean in means)
                name = f"{activation.__name__}, {hidden_layers} hidden"
                print(f"| {name} | {state} | {numbers} |")


if __name__ == "__main__":
    main()
