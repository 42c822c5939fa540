"""One optimizer for a whole population, however the optimizer itself is made."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from upgd_ppo.agents.optimizers.memory import Memory, Place
from upgd_ppo.agents.optimizers.registry import get


class StackedParameters(Protocol):
    """Parameters of S members: a flat buffer [S, D] and named views [S, …] of it and its gradient.

    `upgd_ppo.agents.networks.actor_critic.FlatParameters` is one.
    """

    data: Tensor
    gradient: Tensor
    views: dict[str, Tensor]
    gradient_views: dict[str, Tensor]

    def named_views(self, flat: Tensor) -> dict[str, Tensor]:
        """Views [S, …] by name of any tensor [S, D] laid out like the parameters."""


class PopulationOptimizer:
    """Steps the parameters of S members as if each had an optimizer of its own.

    How depends on what the optimizer needs (`OptimizerSpec.layout`): an elementwise one, or one
    whose reductions are told to stay within a member, gets the flat buffer [S, D] as its one
    parameter; one that needs the tensors apart gets them stacked, [S, …]; any other is made once
    per member, with ordinary tensors.

    Args:
        name: a registered name or a dotted path to a `torch.optim.Optimizer` class.
        parameters: what to step.
        learning_rate: step size.
        generators: one per member, for optimizers that draw noise.
        hyper_parameters: of the optimizer, over the registered defaults.
        one_per_member: make one instance per member in any case, a population of one, so that
            `step` can leave some members out. It moves them by the same bits.
        keep_tensors: give the optimizer the stacked tensors even where one flat one would do.

    Raises:
        ValueError: if the optimizer or one of its hyper-parameters is unknown or out of range.
    """

    def __init__(
        self,
        name: str,
        parameters: StackedParameters,
        learning_rate: float,
        generators: list[torch.Generator],
        hyper_parameters: dict[str, Any],
        one_per_member: bool = False,
        keep_tensors: bool = False,
    ) -> None:
        spec = get(name)
        hyper_parameters = spec.resolve(hyper_parameters)
        self.parameters = parameters
        self.num_members = len(parameters.data)
        self.layout = spec.layout_for(hyper_parameters)
        if keep_tensors and self.layout == "flat":
            self.layout = "stacked"
        self.one_per_member = one_per_member or self.layout == "member"
        spans = [slice(0, self.num_members)]
        if self.one_per_member:
            spans = [slice(member, member + 1) for member in range(self.num_members)]
        self._tensors = [self._parameters_of(span) for span in spans]
        self.optimizers: list[torch.optim.Optimizer] = []
        for span, tensors in zip(spans, self._tensors, strict=True):
            if self.layout == "member":
                [generator] = generators[span]
                optimizer = spec.build_one(tensors, learning_rate, generator, **hyper_parameters)
            else:
                groups: list[Any] = [{"params": tensors}]
                if self.layout == "stacked":
                    groups = _by_network(parameters.views, tensors)
                own = generators[span]
                optimizer = spec.build(groups, learning_rate, own, **hyper_parameters)
            self.optimizers.append(optimizer)

    def _parameters_of(self, span: slice) -> list[torch.nn.Parameter]:
        """What an optimizer of these members steps."""
        parameters = self.parameters
        if self.layout == "flat":
            return [_parameter(parameters.data[span], parameters.gradient[span])]
        place: slice | int = span if self.layout == "stacked" else span.start
        return [
            _parameter(view[place], parameters.gradient_views[key][place])
            for key, view in parameters.views.items()
        ]

    def set_learning_rate(self, learning_rate: float) -> None:
        """Set the step size of every member."""
        for optimizer in self.optimizers:
            for group in optimizer.param_groups:
                group["lr"] = learning_rate

    def step(self, active: NDArray | None = None) -> None:
        """One step of every member, or of those that are active, [S] bool.

        Raises:
            RuntimeError: if some are to be left out but the optimizer is not one per member.
        """
        if active is None:
            for optimizer in self.optimizers:
                optimizer.step()
        elif self.one_per_member:
            for member in np.flatnonzero(active):
                self.optimizers[member].step()
        else:
            raise RuntimeError("Leaving members out takes one optimizer per member.")

    @property
    def memory(self) -> Memory:
        """What is remembered of every weight, to read and to write."""
        return Memory(
            {name: self._places_of(index, name) for index, name in enumerate(self.parameters.views)}
        )

    def _places_of(self, index: int, name: str) -> list[Place]:
        """Where a parameter's memory lies, one place for each optimizer."""

        def view(tensor: Tensor) -> Tensor:
            if self.layout == "flat":
                return self.parameters.named_views(tensor)[name]
            return tensor if self.layout == "stacked" else tensor.unsqueeze(0)

        return [
            Place(optimizer, tensors[0 if self.layout == "flat" else index], view)
            for optimizer, tensors in zip(self.optimizers, self._tensors, strict=True)
        ]

    def describe(self) -> dict[str, dict[str, Tensor]]:
        """What the optimizer knows of every weight: kind → parameter name → [S, …].

        Kinds are "utilities" (bias-corrected) and "scaled_utilities" of UPGD, and "directions",
        m̂/(√v̂ + eps), of whatever keeps Adam's moments. What it does not have is left out.
        """
        memory = self.memory
        kinds = {
            "utilities": memory.utilities(),
            "scaled_utilities": memory.scaled_utilities(),
            "directions": memory.directions(),
        }
        return {kind: known for kind, known in kinds.items() if known}

    def state_dict(self) -> dict[str, Any]:
        """The optimizer's memory: tensors with the member axis first, or a list over members."""
        states = [_copy(optimizer.state_dict()["state"]) for optimizer in self.optimizers]
        if self.one_per_member:
            return {"members": states}
        return {"stacked": _spread(states[0], self.num_members)}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue from a state that `state_dict` gave.

        Raises:
            ValueError: if the state is that of optimizers made otherwise.
        """
        kind = "members" if self.one_per_member else "stacked"
        places = set(range(len(self._tensors[0])))
        states = state.get(kind)
        if states is not None and not self.one_per_member:
            states = [_gather(states)]
        if states is None or not all(own.keys() <= places for own in states):
            raise ValueError(
                "The saved memory of the optimizer is laid out otherwise than this one's: a run"
                " continues only with the --target-kl, or none, and the version that it began with."
            )
        for optimizer, own in zip(self.optimizers, states, strict=True):
            groups = optimizer.state_dict()["param_groups"]
            optimizer.load_state_dict({"state": own, "param_groups": groups})


_COMMON = "common"


def _parameter(tensor: Tensor, gradient: Tensor) -> torch.nn.Parameter:
    parameter = torch.nn.Parameter(tensor)
    parameter.grad = gradient
    return parameter


def _by_network(names: Iterable[str], tensors: list[torch.nn.Parameter]) -> list[dict[str, Any]]:
    """A parameter group for each network, so that neither is taken for a layer of the other."""
    groups: dict[str, list[torch.nn.Parameter]] = {}
    for name, tensor in zip(names, tensors, strict=True):
        groups.setdefault(name.partition(".")[0], []).append(tensor)
    return [{"params": group} for group in groups.values()]


def _copy(tree: Any) -> Any:
    if isinstance(tree, dict):
        return {key: _copy(value) for key, value in tree.items()}
    return tree.detach().clone() if isinstance(tree, Tensor) else tree


def _spread(tree: Any, num_members: int) -> Any:
    """Give what is common to all members (a step counter) a member axis too."""
    if isinstance(tree, dict):
        return {key: _spread(value, num_members) for key, value in tree.items()}
    if isinstance(tree, Tensor) and tree.ndim == 0:
        return {_COMMON: tree.repeat(num_members)}
    return tree


def _gather(tree: Any) -> Any:
    if isinstance(tree, dict):
        return tree[_COMMON][0] if _COMMON in tree else {k: _gather(v) for k, v in tree.items()}
    return tree
