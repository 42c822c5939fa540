"""All per-layer statistics of a Stable-Baselines3 policy and of its optimizers."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from upgd_ppo.agents.optimizers.memory import Memory
from upgd_ppo.agents.plasticity import (
    Measurement,
    layer_activations,
    measure,
    weight_statistics,
)

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
    paths: list[str] = []
    try:
        with _order_of_layers(policy, paths):
            measured = measure(policy, inputs, forward=forward, initial=initial, previous=previous)
    except ValueError as error:
        raise ValueError(
            f"PlasticityCallback cannot measure this policy: {error} Where there is none on "
            "purpose, leave the callback out; else give policy_kwargs=dict(net_arch=[64, 64])."
        ) from error
    by_place: dict[tuple[str, str], list[Measurement]] = {}
    for row in measured:
        place = (NETWORKS.get(row.network, row.network), row.layer)
        by_place.setdefault(place, []).append(row._replace(network=place[0]))

    # `measure` reports layers in the order in which they first run, so they pair with the paths.
    layers = dict(zip(by_place, paths, strict=True))
    sources = _Sources(policy, initial, previous, gradients)
    rows = []
    for place, path in layers.items():
        rows += by_place[place]
        rows += _rows(*place, sources.of_layer(f"{path}.weight"))
    for network in dict.fromkeys(network for network, _ in layers):
        members = [path for (owner, _), path in layers.items() if owner == network]
        if len(members) > 1:
            extra = ["log_std"] if network == "actor" else []
            rows += _rows(network, "all", sources.of_network(members, extra))
    return rows


def policy_activations(
    policy: nn.Module, inputs: Any, forward: Callable[[Any], None]
) -> dict[tuple[str, str], str]:
    """The nonlinearity of every hidden layer, by the network and layer of `policy_statistics`."""
    return {
        (NETWORKS.get(network, network), layer): activation
        for (network, layer), activation in layer_activations(
            policy, inputs, forward=forward
        ).items()
    }


@contextmanager
def _order_of_layers(policy: nn.Module, paths: list[str]) -> Iterator[None]:
    """Append the paths of linear and convolutional layers in the order in which they first run."""

    def note(path: str) -> None:
        if path not in paths:
            paths.append(path)

    handles = [
        part.register_forward_hook(lambda *_, path=path: note(path))
        for path, part in policy.named_modules()
        if isinstance(part, nn.Linear | nn.modules.conv._ConvNd)
    ]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


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

    def of_layer(self, name: str) -> dict[str, Tensor]:
        """Statistics of one weight matrix beyond those that `measure` gives."""
        gradients = {"gradients": self._plain["gradients"]}
        return self._statistics([name], gradients | self._memory)

    def of_network(self, paths: list[str], further: list[str]) -> dict[str, Tensor]:
        """Statistics of all parameters of some layers, and of further parameters, together."""
        candidates = [f"{path}.{kind}" for path in paths for kind in ("weight", "bias")]
        names = [name for name in [*candidates, *further] if name in self.parameters]
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
