"""How weights are drawn before the first step."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor

Initialization = Callable[[str, Tensor, Tensor, torch.Generator], None]
"""(layer's name, weight [out, in], bias [out], generator): fills the last two, given as zeros."""


def _orthogonal(layer: str, weight: Tensor, bias: Tensor, generator: torch.Generator) -> None:
    """Gain √2 hidden, 0.01 actor output, 1 critic output; biases 0."""
    gain = {"actor.output": 0.01, "critic.output": 1.0}.get(layer, math.sqrt(2))
    torch.nn.init.orthogonal_(weight, gain, generator=generator)


def _lecun_uniform(layer: str, weight: Tensor, bias: Tensor, generator: torch.Generator) -> None:
    """Within ±√(3 / inputs), a variance of 1 / inputs, in every layer; biases 0."""
    bound = math.sqrt(3 / weight.shape[1])
    weight.uniform_(-bound, bound, generator=generator)


def _pytorch(layer: str, weight: Tensor, bias: Tensor, generator: torch.Generator) -> None:
    """As `torch.nn.Linear` does it: weights and biases within ±1/√inputs, in every layer."""
    torch.nn.init.kaiming_uniform_(weight, a=math.sqrt(5), generator=generator)
    bound = 1 / math.sqrt(weight.shape[1])
    bias.uniform_(-bound, bound, generator=generator)


INITIALIZATIONS: dict[str, Initialization] = {
    "orthogonal": _orthogonal,
    "lecun_uniform": _lecun_uniform,
    "pytorch": _pytorch,
}
