"""What the optimizer does to a layer: utilities and protection (UPGD), step sizes (Adam).

Arguments are tensors [S, …] or sequences of them, as in `weights.py`; results are float64 [S],
with NaN for a member that has a non-finite entry.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from upgd_ppo.agents.plasticity.weights import Tensors, weight_mean_abs

PROTECTED_ABOVE = 0.6

QUARTILES = (25, 50, 75)


def utility_mean(utilities: Tensors) -> Tensor:
    """Mean of the (bias-corrected) utility traces of UPGD."""
    return _rows(utilities).mean(-1)


def utility_max(utilities: Tensors) -> Tensor:
    """Largest of the (bias-corrected) utility traces of UPGD."""
    rows = _rows(utilities)
    return _finite_or_nan(rows, rows.amax(-1))


def utility_quartiles(scaled_utilities: Tensors) -> Tensor:
    """Quartiles [3, S] of the scaled utility s, interpolated linearly."""
    rows = _rows(scaled_utilities)
    # NumPy selects where torch.quantile sorts; a NaN makes its row's quartiles NaN.
    shares = [percent / 100 for percent in QUARTILES]
    quartiles = torch.from_numpy(np.quantile(rows.cpu().numpy(), shares, axis=1))
    return _finite_or_nan(rows, quartiles.to(rows.device))


def protected_fraction(scaled_utilities: Tensors) -> Tensor:
    """Share of weights with a scaled utility s > 0.6, which are held still."""
    rows = _rows(scaled_utilities)
    return _finite_or_nan(rows, (rows > PROTECTED_ABOVE).double().mean(-1))


def effective_step(directions: Tensors) -> Tensor:
    """Mean |m̂/(√v̂ + eps)|, given that direction (see `optimizers.memory.adam_direction`)."""
    return weight_mean_abs(directions)


def plasticity(loss_before: Tensor, loss_after: Tensor) -> Tensor:
    """How much of a minibatch's loss one step on it removed: clip(1 − after/before, 0, 1).

    Losses must be non-negative; a loss below 1e-8 counts as 1e-8. Non-finite losses give NaN.

    Source: Elsayed & Mahmood (2024).

    Raises:
        ValueError: if a loss is negative.
    """
    before, after = loss_before.double(), loss_after.double()
    if (before < 0).any() or (after < 0).any():
        raise ValueError(
            "Plasticity is defined for non-negative losses, but a negative one was given; use the "
            "value loss or a supervised loss, not the policy loss."
        )
    result = (1 - after / before.clamp(min=1e-8)).clamp(0, 1)
    return torch.where(before.isfinite() & after.isfinite(), result, torch.nan)


def _rows(tensors: Tensors) -> Tensor:
    if isinstance(tensors, Tensor):
        tensors = [tensors]
    return torch.cat([tensor.flatten(1) for tensor in tensors], dim=1).double()


def _finite_or_nan(rows: Tensor, values: Tensor) -> Tensor:
    return torch.where(rows.sum(-1).isfinite(), values, torch.nan)
