"""The trainability probe: can the networks still learn something new?

A copy of the network, with a new output layer of eight outputs, is trained for a fixed number of
steps, by a fresh Adam, to fit the outputs of a randomly initialised network of the same shape on
one batch. So is a freshly initialised network with the same output layer. This is done for several
targets and fresh networks at once, and the probe is the ratio of the two final errors, a geometric
mean: 1 is as good as new, and the larger it is, the more of the network's capacity to learn is
lost.

Source: Lyle et al. (2022), "Understanding and preventing capacity loss in reinforcement learning",
who also fit new outputs on the features of the network. One target with one output is too noisy to
be of use: among fresh networks the ratio of its errors ranges over two orders of magnitude.

Random networks are drawn from generators of the probe's own, seeded by the member's seed, so that
a training run draws the same numbers with the probe as without. They are orthogonal with gain √2,
output layer 1, biases 0, whatever the live network started from, so that ratios of actor and
critic, and of different arms, can be compared.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Mapping, Sequence

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from upgd_ppo.agents.networks.activations import activation_named
from upgd_ppo.agents.networks.layers import NORMALISING, WEIGHTED, Layer
from upgd_ppo.agents.plasticity.features import select_samples

PROBE_STREAM = (
    0x70726F6265  # "probe": no purpose of `upgd_ppo.agents.random_streams` has this entropy.
)
DEFAULT_STEPS = 100
DEFAULT_SAMPLES = 128
DEFAULT_LEARNING_RATE = 1e-3
TARGETS = 8
"""Random targets, each fitted by a copy of the live network and by a fresh one."""
OUTPUTS = 8
"""Of the targets and of the new output layers, whatever the network's own number."""

Tensors = list[tuple[Tensor, Tensor]]
"""Weights [networks, out, in] and biases [networks, out], from the first hidden layer to the
output."""


def trainability(
    layers: Sequence[Layer],
    parameters: Mapping[str, Tensor],
    observations: Tensor,
    seeds: Sequence[int],
    *,
    steps: int = DEFAULT_STEPS,
    samples: int = DEFAULT_SAMPLES,
    learning_rate: float = DEFAULT_LEARNING_RATE,
) -> Tensor:
    """Final error of each member's network over that of fresh ones: float64 [S].

    The networks are multilayer perceptrons, stacked over S members, and are left as they are. A
    member's result depends on its own network, observations and seed alone, to the bit: members
    are probed one after the other. One with non-finite weights gets NaN.

    Args:
        layers: from the first hidden layer to the output, each with a bias; where one is
            normalised, all hidden ones are.
        parameters: theirs by name, [S, …].
        observations: [S, batch, in].
        seeds: one per member.
        steps: Adam steps, each on the whole batch.
        samples: at most so many evenly spread observations are used.
        learning_rate: Adam's.

    Raises:
        ValueError: if shapes or counts do not fit, or the activation is unknown.
    """
    members, held = len(observations), len(parameters[layers[0].incoming])
    if not members == len(seeds) == held:
        raise ValueError(
            f"The probe was given observations of {members} members, {len(seeds)} seeds and "
            f"parameters of {held} members; they must agree."
        )
    functions = [activation_named(layer.activation).function for layer in layers]
    live = [
        (parameters[layer.incoming].detach(), parameters[layer.own[0]].detach()) for layer in layers
    ]
    scales = [
        (parameters[layer.own[1]].detach(), parameters[layer.own[2]].detach())
        for layer in layers
        if layer.own[1:]
    ]
    inputs = select_samples(observations.detach(), 1, samples).to(live[0][0].dtype)

    def probe(member: int) -> Tensor:
        own = slice(member, member + 1)
        return _trainability(
            [(w[own], b[own]) for w, b in live],
            [(w[own], b[own]) for w, b in scales],
            functions,
            inputs[own],
            _generator(seeds[member]),
            lambda parameters, errors: _fit(parameters, errors, steps, learning_rate),
        )

    return torch.stack([probe(member) for member in range(members)])


def _trainability(
    live: Tensors,
    scales: Tensors,
    functions: Sequence[Callable[[Tensor], Tensor]],
    inputs: Tensor,
    generator: torch.Generator,
    fit: Callable[[Sequence[Tensor], Callable[[], Tensor]], Tensor],
) -> Tensor:
    """The probe of one network, every tensor of which has a leading axis of length 1."""
    live = [(w.expand(TARGETS, *w.shape[1:]), b.expand(TARGETS, -1)) for w, b in live]
    weight, bias = live[-1]
    live[-1] = weight.new_empty(TARGETS, OUTPUTS, weight.shape[2]), bias.new_empty(TARGETS, OUTPUTS)
    scales = [(w.expand(TARGETS, -1), b.expand(TARGETS, -1)) for w, b in scales]
    new_scales = [(torch.ones_like(w), torch.zeros_like(b)) for w, b in scales]
    target, fresh = (_random_layers(live, generator) for _ in range(2))
    live[-1] = fresh[-1]
    inputs = inputs.expand(TARGETS, -1, -1)

    # Live and fresh networks train side by side, as 2·TARGETS members of one stack.
    both = [_trainable(a, b) for a, b in zip(live + scales, fresh + new_scales, strict=True)]
    depth = len(live)
    with torch.no_grad():
        targets = _forward(target, new_scales, functions, inputs).repeat(2, 1, 1)
    inputs = inputs.repeat(2, 1, 1)

    def errors() -> Tensor:
        outputs = _forward(both[:depth], both[depth:], functions, inputs)
        return (outputs - targets).square().mean((1, 2))

    return _error_ratio(fit([p for layer in both for p in layer], errors))


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
    PyTorch's random state are left as they are. The layer that is drawn anew for every target is
    the last linear or convolutional one in the order of `modules()`. A linear one gets eight
    outputs, so nothing after it may depend on how many it has; a convolution keeps its own.

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
    original = copy.deepcopy(module).eval().requires_grad_(True)
    # In the order in which `trainability` draws them.
    drawn = [[_redrawn(original, generator) for _ in range(TARGETS)] for _ in range(2)]
    targets_of, fresh = drawn
    live = [copy.deepcopy(original) for _ in range(TARGETS)]
    for ours, theirs in zip(live, fresh, strict=True):
        for ours_last, theirs_last in zip(
            _weighted(ours)[-1:], _weighted(theirs)[-1:], strict=True
        ):
            _widen(ours_last)
            ours_last.load_state_dict(theirs_last.state_dict())
    with torch.no_grad():
        targets = [network(inputs) for network in targets_of]
    if not isinstance(targets[0], Tensor):
        raise TypeError(
            f"The probe needs a module that returns one tensor, but {type(module).__name__} "
            f"returned {type(targets[0]).__name__}; probe the part that returns one."
        )

    def errors() -> Tensor:
        pairs = zip(live + fresh, targets * 2, strict=True)
        return torch.stack(
            [(network(inputs) - target).square().mean() for network, target in pairs]
        )

    parameters = [p for network in live + fresh for p in network.parameters()]
    return float(_error_ratio(_fit(parameters, errors, steps, learning_rate)))


def _fit(
    parameters: Sequence[Tensor], errors: Callable[[], Tensor], steps: int, learning_rate: float
) -> Tensor:
    """Errors of independent networks after training each on its own with a fresh Adam."""
    optimizer = torch.optim.Adam(parameters, lr=learning_rate, fused=True)
    with torch.enable_grad():
        for _ in range(steps):
            optimizer.zero_grad()
            errors().sum().backward()
            optimizer.step()
    with torch.no_grad():
        return errors().double()


def _error_ratio(errors: Tensor) -> Tensor:
    """Geometric mean of the first half, those of live networks, over that of the second."""
    live, fresh = errors.clamp(min=torch.finfo(torch.float64).tiny).log().chunk(2)
    ratio = (live.mean() - fresh.mean()).exp()
    return torch.where(errors.isfinite().all(), ratio, torch.nan)


def _generator(seed: int) -> torch.Generator:
    state = np.random.SeedSequence((PROBE_STREAM, seed)).generate_state(1, np.uint64)
    return torch.Generator().manual_seed(int(state[0] >> np.uint64(1)))


def _random_layers(layers: Tensors, generator: torch.Generator) -> Tensors:
    """Networks of the shape of `layers`, one after the other from one generator."""
    networks = [
        [
            _orthogonal(weight.shape[1:], 1.0 if layer is layers[-1] else math.sqrt(2), generator)
            for layer in layers
            for weight in layer[:1]
        ]
        for _ in range(len(layers[0][0]))
    ]
    stacked = [torch.stack(draws) for draws in zip(*networks, strict=True)]
    return [
        (draws.to(weight), torch.zeros_like(bias))
        for draws, (weight, bias) in zip(stacked, layers, strict=True)
    ]


def _orthogonal(shape: torch.Size, gain: float, generator: torch.Generator) -> Tensor:
    draw = torch.empty(shape, dtype=torch.float64)
    return nn.init.orthogonal_(draw, gain, generator=generator)


def _trainable(live: tuple[Tensor, Tensor], fresh: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
    weight, bias = (torch.cat(pair).requires_grad_(True) for pair in zip(live, fresh, strict=True))
    return weight, bias


def _forward(
    weighted: Tensors,
    norms: Tensors,
    functions: Sequence[Callable[[Tensor], Tensor]],
    inputs: Tensor,
) -> Tensor:
    h = inputs
    for depth, ((weight, bias), function) in enumerate(zip(weighted, functions, strict=True)):
        h = torch.baddbmm(bias.unsqueeze(1), h, weight.mT)
        if depth < len(norms):
            scale, shift = norms[depth]
            h = functional.layer_norm(h, h.shape[-1:]) * scale.unsqueeze(1)
            h = h + shift.unsqueeze(1)
        h = function(h)
    return h


def _redrawn(module: nn.Module, generator: torch.Generator) -> nn.Module:
    """A copy with fresh parameters."""
    redrawn = copy.deepcopy(module)
    output = _weighted(redrawn)[-1:]
    for part in redrawn.modules():
        if isinstance(part, WEIGHTED):
            if part in output:
                _widen(part)
            gain = 1.0 if part in output else math.sqrt(2)
            part.weight.data.copy_(_orthogonal(part.weight.shape, gain, generator))
            if part.bias is not None:
                nn.init.zeros_(part.bias)
        elif isinstance(part, NORMALISING):
            part.reset_parameters()
        elif next(part.parameters(recurse=False), None) is not None:
            raise ValueError(
                f"The probe cannot draw a fresh {type(part).__name__}; it knows linear, "
                "convolutional and normalisation layers, so probe the part made of those."
            )
    return redrawn


def _widen(output: nn.Module) -> None:
    """Give a linear layer as many outputs as the probe's targets have, of no particular weights."""
    if isinstance(output, nn.Linear):
        output.out_features = OUTPUTS
        output.weight = nn.Parameter(output.weight.new_empty(OUTPUTS, output.in_features))
        if output.bias is not None:
            output.bias = nn.Parameter(output.bias.new_empty(OUTPUTS))


def _weighted(module: nn.Module) -> list[nn.Module]:
    return [part for part in module.modules() if isinstance(part, WEIGHTED)]
