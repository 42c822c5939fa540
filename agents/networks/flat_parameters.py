"""All parameters of a population in one flat buffer, and its gradients in another."""

from __future__ import annotations

import math

import torch
from torch import Tensor

ROW_ALIGNMENT = 64


class FlatParameters:
    """Named tensors [S, …] that are views of one flat buffer [S, D], and their gradients.

    D is padded with zeros to a multiple of 64, so that every member's row meets the same vector
    lanes however many members there are. The padding has no gradient and no name.

    Args:
        shapes: name → shape of one member's tensor.
        num_members: S.
    """

    def __init__(
        self,
        shapes: dict[str, tuple[int, ...]],
        num_members: int,
        dtype: torch.dtype = torch.float32,
        device: torch.device | str = "cpu",
    ) -> None:
        self.shapes = shapes
        self.num_parameters = sum(math.prod(shape) for shape in shapes.values())
        width = -(-self.num_parameters // ROW_ALIGNMENT) * ROW_ALIGNMENT
        self.data = torch.zeros(num_members, width, dtype=dtype, device=device)
        self.gradient = torch.zeros_like(self.data)
        self.views = self.named_views(self.data)
        self.gradient_views = self.named_views(self.gradient)

    def named_views(self, flat: Tensor) -> dict[str, Tensor]:
        """Views [S, …] by name of any tensor [S, D] laid out like the parameters."""
        views, offset = {}, 0
        for name, shape in self.shapes.items():
            size = math.prod(shape)
            views[name] = flat[:, offset : offset + size].view(len(flat), *shape)
            offset += size
        return views
