"""Statistics of stacked weight tensors: [S, out, in] or any [S, …] → [S], in float64.

Each takes one tensor or a sequence of tensors, and a sequence is treated as one long vector per
member: that is how the statistics of a whole network are had. A member with a non-finite entry
gets NaN, and no other member does.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from upgd_ppo.agents.plasticity import spectrum

Tensors = Tensor | Sequence[Tensor]


def weight_l2(weights: Tensors) -> Tensor:
    """‖W‖₂ over all entries (the Frobenius norm of a matrix)."""
    squares = _over_entries(weights, lambda w: w.square().sum(-1))
    return _finite_or_nan(squares.sum(0).sqrt())


def weight_mean_abs(weights: Tensors) -> Tensor:
    """Mean |w|."""
    total = _over_entries(weights, lambda w: w.abs().sum(-1)).sum(0)
    return _finite_or_nan(total / _entries_per_member(weights))


def weight_max_abs(weights: Tensors) -> Tensor:
    """Largest |w|."""
    return _finite_or_nan(_over_entries(weights, lambda w: w.abs().amax(-1)).amax(0))


def weight_rank(weight: Tensor) -> Tensor:
    """Effective rank (Roy & Vetterli, 2007) of matrices: [..., out, in] → [...]."""
    return spectrum.effective_rank_of(spectrum.singular_values(weight))


def distance_from_init(weights: Tensors, initial: Tensors) -> Tensor:
    """‖W − W₀‖₂ / ‖W₀‖₂; 0 where nothing moved, infinite where it moved away from W₀ = 0."""
    return _ratio(_distance(weights, initial), weight_l2(initial))


def update_ratio(weights: Tensors, previous: Tensors) -> Tensor:
    """‖W after − W before the iteration‖₂ / ‖W after‖₂; 0 where nothing moved."""
    return _ratio(_distance(weights, previous), weight_l2(weights))


def gradient_l2(gradients: Tensors) -> Tensor:
    """‖g‖₂ of the last minibatch's gradient before clipping."""
    return weight_l2(gradients)


def gradient_zero_fraction(gradients: Tensors) -> Tensor:
    """Share of gradient entries that are exactly zero."""
    zeros = _over_entries(gradients, lambda g: (g == 0).double().sum(-1)).sum(0)
    fraction = zeros / _entries_per_member(gradients)
    return torch.where(weight_l2(gradients).isnan(), torch.nan, fraction)


def _listed(tensors: Tensors) -> list[Tensor]:
    return [tensors] if isinstance(tensors, Tensor) else list(tensors)


def _over_entries(tensors: Tensors, reduce: Callable[[Tensor], Tensor]) -> Tensor:
    """Reduce each tensor's entries per member: → [number of tensors, S]."""
    return torch.stack([reduce(tensor.double().flatten(1)) for tensor in _listed(tensors)])


def _entries_per_member(tensors: Tensors) -> int:
    return sum(tensor[0].numel() for tensor in _listed(tensors))


def _distance(weights: Tensors, reference: Tensors) -> Tensor:
    pairs = list(zip(_listed(weights), _listed(reference), strict=True))
    if any(w.shape != r.shape for w, r in pairs):
        raise ValueError(
            "The weights and the weights they are compared with differ in shape: "
            f"{[tuple(w.shape) for w, _ in pairs]} and {[tuple(r.shape) for _, r in pairs]}."
        )
    return weight_l2([w.double() - r.double() for w, r in pairs])


def _ratio(distance: Tensor, norm: Tensor) -> Tensor:
    return torch.where(distance == 0, distance + 0 * norm, distance / norm)


def _finite_or_nan(values: Tensor) -> Tensor:
    return torch.where(values.isfinite(), values, torch.nan)
