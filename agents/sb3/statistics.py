"""All per-layer statistics of a Stable-Baselines3 policy and of its optimizers."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from upgd_ppo.agents.networks.layers import Layer, layers_of
from upgd_ppo.agents.optimizers.memory import Memory
from upgd_ppo.agents.plasticity import (
    Measurement,
    weight_statistics,
)
from upgd_ppo.agents.plasticity.measure import measurements, observed_layers

NETWORKS = {
    "mlp_extractor.policy_net": "actor",
    "action_net": "actor",
    "mlp_extractor.value_net": "critic",
    "value_net": "critic",
}
"""Parts of an actor-critic policy, by the network that they belong to."""

NamedTensors = Mapping[str, Tensor]


def policy_statistics(
    policy: nn.Module,
    inputs: Any,
    forward: Callable[[Any], None],
    initial: NamedTensors,
    previous: NamedTensors,
    gradients: NamedTensors,
) -> list[Measurement]:
    """Statistics of every layer that runs, and of whole networks as layer "all".

    Networks are named after the parts of the policy, but those of an actor-critic policy, which
    are "actor" and "critic".

    Args:
        policy: any Stable-Baselines3 policy.
        inputs: what `forward` takes, as arrays; see `upgd_ppo.agents.plasticity.measure`.
        forward: runs the policy's networks.
        initial: parameters at initialisation, by name.
        previous: parameters before the last iteration.
        gradients: those of the last minibatch, by name.

    Raises:
        ValueError: if the policy has no hidden layer; the message says what to do.
    """
    try:
        observed = observed_layers(policy, inputs, forward)
    except ValueError as error:
        raise ValueError(
            f"PlasticityCallback cannot measure this policy: {error} Where there is none on "
            "purpose, leave the callback out; else give policy_kwargs=dict(net_arch=[64, 64])."
        ) from error
    observed = [replace(one, layer=_renamed(one.layer)) for one in observed]
    sources = _Sources(policy, initial, previous, gradients)
    rows = []
    for one, measured in zip(
        observed, measurements(policy, observed, initial, previous), strict=True
    ):
        rows += measured
        rows += _rows(one.layer.network, one.layer.name, sources.of_weights(one.layer.incoming))
    for network in dict.fromkeys(one.layer.network for one in observed):
        layers = [one.layer for one in observed if one.layer.network == network]
        if len(layers) > 1:
            rows += _rows(network, "all", sources.of_network(layers))
    return rows


def policy_activations(
    policy: nn.Module, inputs: Any, forward: Callable[[Any], None]
) -> dict[tuple[str, str], str]:
    """The nonlinearity of every hidden layer, by the network and layer of `policy_statistics`."""
    layers = map(_renamed, layers_of(policy, inputs, forward=forward))
    return {(layer.network, layer.name): layer.activation for layer in layers}


def _renamed(layer: Layer) -> Layer:
    return replace(layer, network=NETWORKS.get(layer.network, layer.network))


class _Sources:
    """What is known of every parameter, by kind and name, with a member axis of one."""

    def __init__(
        self,
        policy: nn.Module,
        initial: NamedTensors,
        previous: NamedTensors,
        gradients: NamedTensors,
    ) -> None:
        self.parameters = {name: p.detach() for name, p in policy.named_parameters()}
        plain = {
            "weights": self.parameters,
            "initial": initial,
            "previous": previous,
            "gradients": gradients,
        }
        memory = Memory.of_model(optimizers_of(policy), dict(policy.named_parameters()))
        self._memory = {
            "utilities": memory.utilities(),
            "scaled_utilities": memory.scaled_utilities(),
            "directions": memory.directions(),
        }
        self._plain = {
            kind: {name: tensor[None] for name, tensor in named.items()}
            for kind, named in plain.items()
        }

    def of_weights(self, name: str) -> dict[str, Tensor]:
        """Statistics of one weight matrix beyond those that `measure` gives."""
        gradients = {"gradients": self._plain["gradients"]}
        return self._statistics([name], gradients | self._memory)

    def of_network(self, layers: Sequence[Layer]) -> dict[str, Tensor]:
        """Statistics of all parameters of a network's layers together, an actor's std included."""
        names = [name for layer in layers for name in (layer.incoming, *layer.own)]
        names += ["log_std"] if layers[0].network == "actor" else []
        names = [name for name in names if name in self.parameters]
        return self._statistics(names, self._plain | self._memory)

    @staticmethod
    def _statistics(
        names: list[str], known: Mapping[str, Mapping[str, Tensor]]
    ) -> dict[str, Tensor]:
        """Those for which all that they take is known of every parameter."""
        return weight_statistics(
            **{
                kind: [named[name] for name in names]
                for kind, named in known.items()
                if named.keys() >= set(names)
            }
        )


def optimizers_of(policy: nn.Module) -> list[Optimizer]:
    """The optimizers that a policy and its parts hold."""
    found = [getattr(part, "optimizer", None) for part in policy.modules()]
    return [optimizer for optimizer in found if isinstance(optimizer, Optimizer)]


def copy_of_parameters(policy: nn.Module) -> dict[str, Tensor]:
    """The parameters by name, as they are now."""
    return {name: p.detach().clone() for name, p in policy.named_parameters()}


def _rows(network: str, layer: str, statistics: Mapping[str, Tensor]) -> list[Measurement]:
    return [
        Measurement(network, layer, statistic, float(torch.as_tensor(value)))
        for statistic, value in statistics.items()
    ]
