"""The statistics of any `torch.nn.Module` of the usual layers, seen through forward hooks."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from upgd_ppo.agents.networks.activations import known_activation
from upgd_ppo.agents.plasticity.features import MAX_SAMPLES, select_samples
from upgd_ppo.agents.plasticity.layer_statistics import (
    elementwise_statistics,
    rank_statistics,
    weight_rank_statistics,
    weight_statistics,
)
from upgd_ppo.agents.plasticity.spectrum import gram_matrix, singular_values_from_grams

_WEIGHTED = (
    nn.Linear,
    nn.Conv1d,
    nn.Conv2d,
    nn.Conv3d,
    nn.ConvTranspose1d,
    nn.ConvTranspose2d,
    nn.ConvTranspose3d,
)

# Layers that may stand between a linear or convolutional one and its activation.
_PASSING = (
    nn.Identity,
    nn.LayerNorm,
    nn.RMSNorm,
    nn.GroupNorm,
    nn.modules.batchnorm._NormBase,
    nn.modules.dropout._DropoutNd,
    nn.modules.pooling._MaxPoolNd,
    nn.modules.pooling._AvgPoolNd,
    nn.modules.pooling._AdaptiveAvgPoolNd,
    nn.modules.pooling._AdaptiveMaxPoolNd,
    nn.Flatten,
)


class Measurement(NamedTuple):
    """One statistic of one layer of one network inside a module."""

    network: str
    layer: str
    statistic: str
    value: float


@dataclass
class _Layer:
    """A linear or convolutional layer that ran, and the activation that followed, if any."""

    path: str
    module: nn.Module
    activation: str | None = None
    features: Tensor | None = None


class _Recorder:
    """Pairs every linear or convolutional layer with its activation while a forward pass runs.

    An activation belongs to the layer that its input came from, through normalisation, dropout,
    pooling or flattening. Where the input was made by other means (a sum with a skip connection,
    a reshape), it belongs to the latest layer that has none yet. A layer that runs several times
    is one layer, measured the first time that its activation runs.
    """

    def __init__(self) -> None:
        self._by_path: dict[str, _Layer] = {}
        self._source: dict[int, _Layer] = {}
        # An id names a tensor only while the tensor lives.
        self._alive: list[Tensor] = []

    @property
    def layers(self) -> list[_Layer]:
        """In the order in which they first ran."""
        return list(self._by_path.values())

    def record(self, path: str, module: nn.Module, inputs: Any, output: Any) -> None:
        if not isinstance(output, Tensor) or not inputs or not isinstance(inputs[0], Tensor):
            return
        source = self._source.get(id(inputs[0]))
        self._alive += [inputs[0], output]
        if isinstance(module, _WEIGHTED):
            self._source[id(output)] = self._by_path.setdefault(path, _Layer(path, module))
        elif isinstance(module, _PASSING):
            if source is not None:
                self._source[id(output)] = source
        elif (activation := known_activation(type(module).__name__)) is not None:
            self._activated(source, activation, output)
            self._source.pop(id(output), None)

    def _activated(self, source: _Layer | None, activation: str, output: Tensor) -> None:
        if source is None:
            waiting = [layer for layer in self.layers if layer.activation is None]
            source = waiting[-1] if waiting else None
        if source is not None and source.activation is None:
            source.activation = activation
            source.features = _as_units(output.detach(), source.module).clone()


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
    layers = _layers_that_run(module, observations, forward)
    if all(layer.features is None for layer in layers):
        raise ValueError(
            f"{type(module).__name__} has no hidden layer to measure: a linear or convolutional "
            "layer followed by an activation module was expected; write activations as modules "
            "(nn.ReLU(), nn.Tanh()) rather than as function calls."
        )
    return _measurements(layers, initial or {}, previous or {})


def layer_activations(
    module: nn.Module, observations: Any, *, forward: Callable[[Any], Any] | None = None
) -> dict[tuple[str, str], str]:
    """The nonlinearity of every hidden layer, by network and layer as `measure` names them.

    Arguments are those of `measure`. Nonlinearities are keys of `ACTIVATIONS`, such as "tanh".
    """
    layers = _layers_that_run(module, observations, forward)
    return {
        place: layer.activation
        for place, layer in zip(_places(layers), layers, strict=True)
        if layer.activation is not None
    }


def _layers_that_run(
    module: nn.Module, observations: Any, forward: Callable[[Any], Any] | None
) -> list[_Layer]:
    recorder = _Recorder()
    inputs = _prepared(observations, module)
    with _observed(module, recorder):
        if forward is not None:
            forward(inputs)
        elif isinstance(inputs, tuple):
            module(*inputs)
        else:
            module(inputs)
    return recorder.layers


@contextmanager
def _observed(module: nn.Module, recorder: _Recorder) -> Iterator[None]:
    """Record a forward pass that leaves modes, gradients and the random state as they were."""
    training = [(part, part.training) for part in module.modules()]
    devices = {p.device.index for p in module.parameters() if p.device.type == "cuda"}
    handles = [
        part.register_forward_hook(
            lambda part, inputs, output, path=path: recorder.record(path, part, inputs, output)
        )
        for path, part in module.named_modules()
    ]
    try:
        with torch.no_grad(), torch.random.fork_rng(devices=sorted(devices)):
            module.eval()
            yield
    finally:
        for handle in handles:
            handle.remove()
        for part, mode in training:
            part.training = mode


def _prepared(observations: Any, module: nn.Module) -> Any:
    """At most `MAX_SAMPLES` samples of every tensor, arrays as tensors on the module's device."""
    if isinstance(observations, tuple):
        return tuple(_prepared(part, module) for part in observations)
    if isinstance(observations, Mapping):
        return {name: _prepared(part, module) for name, part in observations.items()}
    if isinstance(observations, np.ndarray):
        parameter = next(module.parameters(), torch.empty(0))
        observations = torch.as_tensor(observations, device=parameter.device)
        if observations.is_floating_point():
            observations = observations.to(parameter.dtype)
    return select_samples(observations) if isinstance(observations, Tensor) else observations


def _as_units(output: Tensor, module: nn.Module) -> Tensor:
    """Features [samples, units]: channels of a convolution are units, positions are samples."""
    if not isinstance(module, nn.Linear) and output.ndim > 2:
        output = output.movedim(1, -1)
    features = output.reshape(-1, output.shape[-1])
    if len(features) > MAX_SAMPLES:
        # Evenly spaced positions could all fall into one column of an image; a fixed shuffle
        # cannot, and its own generator leaves the random streams of training alone.
        generator = torch.Generator().manual_seed(0)
        chosen = torch.randperm(len(features), generator=generator)[:MAX_SAMPLES]
        features = features[chosen.to(features.device)]
    return features


def _measurements(
    layers: list[_Layer], initial: Mapping[str, Tensor], previous: Mapping[str, Tensor]
) -> list[Measurement]:
    hidden = [layer for layer in layers if layer.features is not None]
    parts = [elementwise_statistics(layer.features, layer.activation) for layer in hidden]  # type: ignore[arg-type]
    weights = [_as_matrix(layer.module.weight) for layer in layers]  # type: ignore[arg-type]
    values = singular_values_from_grams(
        [*(gram for _, gram in parts), *(gram_matrix(weight) for weight in weights)]
    )
    described = {
        id(layer): statistics | rank_statistics(layer_values, len(layer.features))  # type: ignore[arg-type]
        for layer, (statistics, _), layer_values in zip(hidden, parts, values, strict=False)
    }
    measurements = []
    for layer, place, weight, weight_values in zip(
        layers, _places(layers), weights, values[len(hidden) :], strict=True
    ):
        name = f"{layer.path}.weight" if layer.path else "weight"
        statistics = described.get(id(layer), {}) | weight_statistics(
            weight[None],
            initial=_as_matrix(initial[name])[None] if name in initial else None,
            previous=_as_matrix(previous[name])[None] if name in previous else None,
        )
        statistics |= weight_rank_statistics(weight_values)
        measurements += [
            Measurement(*place, statistic, float(value)) for statistic, value in statistics.items()
        ]
    return measurements


def _as_matrix(weight: Tensor) -> Tensor:
    return weight.detach().flatten(1)


def _places(layers: list[_Layer]) -> list[tuple[str, str]]:
    """(network, layer) of each layer: see `measure`."""
    containers = [layer.path.rpartition(".")[0] for layer in layers]
    outputs = Counter(
        container
        for container, layer in zip(containers, layers, strict=True)
        if layer.activation is None
    )
    numbers: Counter[str] = Counter()
    places = []
    for container, layer in zip(containers, layers, strict=True):
        network = container or "network"
        if layer.activation is not None:
            numbers[container] += 1
            places.append((network, f"layer_{numbers[container]}"))
        elif outputs[container] == 1:
            places.append((network, "output"))
        else:
            places.append((layer.path, "output"))
    return places
