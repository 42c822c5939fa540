"""The policy's distribution: a diagonal Gaussian, drawn from as it is or squashed by tanh.

Its standard deviation is a parameter of its own, or an output of the network beside the mean.
What is stored and scored of a squashed action is the draw u before tanh: log π(a) and the
Gaussian's log-density at u differ by `log_slope`, in which no parameter occurs, so that it cancels
in the ratio of a new and an old probability.
"""

from __future__ import annotations

import math

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from upgd_ppo.agents.kernels.constants import LOG_SQRT_2PI, STD_FLOOR, STD_SHIFT

DRAW_LIMIT = math.atanh(1 - 1e-6)
"""Draws are kept within ± this before they are squashed, where single precision still tells tanh
from 1 (as TorchRL's `TanhNormal` keeps them)."""


def std_of_output(outputs: Tensor) -> Tensor:
    """softplus(output + shift) + floor, TorchRL's `biased_softplus_1.0`."""
    shifted = outputs + STD_SHIFT
    return shifted.clamp(min=0) + torch.log1p(torch.exp(-shifted.abs())) + STD_FLOOR


def std_of_output_numpy(outputs: NDArray) -> NDArray:
    """The same for the step loop."""
    # Contiguous first: the last bits must not depend on how far apart the numbers lie.
    shifted = np.add(outputs, outputs.dtype.type(STD_SHIFT), order="C")
    std = np.log1p(np.exp(-np.abs(shifted)))
    std += np.maximum(shifted, 0)
    std += outputs.dtype.type(STD_FLOOR)
    return std


def std_slope(outputs: Tensor) -> Tensor:
    """The derivative of `std_of_output`: sigmoid(output + shift)."""
    # tanh has the same bits wherever an element stands in the tensor; torch.sigmoid has not.
    return torch.tanh((outputs + STD_SHIFT) * 0.5).add_(1.0).mul_(0.5)


def gaussian_log_probs(z: Tensor, log_std: Tensor) -> Tensor:
    """Log-densities [S, B] of a diagonal Gaussian at z = (action − mean) / std.

    Args:
        z: [S, B, A].
        log_std: [S, 1 or B, A].
    """
    normalizers = (log_std + LOG_SQRT_2PI).sum(2)
    return torch.square(z).sum(-1).mul_(-0.5).sub_(normalizers)


def log_slope(draws: Tensor) -> Tensor:
    """log(d tanh(u) / du) = log(1 − tanh²(u)), elementwise, in a form that does not cancel."""
    size = draws.abs()
    return 2 * (math.log(2) - size - torch.log1p(torch.exp(-2 * size)))


def squash(draws: NDArray, low: NDArray, high: NDArray) -> NDArray:
    """Draws [..., A], of any size, as actions within the box from `low` to `high` [A]."""
    actions = np.tanh(draws)
    actions *= (high - low) / 2
    actions += (high + low) / 2
    return actions
