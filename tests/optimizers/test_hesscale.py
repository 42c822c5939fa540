"""HesScale: exact where the theory says so, and close elsewhere."""

import copy
from itertools import pairwise

import pytest
import torch
from torch import nn

from upgd_ppo.agents.optimizers import UPGD, hesscale

ACTIVATIONS = [
    nn.Tanh(),
    nn.Sigmoid(),
    nn.ReLU(),
    nn.ReLU(inplace=True),
    nn.LeakyReLU(0.1),
    nn.ELU(1.5),
    nn.SiLU(),
    nn.GELU(),
    nn.Softplus(2.0),
    nn.Identity(),
]


def mlp(sizes, activation, seed=0):
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        layers = []
        for inputs, outputs in pairwise(sizes):
            layers += [nn.Linear(inputs, outputs), copy.deepcopy(activation)]
        return nn.Sequential(*layers[:-1]).double()


def batch(size, inputs, seed=1):
    return torch.randn(
        size, inputs, generator=torch.Generator().manual_seed(seed), dtype=torch.float64
    )


def exact_diagonal(model, inputs, targets, loss):
    names = [name for name, _ in model.named_parameters()]
    values = tuple(p.detach() for p in model.parameters())

    def value(*parameters):
        named = dict(zip(names, parameters, strict=True))
        return loss(torch.func.functional_call(model, named, (inputs.clone(),)), targets)

    blocks = torch.autograd.functional.hessian(value, values)
    return [
        blocks[i][i].reshape(p.numel(), p.numel()).diagonal().view(p.shape)
        for i, p in enumerate(values)
    ]


def flat(tensors):
    return torch.cat([tensor.flatten() for tensor in tensors])


def correlation(a, b):
    return torch.corrcoef(torch.stack([flat(a), flat(b)]))[0, 1].item()


@pytest.mark.parametrize("reduction", ["mean", "sum"])
@pytest.mark.parametrize("activation", ACTIVATIONS, ids=repr)
def test_one_hidden_layer_and_one_output_is_exact(activation, reduction):
    model, x, y = mlp([5, 7, 1], activation), batch(6, 5), batch(6, 1)
    loss = nn.MSELoss(reduction=reduction)
    hesscale(model, x, y, loss)
    for p, exact in zip(model.parameters(), exact_diagonal(model, x, y, loss), strict=True):
        torch.testing.assert_close(p.curvature, exact, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize(
    "loss", [nn.MSELoss(), nn.CrossEntropyLoss(), nn.CrossEntropyLoss(reduction="sum")]
)
def test_the_last_layer_is_exact(loss):
    model, x = mlp([4, 6, 5, 3], nn.Tanh()), batch(7, 4)
    y = batch(7, 3) if isinstance(loss, nn.MSELoss) else torch.arange(7) % 3
    hesscale(model, x, y, loss)
    exact = exact_diagonal(model, x, y, loss)
    torch.testing.assert_close(model[-1].weight.curvature, exact[-2])
    torch.testing.assert_close(model[-1].bias.curvature, exact[-1])


@pytest.mark.parametrize(("activation", "least"), [(nn.Tanh(), 0.97), (nn.ReLU(), 0.97)])
@pytest.mark.parametrize("sizes", [[8, 16, 16, 4], [8, 16, 16, 16, 4]])
def test_elsewhere_it_correlates_with_the_exact_diagonal(sizes, activation, least):
    model, x, y = mlp(sizes, activation), batch(64, 8), torch.arange(64) % 4
    hesscale(model, x, y, nn.CrossEntropyLoss())
    estimate = [p.curvature for p in model.parameters()]
    assert correlation(estimate, exact_diagonal(model, x, y, nn.CrossEntropyLoss())) > least


@pytest.mark.parametrize("activation", ACTIVATIONS, ids=repr)
def test_loss_and_gradients_are_those_of_autograd_and_accumulate(activation):
    model, x = mlp([5, 7, 6, 3], activation), batch(9, 5)
    y, loss = torch.softmax(batch(9, 3), -1), nn.CrossEntropyLoss()
    expected = loss(model(x), y)
    expected.backward()
    expected_gradients = [p.grad.clone() for p in model.parameters()]
    value = hesscale(model, x, y, loss)
    torch.testing.assert_close(value, expected.detach())
    for p, gradient in zip(model.parameters(), expected_gradients, strict=True):
        torch.testing.assert_close(p.grad, 2 * gradient)


def test_frozen_parameters_get_nothing():
    model = mlp([3, 4, 1], nn.Tanh())
    model[0].weight.requires_grad_(False)
    hesscale(model, batch(2, 3), batch(2, 1), nn.MSELoss())
    assert model[0].weight.grad is None
    assert not hasattr(model[0].weight, "curvature")


def test_a_module_of_ones_own_is_followed():
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.output, self.hidden, self.activation = (
                nn.Linear(4, 1),
                nn.Linear(3, 4),
                nn.Tanh(),
            )

        def forward(self, x):
            return self.output(self.activation(self.hidden(x)))

    model, loss = Net().double(), nn.MSELoss()
    hesscale(model, batch(5, 3), batch(5, 1), loss)
    exact = exact_diagonal(model, batch(5, 3), batch(5, 1), loss)
    for p, diagonal in zip(model.parameters(), exact, strict=True):
        torch.testing.assert_close(p.curvature, diagonal)


def test_what_it_does_not_know_it_refuses():
    x, y, loss = batch(2, 3), batch(2, 1), nn.MSELoss()
    with pytest.raises(TypeError, match=r"does not know the module Dropout.*it knows Linear, Tanh"):
        hesscale(nn.Sequential(nn.Linear(3, 1), nn.Dropout()).double(), x, y, loss)

    class Functional(nn.Module):
        def __init__(self):
            super().__init__()
            self.first, self.second = nn.Linear(3, 4), nn.Linear(4, 1)

        def forward(self, x):
            return self.second(torch.relu(self.first(x)))

    with pytest.raises(TypeError, match="chain of modules"):
        hesscale(Functional().double(), x, y, loss)
    model = mlp([3, 4, 1], nn.Tanh())
    with pytest.raises(TypeError, match=r"nn\.MSELoss and nn\.CrossEntropyLoss, not L1Loss"):
        hesscale(model, x, y, nn.L1Loss())
    with pytest.raises(ValueError, match="'mean' or 'sum', got 'none'"):
        hesscale(model, x, y, nn.MSELoss(reduction="none"))
    classifier = mlp([3, 4, 2], nn.Tanh())
    weighted = nn.CrossEntropyLoss(weight=torch.ones(2, dtype=torch.float64))
    with pytest.raises(ValueError, match="no class weights"):
        hesscale(classifier, x, torch.zeros(2, dtype=torch.long), weighted)


def test_second_order_upgd_learns_with_it():
    model, x = mlp([4, 16, 2], nn.Tanh()), batch(64, 4)
    y = (x.sum(1) > 0).long()
    optimizer = UPGD(model.parameters(), lr=0.5, order="second", beta_utility=0.9)
    losses = []
    for _ in range(100):
        optimizer.zero_grad()
        losses.append(hesscale(model, x, y, nn.CrossEntropyLoss()).item())
        optimizer.step()
    assert losses[-1] < 0.3 * losses[0]
