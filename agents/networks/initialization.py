"""How weights are drawn before the first step."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor

from upgd_ppo.agents.networks.flat_parameters import FlatParameters
from upgd_ppo.agents.networks.layers import Layer
from upgd_ppo.agents.random_streams import seed_of

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


def drawn_layer(
    initialization: str, name: str, shape: torch.Size, generator: torch.Generator
) -> tuple[Tensor, Tensor]:
    """A layer's weight [out, in] and bias [out], freshly drawn, in double precision.

    Args:
        initialization: a key of `INITIALIZATIONS`.
        name: the layer's name, such as "actor.layer_1".
        shape: of the weight.
    """
    weight = torch.zeros(shape, dtype=torch.float64)
    bias = torch.zeros(shape[0], dtype=torch.float64)
    INITIALIZATIONS[initialization](name, weight, bias, generator)
    return weight, bias


def initialise(parameters: FlatParameters, seeds: list[int], initialization: str) -> None:
    """Draw every layer's weights and biases; normalisations begin as the identity.

    Args:
        seeds: member k's weights depend on `seeds[k]` alone.
        initialization: a key of `INITIALIZATIONS`.
    """
    views = parameters.views
    for member, seed in enumerate(seeds):
        generator = torch.Generator().manual_seed(seed_of(seed, "parameters"))
        for name, view in views.items():
            if name.endswith("norm_weight"):
                view[member].fill_(1.0)
            elif name.endswith(".weight"):
                layer = name.removesuffix(".weight")
                weight, bias = drawn_layer(initialization, layer, view.shape[1:], generator)
                view[member].copy_(weight)
                views[f"{layer}.bias"][member].copy_(bias)


def fresh_units(
    initialization: str, layer: Layer, shape: torch.Size, generator: torch.Generator
) -> tuple[Tensor, Tensor]:
    """Incoming weights [units, in] and biases [units] of a whole layer, as at initialisation.

    A method that renews some units takes their rows. What else is theirs has no randomness: a
    normalisation's weight is 1 and its bias 0, and outgoing weights start at 0, so that a renewed
    unit changes no output.

    Args:
        initialization: a key of `INITIALIZATIONS`.
        layer: whose units are renewed.
        shape: of one member's incoming weights, (units, in).
        generator: the member's own.
    """
    return drawn_layer(initialization, f"{layer.network}.{layer.name}", shape, generator)
