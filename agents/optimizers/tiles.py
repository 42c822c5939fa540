"""Parameters side by side as rows of weights, cut into tiles.

A network has many small tensors, and calling an operation on each of them costs more than its
arithmetic. So parameters of one group are laid side by side as one row of weights per member
(one row in all for an ordinary model), and a step is a few passes over tiles of such rows that
stay in cache. A large tensor is worked on where it is; small, low-precision and non-contiguous
ones are gathered into rows before the step and scattered after it. Traces live in rows all the
time; `optimizer.state[p]` holds views of them in the parameter's shape.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor

TILE = 2**18
"""Weights per tile on a CPU: enough to make calls cheap, few enough to stay in cache."""

SMALL = 2**14
"""Tensors of fewer weights are gathered."""

LANES = 64
"""Gathered rows are a multiple of this long. A vectorised operation treats the last elements of a
tensor apart, with other rounding; in rows of whole vectors a weight's bits cannot depend on how
many other rows there are."""

Group = dict[str, Any]


class Tile:
    """Some columns of some rows of a bucket; all tensors are [rows, columns].

    Attributes:
        weights, gradients, curvature: what the step reads and writes.
        noise: the user's own noise, where the optimizer has a function for it.
        state: traces by name.
        scratch: three tensors to overwrite.
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
    """Parameters of one group, step count, type and device, side by side as [rows, columns].

    Args:
        group: their settings.
        params: one contiguous parameter to be worked on where it is, or any number to be gathered.
        step: how many steps they have taken.
        members: whether axis 0 of each parameter is the member axis.

    Attributes:
        row_shapes: for each parameter the shape of one row's part, at least one-dimensional.
        spans: for each parameter its first column, and the one after its last.
    """

    def __init__(self, group: Group, params: list[Tensor], step: int, members: bool) -> None:
        self.group = group
        self.params = params
        self.step = step
        self.rows = rows = params[0].shape[0] if members else 1
        self.row_shapes = [tuple(p.shape[int(members) :]) or (1,) for p in params]
        ends = [0]
        for p in params:
            ends.append(ends[-1] + p.numel() // rows)
        self.spans = list(pairwise(ends))
        self.gathered = len(params) > 1 or not works_in_place(params[0], members)
        self.columns = -(-ends[-1] // LANES) * LANES if self.gathered else ends[-1]
        self.tiles: list[Tile] = []
        self._buffers: dict[str, tuple[Tensor, list[Tensor]]] = {}
        self._scalars: dict[str, tuple[float, Tensor]] = {}

    def holds(self, group: Group, p: Tensor, step: int) -> bool:
        """Whether a parameter that was put here still belongs here."""
        first = self.params[0]
        return (
            group is self.group
            and step == self.step
            and p.dtype == first.dtype
            and p.device == first.device
            and (self.gathered or p.is_contiguous())
        )

    def make_tiles(
        self,
        traces: dict[str, Tensor],
        generators: Sequence[torch.Generator | None],
        rows_per_tile: int,
        splits_rows: bool,
    ) -> None:
        """Cut the rows into tiles.

        Args:
            traces: name → [rows, columns].
            generators: one per row.
            rows_per_tile: at most.
            splits_rows: a row may be cut in several tiles.
        """
        self._row_tile, self._column_tile = min(self.rows, rows_per_tile), self.columns
        if splits_rows and self.params[0].device.type == "cpu":
            self._column_tile = min(TILE, self.columns)
        scratch = [self.zeros(self._row_tile, self._column_tile) for _ in range(3)]
        self.tiles = []
        for row in range(0, self.rows, self._row_tile):
            for column in range(0, self.columns, self._column_tile):
                rows = slice(row, min(row + self._row_tile, self.rows))
                columns = slice(column, min(column + self._column_tile, self.columns))
                state = {name: trace[rows, columns] for name, trace in traces.items()}
                shape = rows.stop - rows.start, columns.stop - columns.start
                workspace = [s[: shape[0], : shape[1]] for s in scratch]
                self.tiles.append(Tile(self, state, workspace, generators[rows]))

    def tiles_by_row(self) -> list[list[Tile]]:
        """The tiles, those of the same rows together."""
        count = -(-self.columns // self._column_tile)
        return [self.tiles[i : i + count] for i in range(0, len(self.tiles), count)]

    def zeros(self, rows: int, columns: int) -> Tensor:
        """A new tensor of the type that the step computes in."""
        return torch.zeros(rows, columns, dtype=self._dtype, device=self.params[0].device)

    def scalar(self, name: str, value: float, dtype: torch.dtype | None = None) -> Tensor:
        """`value` as a 0-dimensional tensor; arithmetic with it is cheaper than with a number."""
        if name not in self._scalars:
            device = self.params[0].device
            tensor = torch.tensor(value, dtype=dtype or self._dtype, device=device)
            self._scalars[name] = value, tensor
        elif self._scalars[name][0] != value:
            self._scalars[name] = value, self._scalars[name][1].fill_(value)
        return self._scalars[name][1]

    def views(self, rows: Tensor) -> list[Tensor]:
        """Views of [rows, columns] in the parameters' shapes."""
        return [
            rows[:, start:end].view(p.shape)
            for p, (start, end) in zip(self.params, self.spans, strict=True)
        ]

    def part(self, rows: Tensor, index: int) -> Tensor:
        """What belongs to one parameter in a tile of uncut rows: a view [rows, *row_shape]."""
        start, end = self.spans[index]
        return rows[:, start:end].unflatten(1, self.row_shapes[index])

    def load(self, attribute: str, tensors: list[Tensor]) -> None:
        """Hand tensors in the parameters' shapes to the tiles, as their `attribute`."""
        if not self.gathered:
            # Weights, to be written, are contiguous already; fused kernels need gradients to be.
            rows = tensors[0].detach().reshape(self.rows, self.columns).contiguous()
            self._assign(attribute, rows)
            return
        if attribute not in self._buffers:
            buffer = self.zeros(self.rows, self.columns)
            self._buffers[attribute] = buffer, self.views(buffer)
            self._assign(attribute, buffer)
        torch._foreach_copy_(self._buffers[attribute][1], tensors)

    def store(self) -> None:
        """Write the weights back to where they were gathered from."""
        if self.gathered:
            torch._foreach_copy_(self.params, self._buffers["weights"][1])

    @property
    def _dtype(self) -> torch.dtype:
        return torch.float64 if self.params[0].dtype == torch.float64 else torch.float32

    def pieces(self, rows: Tensor) -> list[Tensor]:
        """[rows, columns] cut like the tiles."""
        if len(self.tiles) == 1:
            return [rows]
        return [
            piece
            for row in rows.split(self._row_tile)
            for piece in row.split(self._column_tile, dim=1)
        ]

    def _assign(self, attribute: str, rows: Tensor) -> None:
        for tile, piece in zip(self.tiles, self.pieces(rows), strict=True):
            setattr(tile, attribute, piece)


def works_in_place(p: Tensor, members: bool) -> bool:
    """Whether a step can compute on the parameter itself."""
    whole_vectors = not members or (p.numel() // p.shape[0]) % LANES == 0
    return p.dtype in (torch.float32, torch.float64) and p.is_contiguous() and whole_vectors
