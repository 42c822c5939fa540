"""The noise that perturbs weights: normal, Cauchy, or the user's own."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import torch
from torch import Tensor

from upgd_ppo.agents.kernels import switch

NOISES = ("normal", "cauchy")

NoiseFunction = Callable[[Tensor], Tensor]
"""Parameter → noise of the parameter's shape, before it is scaled by sigma."""

Generators = torch.Generator | Sequence[torch.Generator] | None


def fill_with_noise(
    out: Tensor, kind: str, scale: float, generators: Sequence[torch.Generator | None]
) -> Tensor:
    """Fill `out` [rows, columns] in place with `scale` times noise, row r from `generators[r]`.

    The compiled kernels draw normal noise with a generator of their own, which every row's
    generator gives a new key: other numbers, of the same distribution.

    Args:
        kind: "normal", or "cauchy", whose mean and variance do not exist: unless it is clipped, a
            single draw can throw a weight arbitrarily far.
    """
    fill_with_normals = switch.choose(
        "fill_with_normals", out, kind=kind, contiguous=out.is_contiguous()
    )
    if fill_with_normals:
        keys = torch.empty(len(out), 2, dtype=torch.int32)
        for key, generator in zip(keys.unbind(), generators, strict=True):
            key.random_(-(2**31), 2**31, generator=generator)
        fill_with_normals(out.numpy(), keys.numpy().view(np.uint32), np.float32(scale))
        return out
    for row, generator in zip(out.unbind(), generators, strict=True):
        if kind == "cauchy":
            row.cauchy_(0.0, scale, generator=generator)
        else:
            row.normal_(0.0, scale, generator=generator)
    return out
