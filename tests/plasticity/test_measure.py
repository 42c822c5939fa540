"""`measure` against hand-written forward passes, on ordinary modules and SB3 policies."""

import gymnasium as gym
import numpy as np
import pytest
import torch
from stable_baselines3 import PPO, SAC
from torch import nn

from upgd_ppo.agents.plasticity import feature_statistics, measure, select_samples
from upgd_ppo.agents.plasticity import weights as weight_functions


def draw(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


@pytest.fixture(autouse=True)
def _seeded():
    torch.manual_seed(0)


def by_layer(measurements):
    """(network, layer) → statistic → value."""
    result = {}
    for network, layer, statistic, value in measurements:
        result.setdefault((network, layer), {})[statistic] = value
    return result


def assert_features(measured, features, activation):
    for name, value in feature_statistics(features.detach(), activation).items():
        np.testing.assert_allclose(measured[name], value.item(), rtol=1e-9, err_msg=name)


def small_network():
    return nn.Sequential(
        nn.Linear(5, 16), nn.Tanh(), nn.Linear(16, 8), nn.LayerNorm(8), nn.ReLU(), nn.Linear(8, 2)
    )


def test_hooks_give_what_a_hand_written_forward_pass_gives():
    net, x = small_network(), draw(100, 5)
    measured = by_layer(measure(net, x))
    first = torch.tanh(x @ net[0].weight.T + net[0].bias)
    second = torch.relu(
        nn.functional.layer_norm(
            first @ net[2].weight.T + net[2].bias, (8,), net[3].weight, net[3].bias
        )
    )
    assert list(measured) == [("network", name) for name in ("layer_1", "layer_2", "output")]
    assert_features(measured["network", "layer_1"], first, "tanh")
    assert_features(measured["network", "layer_2"], second, "relu")
    for layer, linear in (("layer_1", net[0]), ("layer_2", net[2]), ("output", net[5])):
        weight = linear.weight.detach()[None]
        values = measured["network", layer]
        assert values["weight_l2"] == weight_functions.weight_l2(weight).item()
        assert values["weight_rank"] == pytest.approx(weight_functions.weight_rank(weight).item())
    assert "effective_rank" not in measured["network", "output"]


def test_the_module_and_the_random_state_are_left_as_they_were():
    net = nn.Sequential(
        nn.Linear(5, 8), nn.BatchNorm1d(8), nn.ReLU(inplace=True), nn.Dropout(), nn.Linear(8, 2)
    )
    net[1].eval()
    net.register_forward_hook(lambda module, inputs, output: torch.rand(3))
    before = {name: value.clone() for name, value in net.state_dict().items()}
    state = torch.get_rng_state()
    hooks = len(net._forward_hooks)
    measure(net, draw(50, 5))
    assert torch.equal(torch.get_rng_state(), state)
    assert [part.training for part in net] == [True, False, True, True, True]
    assert net.training
    assert len(net._forward_hooks) == hooks
    assert not any(part._forward_hooks for part in net)
    assert all(torch.equal(value, before[name]) for name, value in net.state_dict().items())
    assert all(parameter.grad is None for parameter in net.parameters())


def test_a_module_that_fails_is_left_as_it_was_too():
    net = small_network()
    with pytest.raises(RuntimeError):
        measure(net, draw(10, 3))
    assert net.training
    assert not any(part._forward_hooks for part in net)


def test_an_activation_in_place_is_measured_after_the_activation():
    net, x = nn.Sequential(nn.Linear(5, 16), nn.ReLU(inplace=True), nn.Linear(16, 2)), draw(60, 5)
    features = torch.relu(net[0](x))
    assert_features(by_layer(measure(net, x))["network", "layer_1"], features, "relu")


def test_planted_faults_are_found_where_they_are():
    net, x = small_network(), draw(400, 5)
    with torch.no_grad():
        net[0].weight[3] = 0  # dead: tanh(bias) never varies
        net[0].bias[5] = 40.0  # saturated, and so constant
        net[2].weight.copy_(draw(8, 1, seed=1) @ draw(1, 16, seed=2))
    measured = by_layer(measure(net, x))
    assert measured["network", "layer_1"]["dead_fraction"] == 2 / 16
    assert measured["network", "layer_1"]["saturated_fraction"] >= 1 / 16
    assert measured["network", "layer_2"]["weight_rank"] == pytest.approx(1, abs=1e-3)


class TwoHeads(nn.Module):
    """Activations run out of order, one is shared, and a skip connection hides one's input."""

    def __init__(self):
        super().__init__()
        self.left, self.right, self.mean, self.value = (nn.Linear(6, 6) for _ in range(4))
        self.tanh, self.elu = nn.Tanh(), nn.ELU()

    def forward(self, x):
        left, right = self.left(x), self.right(x)
        left = self.tanh(left)
        return self.mean(self.elu(right)), self.value(self.tanh(x + self.mean(left)))


def test_activations_are_matched_to_the_layer_they_came_from():
    net, x = TwoHeads(), draw(40, 6)
    measured = by_layer(measure(net, x))
    assert_features(measured["network", "layer_1"], torch.tanh(net.left(x)), "tanh")
    assert_features(measured["network", "layer_2"], nn.functional.elu(net.right(x)), "elu")
    skipped = torch.tanh(x + net.mean(torch.tanh(net.left(x))))
    assert any(
        values.get("feature_norm") == pytest.approx(skipped.norm(dim=1).mean().item())
        for values in measured.values()
    )


def test_a_layer_that_runs_twice_is_one_layer():
    class Twice(nn.Module):
        def __init__(self):
            super().__init__()
            self.net = nn.Sequential(nn.Linear(5, 8), nn.Tanh(), nn.Linear(8, 2))

        def forward(self, x):
            return self.net(x) - self.net(-2 * x)

    twice, x = Twice(), draw(40, 5)
    assert [row[1:] for row in measure(twice, x)] == [row[1:] for row in measure(twice.net, x)]


def test_channels_of_a_convolution_are_units_and_positions_are_samples():
    net = nn.Sequential(
        nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(4 * 6 * 6, 10), nn.ReLU()
    )
    x = draw(20, 3, 8, 8)
    with torch.no_grad():
        net[0].weight[1] = 0
        net[0].bias[1] = -1
    features = torch.relu(net[0](x)).permute(0, 2, 3, 1).reshape(-1, 4)
    measured = by_layer(measure(net, x))
    assert measured["network", "layer_1"]["dead_fraction"] == 0.25
    assert_features(by_layer(measure(net, x[:20]))["network", "layer_1"], features, "relu")
    hidden = torch.relu(net[3](net[2](torch.relu(net[0](x)))))
    assert_features(measured["network", "layer_2"], hidden, "relu")


def test_many_positions_are_thinned_without_touching_the_random_state():
    net = nn.Sequential(nn.Conv2d(1, 4, 3), nn.ReLU())
    x = draw(30, 1, 18, 18)
    state = torch.get_rng_state()
    measured = by_layer(measure(net, x))["network", "layer_1"]
    assert torch.equal(torch.get_rng_state(), state)
    features = torch.relu(net[0](x)).permute(0, 2, 3, 1).reshape(-1, 4).detach()
    whole = feature_statistics(features, "relu")
    assert measured["feature_norm"] == pytest.approx(whole["feature_norm"].item(), rel=0.1)
    assert measured["effective_rank"] == pytest.approx(whole["effective_rank"].item(), rel=0.1)


def test_more_than_1024_observations_are_thinned_evenly():
    net, x = small_network(), draw(4096, 5)
    assert measure(net, x) == measure(net, select_samples(x))


def test_distances_are_reported_from_the_state_dicts_given():
    net, x = small_network(), draw(30, 5)
    initial = {name: value.clone() for name, value in net.state_dict().items()}
    with torch.no_grad():
        net[2].weight.mul_(1.5)
    measured = by_layer(measure(net, x, initial=initial, previous=initial))
    assert measured["network", "layer_1"]["distance_from_init"] == 0
    assert measured["network", "layer_2"]["distance_from_init"] == pytest.approx(0.5)
    assert measured["network", "layer_2"]["update_ratio"] == pytest.approx(1 / 3)


def test_non_finite_features_are_reported():
    net = small_network()
    with torch.no_grad():
        net[2].weight.fill_(float("nan"))
    measured = by_layer(measure(net, draw(30, 5)))
    assert np.isnan(measured["network", "layer_2"]["effective_rank"])
    assert measured["network", "layer_2"]["nonfinite_count"] == 240
    assert np.isfinite(list(measured["network", "layer_1"].values())).all()


class Functional(nn.Module):
    def __init__(self):
        super().__init__()
        self.linear = nn.Linear(3, 3)

    def forward(self, x):
        return torch.relu(self.linear(x))


@pytest.mark.parametrize("net", [nn.Linear(3, 3), nn.Tanh(), Functional()])
def test_a_module_without_hidden_layers_is_refused(net):
    with pytest.raises(ValueError, match="no hidden layer to measure"):
        measure(net, draw(10, 3))


def test_arguments_arrays_and_dicts_are_passed_on():
    class Critic(nn.Module):
        def __init__(self):
            super().__init__()
            self.net = nn.Sequential(nn.Linear(5, 4), nn.Tanh(), nn.Linear(4, 1))

        def forward(self, x, y):
            return self.net(torch.cat([x, y], 1))

    critic, x, y = Critic(), draw(20, 3), draw(20, 2, seed=1)
    expected = measure(critic.net, torch.cat([x, y], 1))
    as_tensors = measure(critic, (x, y))
    as_arrays = measure(critic, (x.double().numpy(), y.numpy()))
    by_keyword = measure(critic, {"x": x, "y": y}, forward=lambda inputs: critic(**inputs))
    assert [row[1:] for row in as_tensors] == [row[1:] for row in expected]
    assert as_tensors == as_arrays == by_keyword
    assert as_tensors[0].network == "net"


# Stable-Baselines3


def test_an_sb3_actor_critic_policy():
    policy = PPO("MlpPolicy", "Pendulum-v1", device="cpu", seed=0).policy
    x = draw(64, 3)
    state = torch.get_rng_state()
    measured = by_layer(measure(policy, x))
    assert torch.equal(torch.get_rng_state(), state)
    assert set(measured) == {
        ("mlp_extractor.policy_net", "layer_1"),
        ("mlp_extractor.policy_net", "layer_2"),
        ("mlp_extractor.value_net", "layer_1"),
        ("mlp_extractor.value_net", "layer_2"),
        ("action_net", "output"),
        ("value_net", "output"),
    }
    actor, critic = policy.mlp_extractor(x)
    assert_features(measured["mlp_extractor.policy_net", "layer_2"], actor, "tanh")
    assert_features(measured["mlp_extractor.value_net", "layer_2"], critic, "tanh")


class Pixels(gym.Env):
    observation_space = gym.spaces.Box(0, 255, (3, 36, 36), np.uint8)
    action_space = gym.spaces.Discrete(2)

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        return self.observation_space.sample(), {}


def test_an_sb3_policy_with_a_cnn():
    policy = PPO("CnnPolicy", Pixels(), device="cpu", n_steps=8, batch_size=8).policy
    generator = np.random.default_rng(0)
    x = generator.integers(0, 256, (16, 3, 36, 36), dtype=np.uint8)
    measured = by_layer(measure(policy, x))
    assert [layer for network, layer in measured if network == "features_extractor.cnn"] == [
        "layer_1",
        "layer_2",
        "layer_3",
    ]
    with torch.no_grad():
        features = policy.features_extractor(torch.as_tensor(x) / 255.0)
    assert_features(measured["features_extractor.linear", "layer_1"], features, "relu")


def test_sb3_sac_actor_and_critic():
    policy = SAC("MlpPolicy", "Pendulum-v1", device="cpu", seed=0, buffer_size=10).policy
    x, actions = draw(32, 3), draw(32, 1, seed=1)
    state = torch.get_rng_state()
    actor = by_layer(measure(policy.actor, x))
    critic = by_layer(measure(policy.critic, (x, actions)))
    assert torch.equal(torch.get_rng_state(), state)
    assert {("latent_pi", "layer_1"), ("latent_pi", "layer_2"), ("mu", "output")} < set(actor)
    assert {
        (q, layer) for q in ("qf0", "qf1") for layer in ("layer_1", "layer_2", "output")
    } == set(critic)
    assert_features(actor["latent_pi", "layer_2"], policy.actor.latent_pi(x), "relu")
