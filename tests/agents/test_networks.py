"""The stacked networks against PyTorch's own modules and automatic differentiation."""

import math
from typing import get_args, get_type_hints

import numpy as np
import pytest
import torch
from scipy import stats
from torch import nn

from upgd_ppo.agents.networks.activations import (
    ACTIVATIONS,
    TRAINABLE,
    activation_named,
    known_activation,
)
from upgd_ppo.agents.networks.actor_critic import ActorCritic
from upgd_ppo.agents.networks.initialization import INITIALIZATIONS, fresh_units
from upgd_ppo.agents.settings.config import PPOConfig

MODULES = {
    "tanh": nn.Tanh,
    "relu": nn.ReLU,
    "leaky_relu": nn.LeakyReLU,
    "elu": nn.ELU,
    "silu": nn.SiLU,
}


def torch_module(networks, member, name, depth, activation, layer_norm):
    """The same network as an ordinary module."""
    views = networks.parameters.views
    layers = []
    for layer in [*(f"{name}.layer_{i + 1}" for i in range(depth)), f"{name}.output"]:
        weight, bias = views[f"{layer}.weight"][member], views[f"{layer}.bias"][member]
        linear = nn.Linear(*reversed(weight.shape), dtype=torch.float64)
        linear.weight.data, linear.bias.data = weight.clone(), bias.clone()
        layers.append(linear)
        if not layer.endswith("output"):
            if layer_norm:
                norm = nn.LayerNorm(len(bias), dtype=torch.float64)
                norm.weight.data = views[f"{layer}.norm_weight"][member].clone()
                norm.bias.data = views[f"{layer}.norm_bias"][member].clone()
                layers.append(norm)
            layers.append(MODULES[activation]())
    return nn.Sequential(*layers)


@pytest.mark.parametrize("layer_norm", [False, True])
@pytest.mark.parametrize("activation", TRAINABLE)
@pytest.mark.parametrize("hidden_sizes", [(9,), (7, 5), (4, 8, 6)])
def test_outputs_and_gradients_equal_those_of_pytorch_modules(activation, layer_norm, hidden_sizes):
    torch.manual_seed(0)
    seeds = [3, 4, 5]
    networks = ActorCritic(seeds, 6, 2, hidden_sizes, activation, layer_norm, torch.float64)
    flat = networks.parameters.data
    flat[:, : networks.parameters.num_parameters].add_(
        0.3 * torch.randn(3, networks.parameters.num_parameters, dtype=torch.float64)
    )
    inputs = torch.randn(3, 11, 6, dtype=torch.float64)
    for name, stacked in (("actor", networks.actor), ("critic", networks.critic)):
        outputs = stacked.forward(inputs)
        weights = torch.randn_like(outputs)
        stacked.backward(weights)
        inferred = stacked.infer(inputs.numpy(), stacked.numpy_layers())
        for member in range(3):
            module = torch_module(networks, member, name, len(hidden_sizes), activation, layer_norm)
            expected = module(inputs[member])
            (expected * weights[member]).sum().backward()
            torch.testing.assert_close(outputs[member], expected, rtol=1e-12, atol=1e-12)
            np.testing.assert_allclose(
                inferred[member], expected.detach().numpy(), rtol=1e-12, atol=1e-12
            )
            gradients = [
                view[member]
                for key, view in networks.parameters.gradient_views.items()
                if key.startswith(f"{name}.") and not key.endswith("log_std")
            ]
            for gradient, parameter in zip(gradients, module.parameters(), strict=True):
                torch.testing.assert_close(gradient, parameter.grad, rtol=1e-10, atol=1e-12)


def test_initialisation_is_orthogonal_with_the_published_gains():
    networks = ActorCritic([1], 64, 8, (64, 64), dtype=torch.float64)
    gains = {"layer_1": math.sqrt(2), "layer_2": math.sqrt(2)}
    for network, output_gain in (("actor", 0.01), ("critic", 1.0)):
        for layer, gain in {**gains, "output": output_gain}.items():
            weight = networks.parameters.views[f"{network}.{layer}.weight"][0]
            product = weight @ weight.T
            expected = gain**2 * torch.eye(len(weight), dtype=torch.float64)
            torch.testing.assert_close(product, expected, rtol=0, atol=1e-10)
            assert not networks.parameters.views[f"{network}.{layer}.bias"].any()
    assert not networks.log_std.any()


def test_a_members_initial_weights_depend_on_its_seed_alone():
    population = ActorCritic([1, 2, 3], 5, 2)
    alone = ActorCritic([2], 5, 2)
    assert torch.equal(population.parameters.data[1:2], alone.parameters.data)
    assert not torch.equal(population.parameters.data[0], population.parameters.data[1])


@pytest.mark.parametrize("initialization", INITIALIZATIONS)
def test_fresh_units_are_drawn_as_the_network_was(initialization):
    size, units, members = 11, 32, 60
    networks = ActorCritic(
        list(range(members)), size, 3, (units,), "relu", initialization=initialization
    )
    [layer] = networks.critic.hidden_layers
    generator = torch.Generator().manual_seed(7)
    draws = [
        fresh_units(initialization, layer, torch.Size((units, size)), generator)
        for _ in range(members)
    ]
    weights, biases = (torch.stack(kind).float() for kind in zip(*draws, strict=True))
    initial = [networks.parameters.views[name] for name in (layer.incoming, layer.own[0])]
    for fresh, first in zip((weights, biases), initial, strict=True):
        assert fresh.shape == first.shape
        assert stats.ks_2samp(fresh.flatten(), first.flatten()).pvalue > 1e-3
    if initialization == "orthogonal":  # 11 inputs < 32 units: the columns are orthogonal
        products = weights.mT @ weights
        torch.testing.assert_close(products, 2 * torch.eye(size).expand_as(products))


def test_fresh_units_of_the_pytorch_kind_are_those_of_a_linear_layer():
    layer = ActorCritic([0], 7, 2, (20,)).actor.hidden_layers[0]
    generator = torch.Generator().manual_seed(3)
    weight, bias = fresh_units("pytorch", layer, torch.Size((20, 7)), generator)
    torch.manual_seed(3)
    linear = nn.Linear(7, 20, dtype=torch.float64)
    assert torch.equal(weight, linear.weight)
    assert torch.equal(bias, linear.bias)


def test_the_settings_offer_the_activations_that_can_be_trained():
    assert get_args(get_type_hints(PPOConfig)["activation"]) == TRAINABLE


def test_an_activation_without_a_backward_pass_is_refused():
    with pytest.raises(ValueError, match=r"no backward pass for 'gelu'.*tanh, relu"):
        ActorCritic([0], 3, 2, (4,), "gelu")


@pytest.mark.parametrize("name", ACTIVATIONS)
def test_function_module_and_derivatives_of_an_activation_agree(name):
    """The table's entries against PyTorch's module of that name and automatic differentiation."""
    activation = activation_named(name)
    z = torch.linspace(-7.03, 7.05, 40, dtype=torch.float64, requires_grad=True)
    if activation.module is None:
        return
    module = activation.module()
    assert known_activation(type(module).__name__) == name
    outputs = module.double()(z)
    torch.testing.assert_close(activation.function(z), outputs)
    if activation.derivatives:
        [slope] = torch.autograd.grad(outputs.sum(), z, create_graph=True)
        bend = torch.zeros_like(z)
        if slope.requires_grad:
            [bend] = torch.autograd.grad(slope.sum(), z)
        first, second = activation.derivatives(module, z.detach(), outputs.detach())
        torch.testing.assert_close(first, slope.detach())
        torch.testing.assert_close(second, bend)


def test_bounded_activations_are_those_whose_outputs_are_and_that_rest_nowhere():
    z = torch.tensor([-1e6, 1e6])
    for name, activation in ACTIVATIONS.items():
        small = activation.function(z).abs().max() < 2
        assert activation.bounded == bool(small), name
