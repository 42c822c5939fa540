"""Populations: optimizers that know no member axis, and optimizer state cut by member."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor


class PerMember:
    """S instances of an optimizer, one per member, behind the interface of one.

    Args:
        parameters: tensors [S, …] of a population.
        make: (one member's tensors, its number) → its optimizer.

    Attributes:
        instances: the S optimizers.
        param_groups: the groups of all of them; set "lr" in each to set it for all.
    """

    def __init__(
        self,
        parameters: Sequence[Tensor],
        make: Callable[[list[Tensor], int], torch.optim.Optimizer],
    ) -> None:
        self.parameters = list(parameters)
        members = self.parameters[0].shape[0]
        self.member_parameters = [
            [p.detach()[k].requires_grad_() for p in self.parameters] for k in range(members)
        ]
        self.instances = [make(own, k) for k, own in enumerate(self.member_parameters)]

    @property
    def param_groups(self) -> list[dict[str, Any]]:
        return [group for instance in self.instances for group in instance.param_groups]

    def step(self) -> None:
        """One step of every member, with row k of every parameter's gradient for member k."""
        for k, (own, instance) in enumerate(
            zip(self.member_parameters, self.instances, strict=True)
        ):
            for mine, p in zip(own, self.parameters, strict=True):
                mine.grad = None if p.grad is None else p.grad[k]
            instance.step()

    def zero_grad(self, set_to_none: bool = True) -> None:
        """Reset the gradients of the population's parameters."""
        for p in self.parameters:
            if set_to_none:
                p.grad = None
            elif p.grad is not None:
                p.grad.zero_()
        for instance in self.instances:
            instance.zero_grad(set_to_none)

    def state_dict(self) -> dict[str, Any]:
        """One state dict per member."""
        return {"members": [instance.state_dict() for instance in self.instances]}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Load what `state_dict` gave."""
        for instance, state in zip(self.instances, state_dict["members"], strict=True):
            instance.load_state_dict(state)
