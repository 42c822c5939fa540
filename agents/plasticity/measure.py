"""The statistics of any `torch.nn.Module` of the usual layers, seen through forward hooks."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from operator import attrgetter
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from upgd_ppo.agents.networks.layers import ObservedLayer, as_tensors, observe
from upgd_ppo.agents.plasticity.features import MAX_SAMPLES, select_samples
from upgd_ppo.agents.plasticity.layer_statistics import (
    elementwise_statistics,
    rank_statistics,
    weight_rank_statistics,
    weight_statistics,
)
from upgd_ppo.agents.plasticity.spectrum import gram_matrix, singular_values_from_grams


class Measurement(NamedTuple):
    """One statistic of one layer of one network inside a module."""

    network: str
    layer: str
    statistic: str
    value: float


def measure(
    module: nn.Module,
    observations: Any,
    *,
    forward: Callable[[Any], Any] | None = None,
    initial: Mapping[str, Tensor] | None = None,
    previous: Mapping[str, Tensor] | None = None,
) -> list[Measurement]:
    """Statistics of every hidden layer and weight matrix of a module, without changing it.

    A hidden layer is a linear or convolutional layer whose output reaches an activation module
    (nn.Tanh, nn.ReLU, …), the last layer included where it has one. Its units are the outputs of
    a linear layer or the channels of a convolution, whose positions count as samples. The module
    runs once, in evaluation mode, without gradients; training modes and PyTorch's random state
    are put back.

    Layers in one container are one network, named after the container's path
    ("mlp_extractor.policy_net" in a Stable-Baselines3 policy; "network" for the outermost one).
    Inside it hidden layers are "layer_1", "layer_2", … in the order in which they run, and a layer
    without activation is "output", as a network of its own where a container has several.

    Args:
        module: any module; one that samples, like a policy, is welcome.
        observations: what the module takes: a tensor or array [batch, …], a tuple of them for
            several arguments, or a dict of them. At most 1024 evenly spaced samples are used.
        forward: how to run the module on the observations, where calling it is not what is
            wanted.
        initial: a copy of `module.state_dict()` at initialisation, for `distance_from_init`.
        previous: a copy from before the latest updates, for `update_ratio`.

    Returns:
        One `Measurement` per network, layer and statistic, in the order in which layers run.

    Raises:
        ValueError: if the module has no hidden layer that hooks can see.
    """
    layers = observed_layers(module, observations, forward)
    return [row for rows in measurements(module, layers, initial, previous) for row in rows]


def observed_layers(
    module: nn.Module, observations: Any, forward: Callable[[Any], Any] | None = None
) -> list[ObservedLayer]:
    """The layers that run, with at most 1024 samples of their features. See `measure`."""
    inputs = _thinned(as_tensors(observations, module))
    layers = observe(module, inputs, forward=forward, keep=_some_of)
    if all(layer.features is None for layer in layers):
        raise ValueError(
            f"{type(module).__name__} has no hidden layer to measure: a linear or convolutional "
            "layer followed by an activation module was expected; write activations as modules "
            "(nn.ReLU(), nn.Tanh()) rather than as function calls."
        )
    return layers


def measurements(
    module: nn.Module,
    layers: Sequence[ObservedLayer],
    initial: Mapping[str, Tensor] | None = None,
    previous: Mapping[str, Tensor] | None = None,
) -> list[list[Measurement]]:
    """The statistics of each layer. Arguments are those of `measure`."""
    initial, previous = initial or {}, previous or {}
    names = [observed.layer.incoming for observed in layers]
    # Every spectrum is taken at once: of the features first, then of the weights.
    features = {
        index: observed.features
        for index, observed in enumerate(layers)
        if observed.features is not None
    }
    parts = {
        index: elementwise_statistics(values, layers[index].layer.activation)
        for index, values in features.items()
    }
    weights = [_as_matrix(attrgetter(name)(module)) for name in names]
    spectra = singular_values_from_grams(
        [*(gram for _, gram in parts.values()), *(gram_matrix(weight) for weight in weights)]
    )
    statistics: list[dict[str, Tensor]] = [{} for _ in layers]
    for (index, (elementwise, _)), values in zip(parts.items(), spectra, strict=False):
        statistics[index] |= elementwise | rank_statistics(values, len(features[index]))
    for index, (name, weight, values) in enumerate(
        zip(names, weights, spectra[len(parts) :], strict=True)
    ):
        statistics[index] |= weight_statistics(
            weight[None],
            initial=_as_matrix(initial[name])[None] if name in initial else None,
            previous=_as_matrix(previous[name])[None] if name in previous else None,
        )
        statistics[index] |= weight_rank_statistics(values)
    return [
        [
            Measurement(observed.layer.network, observed.layer.name, statistic, float(value))
            for statistic, value in own.items()
        ]
        for observed, own in zip(layers, statistics, strict=True)
    ]


def _thinned(inputs: Any) -> Any:
    """At most `MAX_SAMPLES` samples of every tensor."""
    if isinstance(inputs, tuple):
        return tuple(_thinned(part) for part in inputs)
    if isinstance(inputs, Mapping):
        return {name: _thinned(part) for name, part in inputs.items()}
    return select_samples(inputs) if isinstance(inputs, Tensor) else inputs


def _some_of(features: Tensor) -> Tensor:
    if len(features) <= MAX_SAMPLES:
        return features
    # Evenly spaced positions could all fall into one column of an image; a fixed shuffle cannot,
    # and its own generator leaves the random streams of training alone.
    generator = torch.Generator().manual_seed(0)
    chosen = torch.randperm(len(features), generator=generator)[:MAX_SAMPLES]
    return features[chosen.to(features.device)]


def _as_matrix(weight: Tensor) -> Tensor:
    return weight.detach().flatten(1)
