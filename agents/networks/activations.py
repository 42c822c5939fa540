"""Nonlinearities: forward, backward, and for the step loop."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor


@dataclass(frozen=True)
class Activation:
    """An elementwise nonlinearity.

    The usual ones work in place: whatever is written anew has to come from far away in memory.

    Attributes:
        forward: pre-activations → activations; may overwrite them.
        backward: (gradient in the activations, pre-activations as `forward` left them,
            activations) → gradient in the pre-activations; may overwrite the first.
        infer: the same as `forward`, in place, on NumPy arrays, for the step loop.
    """

    forward: Callable[[Tensor], Tensor]
    backward: Callable[[Tensor, Tensor, Tensor], Tensor]
    infer: Callable[[NDArray], NDArray]


def _sigmoid(z: Tensor) -> Tensor:
    # tanh has the same bits wherever an element stands in the tensor; torch.sigmoid has not.
    return torch.tanh(z * 0.5).add_(1.0).mul_(0.5)


def _silu_backward(gradient: Tensor, z: Tensor, h: Tensor) -> Tensor:
    sigmoid = _sigmoid(z)
    return gradient * (sigmoid + h * (1.0 - sigmoid))


ACTIVATIONS: dict[str, Activation] = {
    "tanh": Activation(
        torch.tanh_,
        lambda gradient, z, h: torch.ops.aten.tanh_backward(gradient, h, grad_input=gradient),
        lambda z: np.tanh(z, out=z),
    ),
    "relu": Activation(
        torch.relu_,
        lambda gradient, z, h: torch.ops.aten.threshold_backward(
            gradient, h, 0.0, grad_input=gradient
        ),
        lambda z: np.maximum(z, 0, out=z),
    ),
    "leaky_relu": Activation(
        lambda z: torch.where(z > 0, z, 0.01 * z),
        lambda gradient, z, h: torch.where(z > 0, gradient, 0.01 * gradient),
        lambda z: np.where(z > 0, z, 0.01 * z),
    ),
    "elu": Activation(
        lambda z: torch.where(z > 0, z, torch.expm1(z)),
        lambda gradient, z, h: torch.where(z > 0, gradient, gradient * (h + 1.0)),
        lambda z: np.where(z > 0, z, np.expm1(np.minimum(z, 0))),
    ),
    "silu": Activation(
        lambda z: z * _sigmoid(z),
        _silu_backward,
        lambda z: z * (0.5 * (1.0 + np.tanh(0.5 * z))),
    ),
}
