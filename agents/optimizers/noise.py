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
    out: Tensor,
    kind: str,
    scale: float,
    clip: float | None,
    generators: Sequence[torch.Generator | None],
) -> Tensor:
    """Fill `out` [rows, columns] with `scale` times noise, row r drawn from `generators[r]`.

    Args:
        kind: "normal", or "cauchy", whose mean and variance do not exist: without `clip` a single
            draw can throw a weight arbitrarily far.
        clip: draws are clamped to ±clip before scaling; None leaves them as they are.
    """
    rows = (out,) if len(generators) == 1 else out.unbind()
    for row, generator in zip(rows, generators, strict=True):
        if kind == "cauchy":
            row.cauchy_(generator=generator)
        else:
            row.normal_(0.0, scale if clip is None else 1.0, generator=generator)
    if kind == "normal" and clip is None:
        return out
    return clip_and_scale(out, scale, clip)


def clip_and_scale(noise: Tensor, scale: float, clip: float | None) -> Tensor:
    """Clamp noise to ±clip where there is one, then multiply it by `scale`, in place."""
    if clip is not None:
        noise.clamp_(-clip, clip)
    return noise.mul_(scale)
