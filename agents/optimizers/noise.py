"""The noise that perturbs weights: normal, Cauchy, or the user's own."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

NOISES = ("normal", "cauchy")

NoiseFunction = Callable[[Tensor], Tensor]
"""Parameter → noise of the parameter's shape, before it is scaled by sigma."""

Generators = torch.Generator | Sequence[torch.Generator] | None


def fill_with_noise(
    out: Tensor, kind: str, scale: float, generators: Sequence[torch.Generator | None]
) -> Tensor:
    """Fill `out` [rows, columns] in place with `scale` times noise, row r from `generators[r]`.

    Args:
        kind: "normal", or "cauchy", whose mean and variance do not exist: unless it is clipped, a
            single draw can throw a weight arbitrarily far.
    """
    for row, generator in zip(out.unbind(), generators, strict=True):
        if kind == "cauchy":
            row.cauchy_(0.0, scale, generator=generator)
        else:
            row.normal_(0.0, scale, generator=generator)
    return out
