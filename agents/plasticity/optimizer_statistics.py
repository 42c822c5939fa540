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


@torch.no_grad()
def utility_statistics(utilities: Tensors) -> dict[str, Tensor]:
    """`utility_mean` and `utility_max` of the (bias-corrected) utility traces of UPGD."""
    rows = _rows(utilities)
    return {"utility_mean": rows.mean(-1), "utility_max": _finite_or_nan(rows, rows.amax(-1))}


@torch.no_grad()
def scaled_utility_statistics(scaled_utilities: Tensors) -> dict[str, Tensor]:
    """Quartiles of the scaled utility s and `protected_fraction`, the share with s > 0.6.

    The quartiles are `scaled_utility_q25`, `scaled_utility_q50`, `scaled_utility_q75`,
    interpolated linearly.
    """
    rows = _rows(scaled_utilities)
    # NumPy selects where torch.quantile sorts; a NaN makes its row's quartiles NaN.
    quartiles = torch.from_numpy(np.quantile(rows.cpu().numpy(), [0.25, 0.5, 0.75], axis=1))
    protected = (rows > PROTECTED_ABOVE).double().mean(-1)
    results = {
        f"scaled_utility_q{percent}": quartile
        for percent, quartile in zip((25, 50, 75), quartiles, strict=True)
    }
    results["protected_fraction"] = protected
    return {name: _finite_or_nan(rows, value.to(rows.device)) for name, value in results.items()}


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
