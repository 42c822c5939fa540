"""What an optimizer remembers of every weight, readable and writable, however it is made.

Adam remembers two moments of a weight's gradient, UPGD its utility, SGD its momentum. Statistics
read them; a method that gives a unit new weights clears them. Where they lie depends on how the
optimizer was given the parameters: one buffer for a whole population, stacked tensors, one instance
per member, or an ordinary model. `Memory` is the one place that knows.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

BEGINS_WITH: dict[str, Callable[[Place], Tensor | float]] = {
    "initial": lambda place: place.parameter,  # L2Init
    "ax": lambda place: place.parameter,  # ASGD's average
    "step_size": lambda place: place.group["lr"],  # Rprop
    "sum": lambda place: place.group.get("initial_accumulator_value", 0.0),  # Adagrad
}
"""What an optimizer remembers of a weight that it has never stepped, where that is not zero."""


@dataclass(frozen=True)
class Place:
    """Where an optimizer keeps what it remembers of one named parameter of some members.

    Attributes:
        optimizer: who remembers.
        parameter: the tensor that it was given; the key of `optimizer.state`.
        view: a tensor of that one's shape → the named parameter's part of it, [members, …].
    """

    optimizer: torch.optim.Optimizer
    parameter: Tensor
    view: Callable[[Tensor], Tensor]

    @property
    def state(self) -> dict[str, Any]:
        """What the optimizer keeps; empty before its first step."""
        return self.optimizer.state.get(self.parameter, {})

    @property
    def group(self) -> dict[str, Any]:
        """The settings that the parameter is stepped with."""
        for group in self.optimizer.param_groups:
            if any(parameter is self.parameter for parameter in group["params"]):
                return group
        raise KeyError("The optimizer does not step this parameter.")

    @property
    def weightwise(self) -> dict[str, Tensor]:
        """What is kept weight by weight, by kind: views [members, …] that can be written."""
        shape = self.parameter.shape
        return {
            kind: self.view(value)
            for kind, value in self.state.items()
            # Of a parameter without dimensions, a count of steps would look the same.
            if isinstance(value, Tensor)
            and value.shape == shape
            and value.ndim
            and value.is_floating_point()
        }

    def forget(self, kind: str, where: Tensor) -> None:
        """Set some weights' memory, where [members, …], to what it is before the first step."""
        memory = self.view(self.state[kind])
        if kind in getattr(self.optimizer, "unitwise", ()) and memory.ndim > 2:
            where = where.expand_as(memory).all(-1, keepdim=True)
        begins = BEGINS_WITH[kind](self) if kind in BEGINS_WITH else 0.0
        if isinstance(begins, Tensor) and begins.ndim:
            begins = self.view(begins)
        memory.copy_(torch.where(where, begins, memory))


class Memory:
    """What is remembered of the parameters of S members (of one, for an ordinary model).

    Kinds are the optimizer's own words: "exp_avg" and "exp_avg_sq" (Adam), "utility" (UPGD),
    "momentum_buffer" (SGD), "square_avg" (RMSprop), ….

    Args:
        places: parameter name → where it is remembered, one place for each block of members in
            order.
    """

    def __init__(self, places: Mapping[str, Sequence[Place]]) -> None:
        self._places = places

    @classmethod
    def of_model(
        cls, optimizers: Iterable[torch.optim.Optimizer], parameters: Mapping[str, Tensor]
    ) -> Memory:
        """The memory of ordinary optimizers: every tensor gets a member axis of length 1.

        Args:
            optimizers: who step the parameters; a parameter that none of them steps has no memory.
            parameters: by name, as `named_parameters()` gives them.
        """
        owners = {
            id(parameter): optimizer
            for optimizer in optimizers
            for group in optimizer.param_groups
            for parameter in group["params"]
        }
        return cls(
            {
                name: [Place(owners[id(parameter)], parameter, lambda tensor: tensor[None])]
                for name, parameter in parameters.items()
                if id(parameter) in owners
            }
        )

    @classmethod
    def joined(cls, memories: Iterable[Memory]) -> Memory:
        """One memory of what optimizers of different parameters of the same members remember."""
        return cls({name: where for memory in memories for name, where in memory._places.items()})

    @property
    def names(self) -> list[str]:
        """The parameters that an optimizer steps."""
        return list(self._places)

    def kinds(self, name: str) -> list[str]:
        """What is remembered of every weight of a parameter; nothing before the first step."""
        first, *others = (place.weightwise for place in self._places[name])
        return [kind for kind in first if all(kind in other for other in others)]

    def read(self, name: str, kind: str) -> Tensor:
        """What is remembered of a parameter, [S, …].

        Raises:
            KeyError: if nothing of that kind is.
        """
        return _joined([place.weightwise[kind] for place in self._places[name]])

    @torch.no_grad()
    def clear(self, name: str, where: Tensor) -> None:
        """Forget some weights of a parameter, as if the optimizer had never seen them.

        Write new weights before: one that pulls toward where they began takes those that it finds.
        The count of steps is the parameter's, not the weight's, and stays. What is kept of whole
        units (`unitwise` of an optimizer's class) is forgotten where all incoming weights are.

        Args:
            where: bool, of a shape that broadcasts to the parameter's [S, …].
        """
        start = 0
        for place in self._places.get(name, ()):
            members = len(place.view(place.parameter))
            part = where[start : start + members] if len(where) > 1 else where
            for kind in place.weightwise:
                place.forget(kind, part)
            start += members

    # ── What follows from it ────────────────────────────────────────────────────────────────────

    def utilities(self) -> dict[str, Tensor]:
        """UPGD's bias-corrected utilities û of every weight, by parameter name: [S, …]."""
        return self._derived(_utility)

    def scaled_utilities(self) -> dict[str, Tensor]:
        """UPGD's scaled utilities s of every weight, by parameter name: [S, …]."""
        scaled = {
            id(place.optimizer): place.optimizer.utilities()
            for places in self._places.values()
            for place in places
            if hasattr(place.optimizer, "utilities")
        }
        return self._derived(lambda place: scaled.get(id(place.optimizer), {}).get(place.parameter))

    def directions(self) -> dict[str, Tensor]:
        """m̂/(√v̂ + eps) of whatever keeps Adam's moments, by parameter name: [S, …]."""
        return self._derived(_direction)

    def _derived(self, of: Callable[[Place], Tensor | None]) -> dict[str, Tensor]:
        """What `of` makes of each place, for the parameters where it makes something."""
        # A flat buffer is one place for many names: computed once.
        computed: dict[tuple[int, int], Tensor | None] = {}
        results = {}
        for name, places in self._places.items():
            parts = []
            for place in places:
                key = id(place.optimizer), id(place.parameter)
                if key not in computed:
                    computed[key] = of(place)
                value = computed[key]
                parts.append(None if value is None else place.view(value))
            known = [part for part in parts if part is not None]
            if len(known) == len(parts):
                results[name] = _joined(known)
        return results


def adam_direction(
    exp_avg: Tensor,
    exp_avg_sq: Tensor,
    step: Tensor | int,
    betas: tuple[float, float] = (0.9, 0.999),
    eps: float = 1e-5,
) -> Tensor:
    """m̂/(√v̂ + eps), what Adam multiplies the learning rate with, from its uncorrected moments.

    Args:
        exp_avg: first moment, of any shape.
        exp_avg_sq: second moment.
        step: number of steps taken, ≥ 1; a tensor [S] when members differ.

    Source: Kingma & Ba (2015), Algorithm 1.

    Raises:
        ValueError: if no step has been taken.
    """
    steps = torch.as_tensor(step, dtype=torch.float64, device=exp_avg.device)
    if (steps < 1).any():
        raise ValueError("Adam's direction needs at least one step; measure after the first step.")
    steps = steps.reshape(steps.shape + (1,) * (exp_avg.ndim - steps.ndim))
    first = exp_avg.double() / (1 - betas[0] ** steps)
    second = exp_avg_sq.double() / (1 - betas[1] ** steps)
    return first / (second.sqrt() + eps)


def _utility(place: Place) -> Tensor | None:
    state, group = place.state, place.group
    if not state.get("step") or "utility" not in state or "beta_utility" not in group:
        return None
    return state["utility"] / (1 - group["beta_utility"] ** state["step"])


def _direction(place: Place) -> Tensor | None:
    state, group = place.state, place.group
    if (
        not {"exp_avg", "exp_avg_sq", "step"} <= state.keys()
        or not {"betas", "eps"} <= group.keys()
    ):
        return None
    if not torch.as_tensor(state["step"]).all():
        return None
    return adam_direction(
        state["exp_avg"], state["exp_avg_sq"], state["step"], group["betas"], group["eps"]
    )


def _joined(parts: Sequence[Tensor]) -> Tensor:
    return parts[0] if len(parts) == 1 else torch.cat(list(parts))
