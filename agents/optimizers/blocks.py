"""The machinery under the UPGD family: a step is a few passes over tiles that stay in cache.

A network has many small tensors, and calling an operation on each of them costs more than its
arithmetic. So parameters of one group are laid side by side as one row of weights per member
(one row in all for an ordinary model), and the row is worked on in tiles. A large tensor is worked
on in place; small, low-precision and non-contiguous ones are gathered into a float row before the
step and scattered after it. Traces live in such rows all the time; `optimizer.state[p]` holds
views of them in the parameter's shape.

A member's row is worked on alone and draws from its own generator, so its bits do not depend on
how many other members there are.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor

TILE = 16384
"""Weights per tile on the CPU: a tile's weights, gradients and traces then fit in L2 cache."""

Group = dict[str, Any]


def works_in_place(p: Tensor) -> bool:
    """Whether a step may compute on the parameter itself, in its own type."""
    return p.dtype in (torch.float32, torch.float64) and p.is_contiguous()


class Tile:
    """Some columns of some rows of a bucket, all [rows, columns].

    Attributes:
        weights, gradients, curvature: what the step reads and writes.
        state: traces by name.
        scratch: three tensors to overwrite.
        noise: the user's own noise, where the optimizer has such a function.
        generators: one per row.
    """

    weights: Tensor
    gradients: Tensor
    curvature: Tensor
    noise: Tensor

    def __init__(
        self,
        bucket: Bucket,
        state: dict[str, Tensor],
        scratch: list[Tensor],
        generators: Sequence[torch.Generator | None],
    ) -> None:
        self.bucket = bucket
        self.state = state
        self.scratch = scratch
        self.generators = generators


class Bucket:
    """Parameters with one group, step count, type and device, side by side as [rows, columns].

    Attributes:
        row_shapes: for each parameter the shape of one row's part, at least one-dimensional.
        spans: for each parameter its first column, and the one after its last.
        packed: whether weights and gradients are copied to rows of their own for the step, instead
            of being worked on where they are (possible for a single contiguous parameter).
        coefficients: what the optimizer derives from settings and step count, once a step.
    """

    coefficients: Any

    def __init__(self, group: Group, params: list[Tensor], step: int, members: bool) -> None:
        self.group = group
        self.params = params
        self.step = step
        self.packed = len(params) > 1 or not works_in_place(params[0])
        self.rows = rows = params[0].shape[0] if members else 1
        self.row_shapes = [tuple(p.shape[int(members) :]) or (1,) for p in params]
        ends = [0]
        for p in params:
            ends.append(ends[-1] + p.numel() // rows)
        self.spans = list(pairwise(ends))
        self.columns = ends[-1]
        self.tiles: list[Tile] = []
        self.row_tile, self.column_tile = rows, self.columns
        self._buffers: dict[str, tuple[Tensor, list[Tensor]]] = {}

    def zeros(self, rows: int, columns: int) -> Tensor:
        """A new tensor of the type that the step computes in."""
        p = self.params[0]
        dtype = torch.float64 if p.dtype == torch.float64 else torch.float32
        return torch.zeros(rows, columns, dtype=dtype, device=p.device)

    def views(self, flat: Tensor) -> list[Tensor]:
        """Views of [rows, columns] in the parameters' shapes."""
        return [
            flat[:, start:end].view(p.shape)
            for p, (start, end) in zip(self.params, self.spans, strict=True)
        ]

    def pieces(self, flat: Tensor) -> list[Tensor]:
        """[rows, columns] cut into tiles, row by row."""
        if len(self.tiles) == 1:
            return [flat]
        return [
            piece
            for row in flat.split(self.row_tile)
            for piece in row.split(self.column_tile, dim=1)
        ]

    def load(self, attribute: str, tensors: list[Tensor]) -> None:
        """Hand tensors in the parameters' shapes to the tiles, as their `attribute`."""
        if not self.packed:
            flat = tensors[0].detach().reshape(self.rows, self.columns)
        else:
            if attribute not in self._buffers:
                flat = self.zeros(self.rows, self.columns)
                self._buffers[attribute] = flat, self.views(flat)
                self._assign(attribute, flat)
            torch._foreach_copy_(self._buffers[attribute][1], tensors)
            return
        self._assign(attribute, flat)

    def store(self) -> None:
        """Write the weights back to where they came from."""
        if self.packed:
            torch._foreach_copy_(self.params, self._buffers["weights"][1])

    def _assign(self, attribute: str, flat: Tensor) -> None:
        for tile, piece in zip(self.tiles, self.pieces(flat), strict=True):
            setattr(tile, attribute, piece)
