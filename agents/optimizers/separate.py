"""An optimizer for the actor and another for the critic."""

from __future__ import annotations

from typing import Any

import torch
from numpy.typing import NDArray
from torch import Tensor

from upgd_ppo.agents.optimizers.memory import Memory
from upgd_ppo.agents.optimizers.population_optimizer import PopulationOptimizer, StackedParameters
from upgd_ppo.agents.optimizers.registry import get

NETWORKS = ("actor", "critic")


class SeparateOptimizers:
    """Two population optimizers, of which neither knows the other's parameters.

    They draw from the same generators, the actor's first.

    Args:
        name, parameters, learning_rate, generators, hyper_parameters, one_per_member: see
            `PopulationOptimizer`.
    """

    def __init__(
        self,
        name: str,
        parameters: StackedParameters,
        learning_rate: float,
        generators: list[torch.Generator],
        hyper_parameters: dict[str, Any],
        one_per_member: bool = False,
    ) -> None:
        self.optimizers = {
            network: PopulationOptimizer(
                name,
                _NetworkParameters(parameters, network),
                learning_rate,
                generators,
                hyper_parameters,
                one_per_member,
                keep_tensors=True,
            )
            for network in NETWORKS
        }

    def set_learning_rate(self, learning_rate: float) -> None:
        """Set the step size of every member."""
        for optimizer in self.optimizers.values():
            optimizer.set_learning_rate(learning_rate)

    def step(self, active: NDArray | None = None) -> None:
        """One step of every member, or of those that are active, [S] bool."""
        for optimizer in self.optimizers.values():
            optimizer.step(active)

    @property
    def memory(self) -> Memory:
        """What is remembered of every weight of both, to read and to write."""
        return Memory.joined(optimizer.memory for optimizer in self.optimizers.values())

    def describe(self) -> dict[str, dict[str, Tensor]]:
        """See `PopulationOptimizer.describe`."""
        actor, critic = (optimizer.describe() for optimizer in self.optimizers.values())
        return {kind: {**actor[kind], **critic[kind]} for kind in actor}

    def state_dict(self) -> dict[str, Any]:
        """The optimizers' memory, by network."""
        return {network: optimizer.state_dict() for network, optimizer in self.optimizers.items()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue from a state that `state_dict` gave."""
        for network, optimizer in self.optimizers.items():
            optimizer.load_state_dict(state[network])


def make_optimizer(
    name: str,
    parameters: StackedParameters,
    learning_rate: float,
    generators: list[torch.Generator],
    hyper_parameters: dict[str, Any],
    one_per_member: bool = False,
    separate: bool = False,
) -> PopulationOptimizer | SeparateOptimizers:
    """The optimizer of a population.

    Args:
        separate: actor and critic have one each. Where every weight moves by its own gradient
            alone, as under Adam, one optimizer does the same, and does it faster.
    """
    spec = get(name)
    elementwise = not spec.draws_noise and spec.layout_for(spec.resolve(hyper_parameters)) == "flat"
    kind = SeparateOptimizers if separate and not elementwise else PopulationOptimizer
    return kind(name, parameters, learning_rate, generators, hyper_parameters, one_per_member)


class _NetworkParameters:
    """The part of stacked parameters that is one network's."""

    def __init__(self, parameters: StackedParameters, network: str) -> None:
        self.data, self.gradient = parameters.data, parameters.gradient
        self.views, self.gradient_views = (
            {name: view for name, view in views.items() if name.startswith(f"{network}.")}
            for views in (parameters.views, parameters.gradient_views)
        )

    def named_views(self, flat: Tensor) -> dict[str, Tensor]:
        raise NotImplementedError("A network's parameters are no flat buffer.")
