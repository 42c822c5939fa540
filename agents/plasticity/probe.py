"""The trainability probe: can the networks still learn something new?

Copies of the networks are trained for a fixed number of steps, by a fresh Adam, to fit the outputs
of a randomly initialised network of the same shape on one batch. So are freshly initialised
networks. The probe is the ratio of the two final errors: 1 is as good as new, and the larger it
is, the more of the network's capacity to learn is lost.

Source: Lyle et al. (2022), "Understanding and preventing capacity loss in reinforcement learning".

Random networks are drawn from generators of the probe's own, seeded by the member's seed, so that
a training run draws the same numbers with the probe as without. They are orthogonal with gain √2,
output layer 1, biases 0, whatever the live network started from, so that ratios of actor and
critic, and of different arms, can be compared.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Sequence

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from agents.plasticity.activations import activation_named
from agents.plasticity.features import select_samples

PROBE_STREAM = 0x70726F6265  # "probe": no purpose of `agents.random_streams` has this entropy.
DEFAULT_STEPS = 200
DEFAULT_SAMPLES = 256
DEFAULT_LEARNING_RATE = 1e-3

_WEIGHTED = (nn.Linear, nn.modules.conv._ConvNd)
_NORMALISING = (nn.LayerNorm, nn.RMSNorm, nn.GroupNorm, nn.modules.batchnorm._NormBase)

Layers = list[tuple[Tensor, Tensor]]
"""Weights [S, out, in] and biases [S, out], from the first hidden layer to the output."""


def trainability(
    weights: Sequence[Tensor],
    biases: Sequence[Tensor],
    activation: str,
    observations: Tensor,
    seeds: Sequence[int],
    *,
    norms: Sequence[tuple[Tensor, Tensor]] | None = None,
    steps: int = DEFAULT_STEPS,
    samples: int = DEFAULT_SAMPLES,
    learning_rate: float = DEFAULT_LEARNING_RATE,
) -> Tensor:
    """Final error of each member's network over that of a fresh one: float64 [S].

    The networks are multilayer perceptrons, stacked over S members, and are left as they are. A
    member's result depends on its own network, observations and seed alone; one with non-finite
    weights gets NaN.

    Args:
        weights: [S, out, in] of each layer.
        biases: [S, out] of each layer.
        activation: of the hidden layers.
        observations: [S, batch, in].
        seeds: one per member.
        norms: weight and bias [S, units] of the layer normalisation that precedes each hidden
            layer's activation, if there is one.
        steps: Adam steps, each on the whole batch.
        samples: at most so many evenly spaced observations are used.
        learning_rate: Adam's.

    Raises:
        ValueError: if shapes or counts do not fit, or the activation is unknown.
    """
    members = len(observations)
    if not members == len(seeds) == len(weights[0]) or len(weights) != len(biases):
        raise ValueError(
            f"The probe was given observations of {members} members, {len(seeds)} seeds, weights "
            f"of {len(weights[0])} members in {len(weights)} layers and {len(biases)} biases; "
            "members and layers must agree."
        )
    function = activation_named(activation).function
    inputs = select_samples(observations.detach(), 1, samples).to(weights[0].dtype)
    live = [(w.detach(), b.detach()) for w, b in zip(weights, biases, strict=True)]
    scales = [(w.detach(), b.detach()) for w, b in norms or ()]
    new_scales = [(torch.ones_like(w), torch.zeros_like(b)) for w, b in scales]
    generators = [_generator(seed) for seed in seeds]
    target, fresh = (_random_layers(live, generators) for _ in range(2))

    # Live and fresh networks train side by side, as the 2·S members of one stack.
    both = [_trainable(a, b) for a, b in zip(live + scales, fresh + new_scales, strict=True)]
    depth = len(live)
    with torch.no_grad():
        targets = _forward(target, new_scales, function, inputs).repeat(2, 1, 1)
    inputs = inputs.repeat(2, 1, 1)

    def errors() -> Tensor:
        outputs = _forward(both[:depth], both[depth:], function, inputs)
        return (outputs - targets).square().mean((1, 2))

    final = _fit([p for layer in both for p in layer], errors, steps, learning_rate)
    return _error_ratio(final[:members], final[members:])


def module_trainability(
    module: nn.Module,
    observations: Tensor,
    seed: int = 0,
    *,
    steps: int = DEFAULT_STEPS,
    samples: int = DEFAULT_SAMPLES,
    learning_rate: float = DEFAULT_LEARNING_RATE,
) -> float:
    """The same for any module of linear, convolutional and normalisation layers.

    Copies of the module are trained, in evaluation mode; the module itself, its gradients and
    PyTorch's random state are left as they are.

    Args:
        module: maps observations [batch, …] to one tensor.
        observations: [batch, …].
        seed: of the random networks.
        steps, samples, learning_rate: as in `trainability`.

    Raises:
        ValueError: if the module has parameters that the probe does not know how to draw.
        TypeError: if the module does not return one tensor.
    """
    inputs = select_samples(observations.detach(), 0, samples)
    generator = _generator(seed)
    live = copy.deepcopy(module).eval().requires_grad_(True)
    target, fresh = (_redrawn(live, generator) for _ in range(2))
    with torch.no_grad():
        targets = target(inputs)
    if not isinstance(targets, Tensor):
        raise TypeError(
            f"The probe needs a module that returns one tensor, but {type(module).__name__} "
            f"returned {type(targets).__name__}; probe the part that returns one."
        )

    def errors() -> Tensor:
        return torch.stack([(net(inputs) - targets).square().mean() for net in (live, fresh)])

    parameters = [*live.parameters(), *fresh.parameters()]
    final = _fit(parameters, errors, steps, learning_rate)
    return float(_error_ratio(final[:1], final[1:]))


def _fit(
    parameters: Sequence[Tensor], errors: Callable[[], Tensor], steps: int, learning_rate: float
) -> Tensor:
    """Errors of independent networks after training each on its own with a fresh Adam."""
    optimizer = torch.optim.Adam(parameters, lr=learning_rate)
    with torch.enable_grad():
        for _ in range(steps):
            optimizer.zero_grad()
            errors().sum().backward()
            optimizer.step()
    with torch.no_grad():
        return errors().double()


def _error_ratio(live: Tensor, fresh: Tensor) -> Tensor:
    ratio = live / fresh.clamp(min=torch.finfo(torch.float64).tiny)
    return torch.where(live.isfinite() & fresh.isfinite(), ratio, torch.nan)


def _generator(seed: int) -> torch.Generator:
    state = np.random.SeedSequence((PROBE_STREAM, seed)).generate_state(1, np.uint64)
    return torch.Generator().manual_seed(int(state[0] >> np.uint64(1)))


def _random_layers(layers: Layers, generators: list[torch.Generator]) -> Layers:
    random: Layers = []
    for depth, (weight, bias) in enumerate(layers):
        gain = 1.0 if depth == len(layers) - 1 else math.sqrt(2)
        draws = [_orthogonal(weight[0].shape, gain, generator) for generator in generators]
        random.append((torch.stack(draws).to(weight), torch.zeros_like(bias)))
    return random


def _orthogonal(shape: torch.Size, gain: float, generator: torch.Generator) -> Tensor:
    draw = torch.empty(shape, dtype=torch.float64)
    return nn.init.orthogonal_(draw, gain, generator=generator)


def _trainable(live: tuple[Tensor, Tensor], fresh: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
    weight, bias = (torch.cat(pair).requires_grad_(True) for pair in zip(live, fresh, strict=True))
    return weight, bias


def _forward(
    layers: Layers, norms: Layers, function: Callable[[Tensor], Tensor], inputs: Tensor
) -> Tensor:
    h = inputs
    for depth, (weight, bias) in enumerate(layers):
        h = torch.baddbmm(bias.unsqueeze(1), h, weight.mT)
        if depth < len(layers) - 1:
            if norms:
                scale, shift = norms[depth]
                h = functional.layer_norm(h, h.shape[-1:]) * scale.unsqueeze(1)
                h = h + shift.unsqueeze(1)
            h = function(h)
    return h


def _redrawn(module: nn.Module, generator: torch.Generator) -> nn.Module:
    """A copy with fresh parameters."""
    redrawn = copy.deepcopy(module)
    weighted = [part for part in redrawn.modules() if isinstance(part, _WEIGHTED)]
    for part in redrawn.modules():
        if isinstance(part, _WEIGHTED):
            gain = 1.0 if part is weighted[-1] else math.sqrt(2)
            part.weight.data.copy_(_orthogonal(part.weight.shape, gain, generator))
            if part.bias is not None:
                nn.init.zeros_(part.bias)
        elif isinstance(part, _NORMALISING):
            part.reset_parameters()
        elif next(part.parameters(recurse=False), None) is not None:
            raise ValueError(
                f"The probe cannot draw a fresh {type(part).__name__}; it knows linear, "
                "convolutional and normalisation layers, so probe the part made of those."
            )
    return redrawn
