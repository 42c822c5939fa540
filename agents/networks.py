"""The actors and critics of a population: S networks of one shape, stacked along a member axis.

All parameters of the population live in one flat buffer [S, D], and so do their gradients, so
that an optimizer step or a gradient norm is a handful of passes over one tensor. The backward
pass is written out: for networks this small it takes half the time of automatic differentiation,
and a tenth when there is one member. The tests hold it to autograd.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from agents import compiled
from agents.distribution import std_of_output
from agents.random_streams import seed_of

ROW_ALIGNMENT = 64
LAYER_NORM_EPS = 1e-5


class FlatParameters:
    """Named tensors [S, …] that are views of one flat buffer [S, D], and their gradients.

    D is padded with zeros to a multiple of 64, so that every member's row meets the same vector
    lanes however many members there are. The padding has no gradient and no name.

    Args:
        shapes: name → shape of one member's tensor.
        num_members: S.
    """

    def __init__(
        self,
        shapes: dict[str, tuple[int, ...]],
        num_members: int,
        dtype: torch.dtype = torch.float32,
        device: torch.device | str = "cpu",
    ) -> None:
        self.shapes = shapes
        self.num_parameters = sum(math.prod(shape) for shape in shapes.values())
        width = -(-self.num_parameters // ROW_ALIGNMENT) * ROW_ALIGNMENT
        self.data = torch.zeros(num_members, width, dtype=dtype, device=device)
        self.gradient = torch.zeros_like(self.data)
        self.views = self.named_views(self.data)
        self.gradient_views = self.named_views(self.gradient)

    def named_views(self, flat: Tensor) -> dict[str, Tensor]:
        """Views [S, …] by name of any tensor [S, D] laid out like the parameters."""
        views, offset = {}, 0
        for name, shape in self.shapes.items():
            size = math.prod(shape)
            views[name] = flat[:, offset : offset + size].view(len(flat), *shape)
            offset += size
        return views


@dataclass(frozen=True)
class Activation:
    """An elementwise nonlinearity.

    The usual ones work in place: whatever is written anew has to come from far away in memory.

    Attributes:
        forward: pre-activations → activations; may overwrite them.
        backward: (gradient in the activations, pre-activations as `forward` left them,
            activations) → gradient in the pre-activations; may overwrite the first.
        infer: the same as `forward`, in place, on NumPy arrays, for the step loop.
    """

    forward: Callable[[Tensor], Tensor]
    backward: Callable[[Tensor, Tensor, Tensor], Tensor]
    infer: Callable[[NDArray], NDArray]


def _sigmoid(z: Tensor) -> Tensor:
    # tanh has the same bits wherever an element stands in the tensor; torch.sigmoid has not.
    return torch.tanh(z * 0.5).add_(1.0).mul_(0.5)


def _silu_backward(gradient: Tensor, z: Tensor, h: Tensor) -> Tensor:
    sigmoid = _sigmoid(z)
    return gradient * (sigmoid + h * (1.0 - sigmoid))


ACTIVATIONS: dict[str, Activation] = {
    "tanh": Activation(
        torch.tanh_,
        lambda gradient, z, h: torch.ops.aten.tanh_backward(gradient, h, grad_input=gradient),
        lambda z: np.tanh(z, out=z),
    ),
    "relu": Activation(
        torch.relu_,
        lambda gradient, z, h: torch.ops.aten.threshold_backward(
            gradient, h, 0.0, grad_input=gradient
        ),
        lambda z: np.maximum(z, 0, out=z),
    ),
    "leaky_relu": Activation(
        lambda z: torch.where(z > 0, z, 0.01 * z),
        lambda gradient, z, h: torch.where(z > 0, gradient, 0.01 * gradient),
        lambda z: np.where(z > 0, z, 0.01 * z),
    ),
    "elu": Activation(
        lambda z: torch.where(z > 0, z, torch.expm1(z)),
        lambda gradient, z, h: torch.where(z > 0, gradient, gradient * (h + 1.0)),
        lambda z: np.where(z > 0, z, np.expm1(np.minimum(z, 0))),
    ),
    "silu": Activation(
        lambda z: z * _sigmoid(z),
        _silu_backward,
        lambda z: z * (0.5 * (1.0 + np.tanh(0.5 * z))),
    ),
}


class NumpyLayer(NamedTuple):
    """A layer's weight [S, in, out], and [S, 1, out] the rest; without layer norm that is None."""

    weight: NDArray
    bias: NDArray
    norm_weight: NDArray | None
    norm_bias: NDArray | None


class StackedMLP:
    """S multilayer perceptrons of one shape: linear → [layer norm] → activation, …, linear.

    Args:
        parameters: where its tensors live; they are called `NAME.layer_1.weight` [S, out, in],
            `.bias` [S, out], with layer norm also `.norm_weight` and `.norm_bias` [S, out], and
            `NAME.output.weight`, `.bias`.
        name: "actor" or "critic".
        sizes: inputs, units of each hidden layer, outputs.
        activation: a key of `ACTIVATIONS`.
        layer_norm: normalise pre-activations (Ba et al., 2016).
    """

    def __init__(
        self,
        parameters: FlatParameters,
        name: str,
        sizes: tuple[int, ...],
        activation: str,
        layer_norm: bool,
    ) -> None:
        self.parameters = parameters
        self.sizes = sizes
        num_hidden = len(sizes) - 2
        self.layers = [f"{name}.layer_{i + 1}" for i in range(num_hidden)]
        self.output_layer = f"{name}.output"
        self.activation = ACTIVATIONS[activation]
        self.layer_norm = layer_norm
        self._saved: list[tuple[Tensor, ...]] = []

    def forward(self, inputs: Tensor) -> Tensor:
        """[S, B, in] → [S, B, out], keeping what `backward` needs."""
        self._saved = []
        h = inputs
        for layer in self.layers:
            z = self._linear(layer, h)
            normalised = inverse_std = z
            if self.layer_norm:
                z, normalised, inverse_std = self._normalise(layer, z)
            activations = self.activation.forward(z)
            self._saved.append((h, z, activations, normalised, inverse_std))
            h = activations
        return self._linear(self.output_layer, h)

    def backward(self, gradient: Tensor) -> None:
        """Write the parameters' gradients, given the loss's gradient [S, B, out] in the outputs.

        The loss is summed over the batch here; divide by B beforehand for a mean. What `forward`
        kept is used up: the other network gets the same memory, while it is still in the cache.
        """
        h = self._saved[-1][2]
        gradient = self._linear_backward(self.output_layer, gradient, h)
        for i in reversed(range(len(self.layers))):
            layer = self.layers[i]
            h, z, activations, normalised, inverse_std = self._saved.pop()
            gradient = self.activation.backward(gradient, z, activations)
            if self.layer_norm:
                gradient = self._normalise_backward(layer, gradient, normalised, inverse_std)
            gradient = self._linear_backward(layer, gradient, h, needs_input=i > 0)

    def hidden_activations(self, inputs: Tensor) -> list[Tensor]:
        """The activations [S, B, units] of every hidden layer on inputs [S, B, in]."""
        self.forward(inputs)
        return [activations for _, _, activations, _, _ in self._saved]

    def numpy_layers(self) -> list[NumpyLayer]:
        """The layers as `infer` takes them: views of the parameters, copies from a GPU."""
        views = self.parameters.named_views(self.parameters.data.cpu())
        arrays = {name: view.numpy() for name, view in views.items()}
        return [
            NumpyLayer(
                arrays[f"{layer}.weight"].swapaxes(1, 2),
                arrays[f"{layer}.bias"][:, None],
                arrays[f"{layer}.norm_weight"][:, None] if norm else None,
                arrays[f"{layer}.norm_bias"][:, None] if norm else None,
            )
            for layer in (*self.layers, self.output_layer)
            for norm in (self.layer_norm and layer != self.output_layer,)
        ]

    def infer(self, inputs: NDArray, layers: list[NumpyLayer]) -> NDArray:
        """`forward` on NumPy arrays, for the step loop: [S, N, in] → [S, N, out].

        Args:
            layers: from `numpy_layers`.
        """
        *hidden, output = layers
        h = inputs
        for weight, bias, norm_weight, norm_bias in hidden:
            z = np.matmul(h, weight)
            z += bias
            if norm_weight is not None:
                z -= z.mean(-1, keepdims=True)
                z /= np.sqrt(np.square(z).mean(-1, keepdims=True) + LAYER_NORM_EPS)
                z *= norm_weight
                z += norm_bias
            h = self.activation.infer(z)
        outputs = np.matmul(h, output.weight)
        outputs += output.bias
        return outputs

    def _linear(self, layer: str, inputs: Tensor) -> Tensor:
        views = self.parameters.views
        weight, bias = views[f"{layer}.weight"], views[f"{layer}.bias"]
        if weight.shape[1] == 1:
            # As a product it would take another kernel, of other bits, when there is one member.
            return (inputs * weight).sum(-1, keepdim=True) + bias.unsqueeze(1)
        return torch.baddbmm(bias.unsqueeze(1), inputs, weight.transpose(1, 2))

    def _linear_backward(
        self, layer: str, gradient: Tensor, inputs: Tensor, needs_input: bool = True
    ) -> Tensor:
        gradients, views = self.parameters.gradient_views, self.parameters.views
        gradients[f"{layer}.weight"].copy_(torch.bmm(gradient.transpose(1, 2), inputs))
        gradients[f"{layer}.bias"].copy_(gradient.sum(1))
        if not needs_input:
            return gradient
        weight = views[f"{layer}.weight"]
        if weight.shape[2] == 1:  # as in `_linear`
            return (gradient * weight.transpose(1, 2)).sum(-1, keepdim=True)
        return torch.bmm(gradient, weight)

    def _normalise(self, layer: str, z: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        views = self.parameters.views
        centred = z - z.mean(-1, keepdim=True)
        inverse_std = (centred.square().mean(-1, keepdim=True) + LAYER_NORM_EPS).rsqrt()
        normalised = centred * inverse_std
        weight, bias = views[f"{layer}.norm_weight"], views[f"{layer}.norm_bias"]
        return normalised * weight.unsqueeze(1) + bias.unsqueeze(1), normalised, inverse_std

    def _normalise_backward(
        self, layer: str, gradient: Tensor, normalised: Tensor, inverse_std: Tensor
    ) -> Tensor:
        gradients, views = self.parameters.gradient_views, self.parameters.views
        gradients[f"{layer}.norm_weight"].copy_((gradient * normalised).sum(1))
        gradients[f"{layer}.norm_bias"].copy_(gradient.sum(1))
        gradient = gradient * views[f"{layer}.norm_weight"].unsqueeze(1)
        mean = gradient.mean(-1, keepdim=True)
        correlation = (gradient * normalised).mean(-1, keepdim=True)
        return (gradient - mean - normalised * correlation) * inverse_std


class ActorCritic:
    """The networks of S members: a Gaussian policy and a value function, apart.

    The actor gives the mean of a diagonal Gaussian. Its log standard deviation `actor.log_std`
    [S, A] does not depend on the state; or else the actor has 2·A outputs, the means and then
    what `distribution.std_of_output` makes standard deviations of.

    Args:
        seeds: the members' seeds; member k's initial weights depend on `seeds[k]` alone.
        observation_size: O.
        action_size: A.
        hidden_sizes: units of the hidden layers, the same for actor and critic.
        activation: a key of `ACTIVATIONS`.
        layer_norm: normalise the pre-activations of the hidden layers.
        initialization: a key of `INITIALIZATIONS`.
        state_dependent_std: the standard deviations are outputs of the actor.

    Attributes:
        critic_at: where the critic's parameters begin in a row of the flat buffer; before them
            are the actor's.
    """

    def __init__(
        self,
        seeds: list[int],
        observation_size: int,
        action_size: int,
        hidden_sizes: tuple[int, ...] = (64, 64),
        activation: str = "tanh",
        layer_norm: bool = False,
        dtype: torch.dtype = torch.float32,
        device: torch.device | str = "cpu",
        initialization: str = "orthogonal",
        state_dependent_std: bool = False,
    ) -> None:
        self.action_size = action_size
        self.state_dependent_std = state_dependent_std
        outputs = 2 * action_size if state_dependent_std else action_size
        actor_sizes = (observation_size, *hidden_sizes, outputs)
        critic_sizes = (observation_size, *hidden_sizes, 1)
        shapes = _mlp_shapes("actor", actor_sizes, layer_norm)
        if not state_dependent_std:
            shapes["actor.log_std"] = (action_size,)
        self.critic_at = sum(math.prod(shape) for shape in shapes.values())
        shapes |= _mlp_shapes("critic", critic_sizes, layer_norm)
        self.parameters = FlatParameters(shapes, len(seeds), dtype, device)
        self.activation_name = activation
        self.actor = StackedMLP(self.parameters, "actor", actor_sizes, activation, layer_norm)
        self.critic = StackedMLP(self.parameters, "critic", critic_sizes, activation, layer_norm)
        for member, seed in enumerate(seeds):
            generator = torch.Generator().manual_seed(seed_of(seed, "parameters"))
            self._initialise(member, INITIALIZATIONS[initialization], generator)

    @property
    def uses_kernels(self) -> bool:
        """Whether compiled kernels are there and know networks like these."""
        return self.why_no_kernels is None

    @property
    def why_no_kernels(self) -> str | None:
        """What keeps the compiled kernels from being used, in a few words; None if nothing."""
        data = self.parameters.data
        if data.dtype != torch.float32:
            return f"{str(data.dtype).removeprefix('torch.')} parameters"
        if data.device.type != "cpu":
            return f"the device is {data.device}"
        if self.actor.layer_norm:
            return "layer normalisation"
        kernels = compiled.kernels()
        if kernels is None:
            return compiled.why_none()
        if self.activation_name not in kernels.ACTIVATIONS:
            return f"activation {self.activation_name}"
        return None

    @property
    def log_std(self) -> Tensor:
        """Log standard deviations of the policy [S, A], where they do not depend on the state."""
        return self.parameters.views["actor.log_std"]

    def means_and_stds(self, outputs: Tensor) -> tuple[Tensor, Tensor]:
        """The policy's means [S, B, A] and standard deviations [S, 1 or B, A].

        Args:
            outputs: of the actor, [S, B, …].
        """
        if not self.state_dependent_std:
            return outputs, torch.exp(self.log_std).unsqueeze(1)
        means, raw = outputs.split(self.action_size, -1)
        return means, std_of_output(raw)

    def mean_stds(self, observations: Tensor) -> Tensor:
        """The policy's standard deviations [S, A], averaged over observations [S, B, O]."""
        return self.means_and_stds(self.actor.forward(observations))[1].mean(1)

    def values(self, observations: NDArray) -> NDArray:
        """The critic's estimates [S, B] for observations [S, B, O]."""
        inputs = torch.from_numpy(observations).to(self.parameters.data.device)
        return self.critic.forward(inputs).squeeze(-1).cpu().numpy()

    def _initialise(
        self, member: int, initialize: Initialization, generator: torch.Generator
    ) -> None:
        views = self.parameters.views
        for name, view in views.items():
            if name.endswith("norm_weight"):
                view[member].fill_(1.0)
            elif name.endswith(".weight"):
                layer = name.removesuffix(".weight")
                weight, bias = (
                    torch.zeros(views[f"{layer}.{kind}"].shape[1:], dtype=torch.float64)
                    for kind in ("weight", "bias")
                )
                initialize(layer, weight, bias, generator)
                view[member].copy_(weight)
                views[f"{layer}.bias"][member].copy_(bias)


Initialization = Callable[[str, Tensor, Tensor, torch.Generator], None]
"""(layer's name, weight [out, in], bias [out], generator): fills the last two, given as zeros."""


def _orthogonal(layer: str, weight: Tensor, bias: Tensor, generator: torch.Generator) -> None:
    """Gain √2 hidden, 0.01 actor output, 1 critic output; biases 0."""
    gain = {"actor.output": 0.01, "critic.output": 1.0}.get(layer, math.sqrt(2))
    torch.nn.init.orthogonal_(weight, gain, generator=generator)


def _lecun_uniform(layer: str, weight: Tensor, bias: Tensor, generator: torch.Generator) -> None:
    """Within ±√(3 / inputs), a variance of 1 / inputs, in every layer; biases 0."""
    bound = math.sqrt(3 / weight.shape[1])
    weight.uniform_(-bound, bound, generator=generator)


def _pytorch(layer: str, weight: Tensor, bias: Tensor, generator: torch.Generator) -> None:
    """As `torch.nn.Linear` does it: weights and biases within ±1/√inputs, in every layer."""
    torch.nn.init.kaiming_uniform_(weight, a=math.sqrt(5), generator=generator)
    bound = 1 / math.sqrt(weight.shape[1])
    bias.uniform_(-bound, bound, generator=generator)


INITIALIZATIONS: dict[str, Initialization] = {
    "orthogonal": _orthogonal,
    "lecun_uniform": _lecun_uniform,
    "pytorch": _pytorch,
}


def _mlp_shapes(name: str, sizes: tuple[int, ...], layer_norm: bool) -> dict[str, tuple[int, ...]]:
    shapes: dict[str, tuple[int, ...]] = {}
    for i, (inputs, outputs) in enumerate(itertools.pairwise(sizes)):
        hidden = i < len(sizes) - 2
        layer = f"{name}.layer_{i + 1}" if hidden else f"{name}.output"
        shapes[f"{layer}.weight"] = (outputs, inputs)
        shapes[f"{layer}.bias"] = (outputs,)
        if layer_norm and hidden:
            shapes[f"{layer}.norm_weight"] = (outputs,)
            shapes[f"{layer}.norm_bias"] = (outputs,)
    return shapes
