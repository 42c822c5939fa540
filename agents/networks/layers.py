"""Hidden units: which parameters make them, which are theirs, and where they go.

`StackedMLP.hidden_layers` gives the layers of a population's networks, `layers_of` those of any
`torch.nn.Module`, found by forward hooks.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from upgd_ppo.agents.networks.activations import known_activation

WEIGHTED = (nn.Linear, nn.modules.conv._ConvNd)
"""Modules whose outputs are units."""

NORMALISING = (
    nn.LayerNorm,
    nn.RMSNorm,
    nn.GroupNorm,
    nn.modules.batchnorm._NormBase,
)

# Modules that hand units on one by one, before their activation or after it.
_TRANSPARENT = (nn.Identity, nn.modules.dropout._DropoutNd)

# Modules that may stand between a linear or convolutional layer and its activation.
_PASSING = (
    *_TRANSPARENT,
    *NORMALISING,
    nn.modules.pooling._MaxPoolNd,
    nn.modules.pooling._AvgPoolNd,
    nn.modules.pooling._AdaptiveAvgPoolNd,
    nn.modules.pooling._AdaptiveMaxPoolNd,
    nn.Flatten,
)


@dataclass(frozen=True)
class Layer:
    """The hidden units of one layer of a network, in terms of named parameters.

    Statistics, methods, feature-wise UPGD, the probe and exports take layers, so that nobody else
    needs to know how parameters are named or how a network is put together. In a population every
    parameter has the member axis first, [S, …]; in an ordinary module it has none.

    The last layer of a network is described alike: its units are the outputs, its name is
    "output", its activation "identity".

    Attributes:
        network: the network's name, such as "actor".
        name: the layer's name in it: "layer_1", "layer_2", …, "output".
        units: how many there are.
        activation: a key of the table of activations.
        incoming: the parameter [units, in] that makes them; [units, in, …] of a convolution.
        own: parameters [units] that are theirs: the bias, if there is one; weight and bias of a
            normalisation.
        outgoing: the parameter [out, units] of the next layer; None if they feed any but linear
            layers, or none.
        next_bias: the parameter [out] that is added there, if there is one.
        also_outgoing: the same of further linear layers that they feed, as the means and the
            standard deviations of a policy may be.
    """

    network: str
    name: str
    units: int
    activation: str
    incoming: str
    own: tuple[str, ...]
    outgoing: str | None = None
    next_bias: str | None = None
    also_outgoing: tuple[str, ...] = ()


@dataclass(frozen=True)
class ObservedLayer:
    """A layer that ran.

    Attributes:
        layer: which.
        features: what was kept of its activations; None for an output layer.
    """

    layer: Layer
    features: Tensor | None


def layers_of(
    module: nn.Module, inputs: Any, *, forward: Callable[[Any], Any] | None = None
) -> list[Layer]:
    """The hidden layers of a module, in the order in which they run.

    A hidden layer is a linear or convolutional layer whose output reaches an activation module
    (nn.Tanh, nn.ReLU, …), the last layer included where it has one. Its units are the outputs of
    a linear layer or the channels of a convolution. The module runs once, in evaluation mode,
    without gradients; training modes and PyTorch's random state are put back.

    Layers in one container are one network, named after the container's path
    ("mlp_extractor.policy_net" in a Stable-Baselines3 policy; "network" for the outermost one).

    Where units go is followed through modules alone. Hooks do not see that a function, such as the
    sum of a skip connection, takes them elsewhere as well.

    Args:
        module: any module.
        inputs: what it takes: a tensor or array [batch, …], a tuple of them for several arguments,
            or a dict of them.
        forward: how to run the module on the inputs, where calling it is not what is wanted.
    """
    observed = observe(module, inputs, forward=forward)
    return [one.layer for one in observed if one.features is not None]


def observe(
    module: nn.Module,
    inputs: Any,
    *,
    forward: Callable[[Any], Any] | None = None,
    keep: Callable[[Tensor], Tensor] = lambda features: features[:0],
) -> list[ObservedLayer]:
    """The linear and convolutional layers of a module that run, outputs too, with their features.

    Layers without activation are named "output", as a network of their own where a container has
    several.

    Args:
        module, inputs, forward: see `layers_of`.
        keep: activations [samples, units] → what is to be kept of them. The positions of a
            convolution count as samples.
    """
    recorder = _Recorder(keep)
    inputs = as_tensors(inputs, module)
    with _hooked(module, recorder):
        if forward is not None:
            forward(inputs)
        elif isinstance(inputs, tuple):
            module(*inputs)
        else:
            module(inputs)
    return recorder.layers()


def as_tensors(inputs: Any, module: nn.Module) -> Any:
    """Arrays, in tuples and dicts too, as tensors of the module's type on its device."""
    if isinstance(inputs, tuple):
        return tuple(as_tensors(part, module) for part in inputs)
    if isinstance(inputs, Mapping):
        return {name: as_tensors(part, module) for name, part in inputs.items()}
    if isinstance(inputs, np.ndarray):
        parameter = next(module.parameters(), torch.empty(0))
        inputs = torch.as_tensor(inputs, device=parameter.device)
        if inputs.is_floating_point():
            inputs = inputs.to(parameter.dtype)
    return inputs


@contextmanager
def _hooked(module: nn.Module, recorder: _Recorder) -> Iterator[None]:
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


@dataclass
class _Run:
    """A linear or convolutional layer that ran, what followed, and where its units went."""

    path: str
    module: nn.Module
    activation: str | None = None
    features: Tensor | None = None
    norms: dict[str, nn.Module] = field(default_factory=dict)
    next_layers: dict[str, nn.Module] = field(default_factory=dict)

    def as_layer(self, network: str, name: str) -> Layer:
        weight: Tensor = self.module.weight  # type: ignore[assignment]
        transposed = isinstance(self.module, nn.modules.conv._ConvTransposeNd)
        units = weight.shape[1] if transposed else weight.shape[0]
        linear = all(
            isinstance(following, nn.Linear) and following.in_features == units
            for following in self.next_layers.values()
        )
        # The first of them is the next layer.
        outgoing = [_joined(path, "weight") for path in self.next_layers] if linear else []
        next_bias = None
        if outgoing:
            path, following = next(iter(self.next_layers.items()))
            next_bias = None if following.bias is None else _joined(path, "bias")
        theirs = [(self.path, self.module, "bias")]
        theirs += [(path, norm, kind) for path, norm in self.norms.items() for kind in _PARTS]
        return Layer(
            network=network,
            name=name,
            units=units,
            activation=self.activation or "identity",
            incoming=_joined(self.path, "weight"),
            own=tuple(
                _joined(path, kind)
                for path, part, kind in theirs
                if getattr(getattr(part, kind, None), "shape", None) == (units,)
            ),
            outgoing=outgoing[0] if outgoing else None,
            next_bias=next_bias,
            also_outgoing=tuple(outgoing[1:]),
        )


_PARTS = ("weight", "bias")


def _joined(path: str, name: str) -> str:
    return f"{path}.{name}" if path else name


class _Recorder:
    """Pairs every linear or convolutional layer with its activation while a forward pass runs.

    An activation belongs to the layer that its input came from, through normalisation, dropout,
    pooling or flattening. Where the input was made by other means (a sum with a skip connection,
    a reshape), it belongs to the latest layer that has none yet. A layer that runs several times
    is one layer, observed the first time that its activation runs.
    """

    def __init__(self, keep: Callable[[Tensor], Tensor]) -> None:
        self._keep = keep
        self._runs: dict[str, _Run] = {}  # by path, in the order in which they first ran
        self._source: dict[int, _Run] = {}  # whose pre-activations a tensor holds
        self._units: dict[int, _Run] = {}  # whose activations a tensor holds
        # An id names a tensor only while the tensor lives.
        self._alive: list[Tensor] = []

    def record(self, path: str, module: nn.Module, inputs: Any, output: Any) -> None:
        """Take note of one call of one part of the module."""
        if not isinstance(output, Tensor) or not inputs or not isinstance(inputs[0], Tensor):
            return
        source, units = self._source.get(id(inputs[0])), self._units.get(id(inputs[0]))
        self._alive += [inputs[0], output]
        if isinstance(module, WEIGHTED):
            if units is not None:
                units.next_layers[path] = module
            self._source[id(output)] = self._runs.setdefault(path, _Run(path, module))
        elif isinstance(module, _PASSING):
            if source is not None:
                self._source[id(output)] = source
                if isinstance(module, NORMALISING):
                    source.norms[path] = module
            if units is not None and isinstance(module, _TRANSPARENT):
                self._units[id(output)] = units
            elif units is not None:
                units.next_layers[path] = module
        elif (activation := known_activation(type(module).__name__)) is not None:
            if source is not None:
                self._units[id(output)] = source
            self._activated(source, activation, output)
            self._source.pop(id(output), None)

    def layers(self) -> list[ObservedLayer]:
        """In the order in which they first ran."""
        runs = list(self._runs.values())
        return [
            ObservedLayer(run.as_layer(*place), run.features)
            for run, place in zip(runs, _places(runs), strict=True)
        ]

    def _activated(self, source: _Run | None, activation: str, output: Tensor) -> None:
        if source is None:
            waiting = [run for run in self._runs.values() if run.activation is None]
            source = waiting[-1] if waiting else None
        if source is not None and source.activation is None:
            source.activation = activation
            # A copy: what comes next may write over it.
            source.features = self._keep(_as_units(output.detach(), source.module)).clone()


def _as_units(output: Tensor, module: nn.Module) -> Tensor:
    """Features [samples, units]: channels of a convolution are units, positions are samples."""
    if not isinstance(module, nn.Linear) and output.ndim > 2:
        output = output.movedim(1, -1)
    return output.reshape(-1, output.shape[-1])


def _places(runs: Sequence[_Run]) -> list[tuple[str, str]]:
    """(network, layer) of each: see `observe`."""
    containers = [run.path.rpartition(".")[0] for run in runs]
    outputs = Counter(
        container for container, run in zip(containers, runs, strict=True) if run.activation is None
    )
    numbers: Counter[str] = Counter()
    places = []
    for container, run in zip(containers, runs, strict=True):
        network = container or "network"
        if run.activation is not None:
            numbers[container] += 1
            places.append((network, f"layer_{numbers[container]}"))
        elif outputs[container] == 1:
            places.append((network, "output"))
        else:
            places.append((run.path, "output"))
    return places
