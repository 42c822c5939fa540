"""Layers: what a unit's tensors are, held to what happens when they are changed."""

import pytest
import torch
from stable_baselines3 import PPO
from torch import nn

from upgd_ppo.agents.networks.actor_critic import ActorCritic
from upgd_ppo.agents.networks.layers import layers_of


@pytest.fixture(autouse=True)
def _seeded():
    torch.manual_seed(0)


class TwoWays(nn.Module):
    """The first layer's units go to two layers, the second one's to one."""

    def __init__(self):
        super().__init__()
        self.first, self.second, self.third = nn.Linear(5, 6), nn.Linear(6, 6), nn.Linear(6, 6)
        self.side, self.relu, self.mean = nn.Linear(6, 2), nn.ReLU(), nn.Linear(6, 2)

    def forward(self, x):
        h = self.relu(self.first(x))
        k = self.relu(self.second(h))
        return self.mean(self.relu(self.third(k))) + self.side(h)


NORMALISED = nn.Sequential(
    nn.Linear(5, 8), nn.LayerNorm(8), nn.Tanh(), nn.Dropout(), nn.Linear(8, 6), nn.ELU(),
    nn.Linear(6, 2, bias=False),
)  # fmt: skip


def test_layers_of_a_module_name_their_parameters():
    first, second = layers_of(NORMALISED, torch.randn(9, 5))
    assert (first.network, first.name, first.units, first.activation) == (
        "network",
        "layer_1",
        8,
        "tanh",
    )
    assert (first.incoming, first.own) == ("0.weight", ("0.bias", "1.weight", "1.bias"))
    assert (first.outgoing, first.next_bias) == ("4.weight", "4.bias")
    assert (second.name, second.incoming, second.own) == ("layer_2", "4.weight", ("4.bias",))
    assert (second.outgoing, second.next_bias) == ("6.weight", None)


def test_layers_of_an_sb3_policy_go_to_its_heads():
    policy = PPO("MlpPolicy", "Pendulum-v1", device="cpu").policy
    layers = {layer.incoming: layer for layer in layers_of(policy, torch.randn(9, 3))}
    assert [layer.network for layer in layers.values()] == [
        "mlp_extractor.policy_net",
        "mlp_extractor.policy_net",
        "mlp_extractor.value_net",
        "mlp_extractor.value_net",
    ]
    last = layers["mlp_extractor.policy_net.2.weight"]
    assert (last.outgoing, last.next_bias) == ("action_net.weight", "action_net.bias")
    assert layers["mlp_extractor.value_net.2.weight"].outgoing == "value_net.weight"


@pytest.mark.parametrize("net", [NORMALISED, TwoWays()], ids=["normalised", "two_ways"])
def test_a_unit_without_outgoing_weights_may_become_another_and_nobody_sees_it(net):
    x = torch.randn(9, 5)
    net = net.eval()
    for layer in layers_of(net, x):
        parameters = dict(net.named_parameters())
        with torch.no_grad():
            for outgoing in (layer.outgoing, *layer.also_outgoing):
                parameters[outgoing][:, 2] = 0
            before = net(x)
            parameters[layer.incoming][2].normal_()
            if layer.own[1:]:  # a layer norm mixes units; its own parameters do not
                parameters[layer.incoming][2].zero_()
                before = net(x)
            for name in layer.own[1:] or layer.own:
                parameters[name][2].normal_()
            torch.testing.assert_close(net(x), before)


def test_units_may_go_to_more_than_one_linear_layer():
    first, *_ = layers_of(TwoWays(), torch.randn(9, 5))
    assert first.incoming == "first.weight"
    assert (first.outgoing, first.also_outgoing) == ("second.weight", ("side.weight",))


def test_units_that_go_elsewhere_than_to_linear_layers_have_no_outgoing_weights():
    conv = nn.Sequential(nn.Conv1d(2, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(4 * 3, 2))
    [channels] = layers_of(conv, torch.randn(9, 2, 5))
    assert (channels.units, channels.outgoing) == (4, None)
    mixed = nn.Sequential(nn.Linear(5, 4), nn.ReLU(), nn.LayerNorm(4), nn.Linear(4, 2))
    assert layers_of(mixed, torch.randn(9, 5))[0].outgoing is None


@pytest.mark.parametrize("layer_norm", [False, True])
def test_a_populations_layers_are_those_of_the_same_module(layer_norm):
    networks = ActorCritic([0], 5, 2, (8, 6), "relu", layer_norm)
    parts = []
    for inputs, outputs in ((5, 8), (8, 6)):
        parts += [nn.Linear(inputs, outputs), nn.LayerNorm(outputs), nn.ReLU()]
    module = nn.Sequential(*(p for p in parts if layer_norm or not isinstance(p, nn.LayerNorm)))
    module.append(nn.Linear(6, 2))
    views = networks.parameters.views
    for ours, theirs in zip(
        networks.actor.hidden_layers, layers_of(module, torch.randn(9, 5)), strict=True
    ):
        assert (ours.name, ours.units, ours.activation) == (
            theirs.name,
            theirs.units,
            theirs.activation,
        )
        shapes = {name: parameter.shape for name, parameter in module.named_parameters()}
        for mine, other in zip(
            (ours.incoming, *ours.own, ours.outgoing, ours.next_bias),
            (theirs.incoming, *theirs.own, theirs.outgoing, theirs.next_bias),
            strict=True,
        ):
            assert views[mine].shape[1:] == shapes[other]
