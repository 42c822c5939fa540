"""FeatureUPGD against a network that really has gates."""

import copy
import pickle
from itertools import pairwise

import pytest
import torch
from torch import nn

from upgd_ppo.agents.networks.layers import layers_of
from upgd_ppo.agents.optimizers import FeatureUPGD, hesscale

BETA, LR, SIGMA, DECAY = 0.9, 0.05, 0.3, 0.01


class Gated(nn.Module):
    """A multilayer perceptron whose hidden units' outputs are multiplied by gates of 1."""

    def __init__(self, sizes):
        super().__init__()
        pairs = list(pairwise(sizes))
        self.layers = nn.ModuleList(nn.Linear(i, o) for i, o in pairs)
        self.gates = [torch.ones(o, dtype=torch.float64, requires_grad=True) for _, o in pairs[:-1]]

    def forward(self, x):
        for layer, gate in zip(self.layers, self.gates, strict=False):
            x = torch.tanh(layer(x)) * gate
        return self.layers[-1](x)


def data(step, outputs):
    generator = torch.Generator().manual_seed(step)
    x = torch.randn(8, 4, generator=generator, dtype=torch.float64)
    return x, torch.randn(8, outputs, generator=generator, dtype=torch.float64)


@pytest.mark.parametrize("protecting", [True, False])
@pytest.mark.parametrize("scope", ["global", "local"])
@pytest.mark.parametrize("order", ["first", "second"])
def test_agrees_with_gates_in_the_network(order, scope, protecting):
    # One hidden layer and one output for second order: there HesScale, and so h, is exact.
    sizes = [4, 7, 5, 3] if order == "first" else [4, 7, 1]
    torch.manual_seed(0)
    gated = Gated(sizes).double()
    plain = nn.Sequential(
        *[m for layer in gated.layers for m in (nn.Linear(*layer.weight.T.shape), nn.Tanh())][:-1]
    ).double()
    plain.load_state_dict(dict(zip(plain.state_dict(), gated.state_dict().values(), strict=True)))
    noise = {}
    optimizer = FeatureUPGD(
        plain.parameters(),
        lr=LR,
        sigma=SIGMA,
        weight_decay=DECAY,
        beta_utility=BETA,
        order=order,
        scope=scope,
        protecting=protecting,
        noise=lambda p: noise[p],
    )
    traces = [torch.zeros_like(gate) for gate in gated.gates]
    loss = nn.MSELoss()
    for step in range(1, 5):
        x, y = data(step, sizes[-1])
        noise = {p: torch.randn_like(p) for p in plain.parameters()}

        # The fast one.
        optimizer.zero_grad()
        hesscale(plain, x, y, loss)
        optimizer.step()

        # The slow one, with gates.
        parameters = list(gated.parameters())
        value = loss(gated(x), y)
        gradients = torch.autograd.grad(value, [*parameters, *gated.gates], create_graph=True)
        by_parameter = dict(zip(parameters, gradients, strict=False))
        for i, (trace, gate) in enumerate(zip(traces, gated.gates, strict=True)):
            slope = gradients[len(parameters) + i]
            utility = -slope.detach()
            if order == "second":
                rows = [torch.autograd.grad(s, gate, retain_graph=True)[0] for s in slope]
                utility = utility + 0.5 * torch.stack(rows).diagonal()
            trace.mul_(BETA).add_(utility, alpha=1 - BETA)
        maximum = torch.cat(traces).max()
        injected = list(noise.values())
        with torch.no_grad():
            for i, layer in enumerate(gated.layers):
                for p, xi in ((layer.weight, injected[2 * i]), (layer.bias, injected[2 * i + 1])):
                    gradient = by_parameter[p].detach()
                    p.mul_(1 - LR * DECAY)
                    if i == len(gated.gates):
                        p.sub_(LR * gradient)
                        continue
                    corrected = traces[i] / (1 - BETA**step)
                    if scope == "global":
                        ratio = corrected / maximum if maximum > 0 else torch.zeros_like(corrected)
                    else:
                        ratio = nn.functional.normalize(corrected, dim=0)
                    open_ = 1 - torch.sigmoid(ratio)
                    if p.ndim == 2:
                        open_ = open_[:, None]
                    if protecting:
                        p.sub_(LR * (gradient + SIGMA * xi) * open_)
                    else:
                        p.sub_(LR * (gradient + SIGMA * xi * open_))
        for mine, theirs in zip(plain.parameters(), gated.parameters(), strict=True):
            torch.testing.assert_close(mine, theirs, rtol=1e-9, atol=1e-11)


def test_utilities_are_shared_by_a_unit_and_zero_outside_hidden_layers():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 7), nn.LayerNorm(7), nn.Tanh(), nn.Linear(7, 2))
    optimizer = FeatureUPGD(model.parameters())
    model(torch.randn(8, 4)).square().mean().backward()
    optimizer.step()
    utilities = optimizer.utilities()
    units = utilities[model[0].bias]
    assert len(units.unique()) > 1
    assert torch.equal(utilities[model[0].weight], units[:, None].expand(7, 4))
    assert torch.equal(utilities[model[1].weight], units)
    assert not utilities[model[3].weight].any()
    assert not utilities[model[3].bias].any()


def test_networks_in_groups_are_kept_apart():
    """The first network's outputs are not the second one's inputs, though as many."""
    torch.manual_seed(0)
    actor = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 3))
    critic = nn.Sequential(nn.Linear(3, 5), nn.Tanh(), nn.Linear(5, 1))
    optimizer = FeatureUPGD([{"params": actor.parameters()}, {"params": critic.parameters()}])
    (actor(torch.randn(8, 3)).sum() + critic(torch.randn(8, 3)).sum()).backward()
    optimizer.step()
    assert not optimizer.utilities()[actor[2].weight].any()
    assert optimizer.utilities()[critic[0].weight].any()


def stepped(model, optimizer, x):
    model(x).square().sum().backward()
    optimizer.step()
    return [p.detach().clone() for p in model.parameters()]


@pytest.mark.parametrize("scope", ["global", "local"])
def test_layers_given_by_name_do_what_layers_found_by_shape_do(scope):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 7), nn.LayerNorm(7), nn.Tanh(), nn.Linear(7, 2))
    twin, x = copy.deepcopy(model), torch.randn(8, 4)
    layers = layers_of(model, x)
    by_shape = FeatureUPGD(
        model.parameters(), scope=scope, generator=torch.Generator().manual_seed(1)
    )
    by_name = FeatureUPGD(
        twin.named_parameters(),
        scope=scope,
        generator=torch.Generator().manual_seed(1),
        layers=layers,
    )
    for _ in range(3):
        for one, other in zip(stepped(model, by_shape, x), stepped(twin, by_name, x), strict=True):
            assert torch.equal(one, other)
    assert pickle.loads(pickle.dumps(by_name)).layers == layers


class TwoHeads(nn.Module):
    """One group of parameters, heads before the body, and units that go to both heads."""

    def __init__(self):
        super().__init__()
        self.mean, self.std = nn.Linear(5, 4), nn.Linear(5, 2)
        self.body, self.tanh = nn.Linear(4, 5), nn.Tanh()

    def forward(self, x):
        h = self.tanh(self.body(x))
        return torch.cat([self.mean(h), self.std(h)], 1)


def test_units_that_go_to_two_heads_have_the_utility_of_both():
    torch.manual_seed(0)
    model, x = TwoHeads().double(), torch.randn(8, 4, dtype=torch.float64)
    optimizer = FeatureUPGD(
        model.named_parameters(), layers=layers_of(model, x), beta_utility=0.0, sigma=0.0
    )
    gate = torch.ones(5, dtype=torch.float64, requires_grad=True)
    h = model.tanh(model.body(x)) * gate
    loss = torch.cat([model.mean(h), model.std(h)], 1).square().sum()
    [expected] = torch.autograd.grad(loss, gate)
    stepped(model, optimizer, x)
    utility = optimizer.state[model.body.bias]["utility"]
    torch.testing.assert_close(utility, -expected)
    assert not optimizer.state[model.mean.weight]["utility"].any()


def test_layers_of_parameters_without_their_names_are_refused():
    model = nn.Sequential(nn.Linear(4, 7), nn.Tanh(), nn.Linear(7, 2))
    with pytest.raises(ValueError, match=r"layer_1 of network .* model\.named_parameters\(\)"):
        FeatureUPGD(model.parameters(), layers=layers_of(model, torch.randn(3, 4)))
