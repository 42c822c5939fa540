"""The noise that perturbs weights: normal, Cauchy, or the user's own."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

NOISES = ("normal", "tabulated_normal", "cauchy")

NoiseFunction = Callable[[Tensor], Tensor]
"""Parameter → noise of the parameter's shape, before it is scaled by sigma."""

Generators = torch.Generator | Sequence[torch.Generator] | None

LEVELS = 2**16


class NoiseSource:
    """Fills tensors with standard noise.

    Args:
        kind: "normal"; "tabulated_normal", the normal distribution in 65 536 equally likely values
            (variance 1, none beyond 4.4), which on a CPU costs about half as much to draw;
            "cauchy", whose mean and variance do not exist: unless it is clipped, a single draw can
            throw a weight arbitrarily far.
    """

    def __init__(self, kind: str) -> None:
        self.kind = kind
        self._bits = torch.empty(0, 0, dtype=torch.int64)
        self._indices = torch.empty(0, dtype=torch.int64)

    def fill(self, out: Tensor, generators: Sequence[torch.Generator | None]) -> Tensor:
        """Fill `out` [rows, columns] in place, row r drawn from `generators[r]`."""
        tabulated = self.kind == "tabulated_normal" and out.device.type == "cpu"
        bits = self._random_bits(out) if tabulated else out
        for row, generator in zip(bits.unbind(), generators, strict=True):
            if tabulated:
                row.random_(-(2**63), None, generator=generator)
            elif self.kind == "cauchy":
                row.cauchy_(generator=generator)
            else:
                row.normal_(generator=generator)
        return self._look_up(bits, out) if tabulated else out

    def _random_bits(self, out: Tensor) -> Tensor:
        """[rows, columns/4] of 64 bits each: a level for each of four weights."""
        rows, columns = out.shape
        shape = (rows, -(-columns // 4))
        if self._bits.shape != shape:
            self._bits = torch.empty(shape, dtype=torch.int64)
            self._indices = torch.empty(out.numel(), dtype=torch.int64)
        return self._bits

    def _look_up(self, bits: Tensor, out: Tensor) -> Tensor:
        levels = bits.view(torch.uint16)[:, : out.shape[1]]
        self._indices.view(out.shape).copy_(levels)
        return torch.index_select(_quantiles(out.dtype), 0, self._indices, out=out.view(-1)).view(
            out.shape
        )


@functools.cache
def _quantiles(dtype: torch.dtype) -> Tensor:
    """The normal distribution's quantiles in the middle of each level, scaled to variance 1."""
    middles = (torch.arange(LEVELS, dtype=torch.float64) + 0.5) / LEVELS
    quantiles = torch.special.ndtri(middles)
    return (quantiles / quantiles.square().mean().sqrt()).to(dtype)
