"""The trainability probe: what it measures, and what it leaves alone."""

import copy
import math
from itertools import pairwise

import numpy as np
import pytest
import torch
from torch import nn

from upgd_ppo.agents.networks.layers import Layer
from upgd_ppo.agents.plasticity import module_trainability
from upgd_ppo.agents.plasticity import trainability as trainability_of_layers

SIZES = (4, 16, 16, 2)


def draw(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def networks(members, seed=0, dtype=torch.float64):
    """Orthogonally initialised stacks, as the probe's own."""
    generator = torch.Generator().manual_seed(seed)
    weights, biases = [], []
    for depth, (inputs, outputs) in enumerate(pairwise(SIZES)):
        gain = math.sqrt(2) if depth < len(SIZES) - 2 else 1.0
        weight = torch.empty(members, outputs, inputs, dtype=dtype)
        for one in weight:
            nn.init.orthogonal_(one, gain, generator=generator)
        weights.append(weight)
        biases.append(torch.zeros(members, outputs, dtype=dtype))
    return weights, biases


def trainability(weights, biases, activation, observations, seeds, *, norms=(), **settings):
    """The probe of networks given as lists of tensors."""
    layers, parameters = [], {}
    for depth, (weight, bias) in enumerate(zip(weights, biases, strict=True)):
        own = [bias, *(norms[depth] if depth < len(norms) else ())]
        names = tuple(f"own_{depth}_{i}" for i in range(len(own)))
        hidden = depth < len(weights) - 1
        layers.append(
            Layer(
                "network",
                f"layer_{depth + 1}" if hidden else "output",
                weight.shape[1],
                activation if hidden else "identity",
                f"incoming_{depth}",
                names,
            )
        )
        parameters |= {f"incoming_{depth}": weight, **dict(zip(names, own, strict=True))}
    return trainability_of_layers(layers, parameters, observations, seeds, **settings)


def as_module(weights, biases, member):
    parts = []
    for weight, bias in zip(weights, biases, strict=True):
        linear = nn.Linear(weight.shape[2], weight.shape[1], dtype=weight.dtype)
        linear.weight.data.copy_(weight[member])
        linear.bias.data.copy_(bias[member])
        parts += [linear, nn.Tanh()]
    return nn.Sequential(*parts[:-1])


def test_a_fresh_network_scores_about_one():
    weights, biases = networks(8)
    scores = trainability(weights, biases, "tanh", draw(8, 128, 4), range(8), steps=100)
    assert scores.dtype == torch.float64
    assert ((scores > 0.7) & (scores < 1.4)).all()


def test_a_network_that_cannot_learn_scores_far_worse():
    weights, biases = networks(2)
    weights[0][1] = 0
    biases[0][1] = -1.0
    weights[1][1] *= 0
    biases[1][1] = -1.0  # dead ReLUs: only the output bias can move
    healthy, dead = trainability(weights, biases, "relu", draw(2, 128, 4), (0, 1), steps=400)
    assert dead > 3 * healthy


def test_members_do_not_know_of_each_other():
    weights, biases = networks(3)
    observations = draw(3, 64, 4).double()
    together = trainability(weights, biases, "tanh", observations, (5, 6, 7), steps=30)
    for k, seed in enumerate((5, 6, 7)):
        alone = trainability(
            [w[k : k + 1] for w in weights],
            [b[k : k + 1] for b in biases],
            "tanh",
            observations[k : k + 1],
            [seed],
            steps=30,
        )
        assert alone.item() == together[k].item()


def test_a_sick_member_is_nan_and_the_others_are_untouched():
    weights, biases = networks(3)
    observations = draw(3, 64, 4)
    healthy = trainability(weights, biases, "tanh", observations, (0, 1, 2), steps=10)
    weights[1][1, 0, 0] = float("nan")
    sick = trainability(weights, biases, "tanh", observations, (0, 1, 2), steps=10)
    assert sick.isnan().tolist() == [False, True, False]
    assert torch.equal(sick[[0, 2]], healthy[[0, 2]])


def test_the_networks_and_the_random_streams_are_left_alone():
    weights, biases = networks(2)
    leaves = [w.requires_grad_(True) for w in weights]
    before = copy.deepcopy([w.detach() for w in weights])
    torch_state, numpy_state = torch.get_rng_state(), np.random.get_state()[1].copy()  # noqa: NPY002
    with torch.no_grad():
        trainability(weights, biases, "tanh", draw(2, 64, 4), (0, 1), steps=5)
    assert torch.equal(torch.get_rng_state(), torch_state)
    assert np.array_equal(np.random.get_state()[1], numpy_state)  # noqa: NPY002
    assert all(torch.equal(w, b) for w, b in zip(weights, before, strict=True))
    assert all(leaf.grad is None for leaf in leaves)


def test_no_step_leaves_the_ratio_of_the_first_errors():
    # Written out: targets and fresh network are the first and second draws of the probe's stream.
    weights, biases = networks(1)
    observations = draw(1, 64, 4).double()
    score = trainability(weights, biases, "tanh", observations, [3], steps=0)
    state = np.random.SeedSequence((0x70726F6265, 3)).generate_state(1, np.uint64)
    generator = torch.Generator().manual_seed(int(state[0] >> np.uint64(1)))

    def draw_network():
        layers = []
        for depth, weight in enumerate(weights):
            shape = weight.shape[1:] if depth < 2 else (8, weight.shape[2])
            drawn = torch.empty(shape, dtype=torch.float64)
            gain = math.sqrt(2) if depth < 2 else 1.0
            layers.append(nn.init.orthogonal_(drawn, gain, generator=generator))
        return layers

    def outputs(layers):
        h = observations[0]
        for weight in layers[:-1]:
            h = torch.tanh(h @ weight.T)
        return h @ layers[-1].T

    targets = [draw_network() for _ in range(8)]
    logarithms = []
    for target, fresh in zip(targets, [draw_network() for _ in range(8)], strict=True):
        # The live network gets the output layer of the fresh one.
        live = [*(w[0] for w in weights[:-1]), fresh[-1]]
        errors = [(outputs(n) - outputs(target)).square().mean() for n in (live, fresh)]
        logarithms.append((errors[0] / errors[1]).log())
    expected = torch.stack(logarithms).mean().exp()
    assert score.item() == pytest.approx(expected.item(), rel=1e-9)


def test_stacked_networks_and_a_module_get_the_same_score():
    weights, biases = networks(2)
    observations = draw(2, 64, 4).double()
    stacked = trainability(weights, biases, "tanh", observations, (0, 9), steps=40)
    module = as_module(weights, biases, 1)
    score = module_trainability(module, observations[1], seed=9, steps=40)
    assert score == pytest.approx(stacked[1].item(), rel=1e-6)


def test_layer_normalisation_is_part_of_the_network():
    weights, biases = networks(1)
    norms = [(1 + 0.1 * draw(1, 16).double(), 0.1 * draw(1, 16, seed=1).double())] * 2
    observations = draw(1, 64, 4).double()
    stacked = trainability(weights, biases, "tanh", observations, [2], norms=norms, steps=20)
    plain = as_module(weights, biases, 0)
    parts = []
    for part in plain:
        if isinstance(part, nn.Tanh):
            norm = nn.LayerNorm(16, dtype=torch.float64)
            norm.weight.data.copy_(norms[0][0][0])
            norm.bias.data.copy_(norms[0][1][0])
            parts.append(norm)
        parts.append(part)
    score = module_trainability(nn.Sequential(*parts), observations[0], seed=2, steps=20)
    assert score == pytest.approx(stacked.item(), rel=1e-6)


def test_a_module_is_left_alone():
    module = nn.Sequential(
        nn.Conv1d(2, 3, 3), nn.BatchNorm1d(3), nn.ReLU(), nn.Flatten(), nn.Linear(18, 2)
    )
    before = copy.deepcopy(module.state_dict())
    state = torch.get_rng_state()
    score = module_trainability(module, draw(20, 2, 8), steps=5)
    assert math.isfinite(score)
    assert torch.equal(torch.get_rng_state(), state)
    assert module.training
    assert all(torch.equal(v, before[name]) for name, v in module.state_dict().items())
    assert all(p.grad is None for p in module.parameters())


def test_a_module_with_unknown_parameters_is_refused():
    with pytest.raises(ValueError, match="cannot draw a fresh Bilinear"):
        module_trainability(nn.Sequential(nn.Bilinear(2, 2, 2)), draw(5, 2))


def test_a_module_that_returns_several_tensors_is_refused():
    class Pair(nn.Linear):
        def forward(self, x):
            return super().forward(x), x

    with pytest.raises(TypeError, match="returned tuple"):
        module_trainability(Pair(2, 2), draw(5, 2))


def test_members_that_do_not_fit_are_refused():
    weights, biases = networks(2)
    with pytest.raises(ValueError, match="they must agree"):
        trainability(weights, biases, "tanh", draw(2, 8, 4), [0])
