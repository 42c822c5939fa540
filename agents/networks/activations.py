"""The one table of nonlinearities, for training, statistics, curvature and exports."""

from __future__ import annotations

import difflib
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional

from upgd_ppo.agents.kernels.constants import RELU, TANH

Derivatives = Callable[[Any, Tensor, Tensor], tuple[Tensor, Tensor]]
"""(module, its input z, its output a) → f′(z), f″(z)."""


@dataclass(frozen=True)
class Training:
    """How `StackedMLP` computes a nonlinearity.

    The usual ones work in place: whatever is written anew has to come from far away in memory.

    Attributes:
        forward: pre-activations → activations; may overwrite them.
        backward: (gradient in the activations, pre-activations as `forward` left them,
            activations) → gradient in the pre-activations; may overwrite the first.
        infer: the same as `forward`, in place, on NumPy arrays, for the step loop.
        kernel: the number by which the compiled kernels know it; None if they do not.
    """

    forward: Callable[[Tensor], Tensor]
    backward: Callable[[Tensor, Tensor, Tensor], Tensor]
    infer: Callable[[NDArray], NDArray]
    kernel: int | None = None


@dataclass(frozen=True)
class Activation:
    """An elementwise nonlinearity.

    Attributes:
        function: pre-activations → activations, with PyTorch's default parameters.
        module: PyTorch's class; None if it has none.
        dead_at_zero: a unit is dead when it is 0 on the whole batch (the ReLU family) rather
            than when it does not vary.
        saturated: activations → which entries are saturated; None where the literature defines
            no saturation (ELU, SiLU, …).
        derivatives: the first and the second, for HesScale; None if they are not written down.
        training: for the networks of a population; None if they cannot have it.
    """

    function: Callable[[Tensor], Tensor]
    module: type[nn.Module] | None
    dead_at_zero: bool = False
    saturated: Callable[[Tensor], Tensor] | None = None
    derivatives: Derivatives | None = None
    training: Training | None = None

    @property
    def bounded(self) -> bool:
        """Whether it saturates at both ends, as tanh and sigmoid do."""
        return self.saturated is not None and not self.dead_at_zero


# ── Which entries are saturated ─────────────────────────────────────────────────────────────────


def _near_one(h: Tensor) -> Tensor:
    return h.abs() > 0.99


def _near_zero_or_one(h: Tensor) -> Tensor:
    return (h < 0.01) | (h > 0.99)


def _zero(h: Tensor) -> Tensor:
    return h == 0


def _zero_or_six(h: Tensor) -> Tensor:
    return (h == 0) | (h == 6)


# ── First and second derivatives ────────────────────────────────────────────────────────────────


def _sigmoid_derivatives(module: nn.Module, z: Tensor, a: Tensor) -> tuple[Tensor, Tensor]:
    slope = a * (1 - a)
    return slope, slope * (1 - 2 * a)


def _tanh_derivatives(module: nn.Module, z: Tensor, a: Tensor) -> tuple[Tensor, Tensor]:
    slope = 1 - a * a
    return slope, -2 * a * slope


def _relu_derivatives(module: nn.Module, z: Tensor, a: Tensor) -> tuple[Tensor, Tensor]:
    return (z > 0).to(z.dtype), torch.zeros_like(z)


def _leaky_relu_derivatives(module: nn.LeakyReLU, z: Tensor, a: Tensor) -> tuple[Tensor, Tensor]:
    slope = torch.where(z > 0, torch.ones_like(z), module.negative_slope)
    return slope, torch.zeros_like(z)


def _elu_derivatives(module: nn.ELU, z: Tensor, a: Tensor) -> tuple[Tensor, Tensor]:
    bend = a + module.alpha
    return torch.where(z > 0, torch.ones_like(z), bend), torch.where(z > 0, 0.0, bend)


def _silu_derivatives(module: nn.Module, z: Tensor, a: Tensor) -> tuple[Tensor, Tensor]:
    s = torch.sigmoid(z)
    slope = s * (1 - s)
    return s + z * slope, slope * (2 + z * (1 - 2 * s))


def _gelu_derivatives(module: nn.GELU, z: Tensor, a: Tensor) -> tuple[Tensor, Tensor]:
    if module.approximate != "none":
        raise TypeError(f"hesscale knows GELU with approximate='none', not {module}.")
    density = torch.exp(-0.5 * z * z) / math.sqrt(2 * math.pi)
    return torch.special.ndtr(z) + z * density, density * (2 - z * z)


def _identity_derivatives(module: nn.Module, z: Tensor, a: Tensor) -> tuple[Tensor, Tensor]:
    return torch.ones_like(z), torch.zeros_like(z)


def _softplus_derivatives(module: nn.Softplus, z: Tensor, a: Tensor) -> tuple[Tensor, Tensor]:
    s = torch.sigmoid(module.beta * z)
    return s, module.beta * s * (1 - s)


# ── Training ────────────────────────────────────────────────────────────────────────────────────


def _sigmoid(z: Tensor) -> Tensor:
    # tanh has the same bits wherever an element stands in the tensor; torch.sigmoid has not.
    return torch.tanh(z * 0.5).add_(1.0).mul_(0.5)


def _silu_backward(gradient: Tensor, z: Tensor, h: Tensor) -> Tensor:
    sigmoid = _sigmoid(z)
    return gradient * (sigmoid + h * (1.0 - sigmoid))


_TANH = Training(
    torch.tanh_,
    lambda gradient, z, h: torch.ops.aten.tanh_backward(gradient, h, grad_input=gradient),
    lambda z: np.tanh(z, out=z),
    kernel=TANH,
)
_RELU = Training(
    torch.relu_,
    lambda gradient, z, h: torch.ops.aten.threshold_backward(gradient, h, 0.0, grad_input=gradient),
    lambda z: np.maximum(z, 0, out=z),
    kernel=RELU,
)
_LEAKY_RELU = Training(
    lambda z: torch.where(z > 0, z, 0.01 * z),
    lambda gradient, z, h: torch.where(z > 0, gradient, 0.01 * gradient),
    lambda z: np.where(z > 0, z, 0.01 * z),
)
_ELU = Training(
    lambda z: torch.where(z > 0, z, torch.expm1(z)),
    lambda gradient, z, h: torch.where(z > 0, gradient, gradient * (h + 1.0)),
    lambda z: np.where(z > 0, z, np.expm1(np.minimum(z, 0))),
)
_SILU = Training(
    lambda z: z * _sigmoid(z),
    _silu_backward,
    lambda z: z * (0.5 * (1.0 + np.tanh(0.5 * z))),
)


# ── The table ───────────────────────────────────────────────────────────────────────────────────


def _crelu(z: Tensor) -> Tensor:
    return torch.cat([torch.relu(z), torch.relu(-z)], dim=-1)


def _prelu(z: Tensor) -> Tensor:
    return functional.leaky_relu(z, 0.25)  # at its initial slope


ACTIVATIONS: dict[str, Activation] = {
    "tanh": Activation(
        torch.tanh,
        nn.Tanh,
        saturated=_near_one,
        derivatives=_tanh_derivatives,
        training=_TANH,
    ),
    "identity": Activation(lambda z: z, nn.Identity, derivatives=_identity_derivatives),
    "hardtanh": Activation(functional.hardtanh, nn.Hardtanh, saturated=_near_one),
    "softsign": Activation(functional.softsign, nn.Softsign, saturated=_near_one),
    "sigmoid": Activation(
        torch.sigmoid,
        nn.Sigmoid,
        saturated=_near_zero_or_one,
        derivatives=_sigmoid_derivatives,
    ),
    "hardsigmoid": Activation(functional.hardsigmoid, nn.Hardsigmoid, saturated=_near_zero_or_one),
    "relu": Activation(
        torch.relu,
        nn.ReLU,
        dead_at_zero=True,
        saturated=_zero,
        derivatives=_relu_derivatives,
        training=_RELU,
    ),
    "relu6": Activation(functional.relu6, nn.ReLU6, dead_at_zero=True, saturated=_zero_or_six),
    "crelu": Activation(_crelu, None, dead_at_zero=True, saturated=_zero),
    "leaky_relu": Activation(
        functional.leaky_relu,
        nn.LeakyReLU,
        derivatives=_leaky_relu_derivatives,
        training=_LEAKY_RELU,
    ),
    "prelu": Activation(_prelu, nn.PReLU),
    "elu": Activation(functional.elu, nn.ELU, derivatives=_elu_derivatives, training=_ELU),
    "selu": Activation(functional.selu, nn.SELU),
    "celu": Activation(functional.celu, nn.CELU),
    "gelu": Activation(functional.gelu, nn.GELU, derivatives=_gelu_derivatives),
    "silu": Activation(functional.silu, nn.SiLU, derivatives=_silu_derivatives, training=_SILU),
    "mish": Activation(functional.mish, nn.Mish),
    "hardswish": Activation(functional.hardswish, nn.Hardswish),
    "softplus": Activation(functional.softplus, nn.Softplus, derivatives=_softplus_derivatives),
}

TRAINABLE = tuple(name for name, activation in ACTIVATIONS.items() if activation.training)
"""Those that the networks of a population can have."""

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


def training_of(name: str) -> Training:
    """How a population's networks compute the activation of that name.

    Raises:
        ValueError: if they cannot have it.
    """
    training = activation_named(name).training
    if training is None:
        raise ValueError(
            f"A population's networks have no backward pass for '{name}'; they have one for "
            f"{', '.join(TRAINABLE)}."
        )
    return training
