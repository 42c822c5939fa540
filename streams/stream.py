"""The contract of a stream: an endless sequence of samples for each of S members."""

from __future__ import annotations

from typing import Any, ClassVar, Protocol

import torch
from torch import Tensor


class Stream(Protocol):
    """What a supervised learner learns. The learner's loss is the mean squared error.

    Everything of a member's sequence is drawn from its own generator, on the CPU, and nothing
    reduces over the member axis: a sequence is the same whatever learns from it, and however many
    members there are.

    Attributes:
        input_size: numbers that a sample consists of.
        output_size: numbers that are to be predicted.
    """

    input_size: ClassVar[int]
    output_size: ClassVar[int]

    def __init__(self, generators: list[torch.Generator], change_every: int) -> None:
        """Begin the sequences; what is taught changes after every so many samples."""

    def draw(self, count: int) -> tuple[Tensor, Tensor]:
        """The next samples: inputs [S, count, inputs] and targets [S, count, outputs]."""

    def state_dict(self) -> dict[str, Any]:
        """Where the sequences are. Tensors and lists have the member axis first."""

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue from a state that `state_dict` gave."""
