"""What the statistics must know of a nonlinearity: when a unit is dead and an entry saturated."""

from __future__ import annotations

import difflib
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional


@dataclass(frozen=True)
class Activation:
    """A nonlinearity as the statistics see it.

    Attributes:
        function: pre-activations → activations.
        dead_at_zero: a unit is dead when it is 0 on the whole batch (the ReLU family) rather
            than when it does not vary.
        saturated: activations → which entries are saturated; None where the literature defines
            no saturation (ELU, SiLU, …).
    """

    function: Callable[[Tensor], Tensor]
    dead_at_zero: bool = False
    saturated: Callable[[Tensor], Tensor] | None = None


def _near_one(h: Tensor) -> Tensor:
    return h.abs() > 0.99


def _near_zero_or_one(h: Tensor) -> Tensor:
    return (h < 0.01) | (h > 0.99)


def _zero(h: Tensor) -> Tensor:
    return h == 0


def _zero_or_six(h: Tensor) -> Tensor:
    return (h == 0) | (h == 6)


def _crelu(z: Tensor) -> Tensor:
    return torch.cat([torch.relu(z), torch.relu(-z)], dim=-1)


ACTIVATIONS: dict[str, Activation] = {
    "tanh": Activation(torch.tanh, saturated=_near_one),
    "hardtanh": Activation(functional.hardtanh, saturated=_near_one),
    "softsign": Activation(functional.softsign, saturated=_near_one),
    "sigmoid": Activation(torch.sigmoid, saturated=_near_zero_or_one),
    "hardsigmoid": Activation(functional.hardsigmoid, saturated=_near_zero_or_one),
    "relu": Activation(torch.relu, dead_at_zero=True, saturated=_zero),
    "relu6": Activation(functional.relu6, dead_at_zero=True, saturated=_zero_or_six),
    "crelu": Activation(_crelu, dead_at_zero=True, saturated=_zero),
    "leaky_relu": Activation(functional.leaky_relu),
    "prelu": Activation(functional.leaky_relu),
    "elu": Activation(functional.elu),
    "selu": Activation(functional.selu),
    "celu": Activation(functional.celu),
    "gelu": Activation(functional.gelu),
    "silu": Activation(functional.silu),
    "mish": Activation(functional.mish),
    "hardswish": Activation(functional.hardswish),
    "softplus": Activation(functional.softplus),
}

_NAMES_WITHOUT_UNDERSCORE = {name.replace("_", ""): name for name in ACTIVATIONS}


def known_activation(class_name: str) -> str | None:
    """The key of `ACTIVATIONS` that a class name such as "LeakyReLU" means, or None."""
    return _NAMES_WITHOUT_UNDERSCORE.get(class_name.replace("_", "").lower())


def activation_named(name: str) -> Activation:
    """The activation of that name, in any spelling of case and underscores.

    Raises:
        ValueError: if no such activation is known; the message names the nearest.
    """
    key = known_activation(name)
    if key is None:
        near = difflib.get_close_matches(name.lower(), ACTIVATIONS, n=1, cutoff=0.5)
        hint = f"perhaps you meant '{near[0]}'" if near else f"known are {', '.join(ACTIVATIONS)}"
        raise ValueError(f"Unknown activation '{name}'; {hint}.")
    return ACTIVATIONS[key]
