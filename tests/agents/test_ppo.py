"""What PPO does with its settings, seen from outside."""

import numpy as np
import pytest
import torch

from agents.config import TrainConfig
from agents.population import Population, make_learner
from agents.ppo import explained_variance
from agents.ppo_gradient import compute_gradient, normalize_minibatches
from agents.rollout import generalized_advantages

SMALL = {
    "env": "InvertedPendulum-v4",
    "rollout_steps": 128,
    "minibatches": 4,
    "epochs": 2,
    "hidden_sizes": (8, 8),
    "steps": 128 * 4,
    "threads": 1,
}


def config(**changes):
    return TrainConfig().with_flat({**SMALL, **changes})


def autograd_gradient(learner, minibatch):
    """The gradient of the PPO loss, written with torch.distributions and differentiated."""
    networks, settings = learner.networks, learner.config
    views = {
        name: view.detach().clone().requires_grad_()
        for name, view in networks.parameters.views.items()
    }

    def mlp(name, h):
        for layer in ("layer_1", "layer_2"):
            weight, bias = views[f"{name}.{layer}.weight"], views[f"{name}.{layer}.bias"]
            h = torch.tanh(torch.einsum("sbi,soi->sbo", h, weight) + bias[:, None])
        weight, bias = views[f"{name}.output.weight"], views[f"{name}.output.bias"]
        return torch.einsum("sbi,soi->sbo", h, weight) + bias[:, None]

    std = views["actor.log_std"].exp()[:, None]
    policy = torch.distributions.Normal(mlp("actor", minibatch["observations"]), std)
    ratio = (policy.log_prob(minibatch["actions"]).sum(-1) - minibatch["log_probs"]).exp()
    advantages = minibatch["advantages"]
    advantages = (advantages - advantages.mean(1, keepdim=True)) / (
        advantages.std(1, keepdim=True) + 1e-8
    )
    clip = settings.clip_coef
    policy_loss = torch.max(-advantages * ratio, -advantages * ratio.clamp(1 - clip, 1 + clip))
    values = mlp("critic", minibatch["observations"]).squeeze(-1)
    value_losses = (values - minibatch["returns"]) ** 2
    if settings.clip_value_loss:
        change = (values - minibatch["values"]).clamp(-clip, clip)
        clipped = (minibatch["values"] + change - minibatch["returns"]) ** 2
        value_losses = torch.max(value_losses, clipped)
    entropy = policy.entropy().sum(-1)
    loss = (
        policy_loss - settings.entropy_coef * entropy + settings.value_coef * 0.5 * value_losses
    ).mean(1)
    loss.sum().backward()
    return {name: view.grad for name, view in views.items()}


@pytest.mark.parametrize("changes", [{}, {"clip_value_loss": False, "entropy_coef": 0.01}])
def test_the_written_out_gradient_is_that_of_automatic_differentiation(changes):
    learner = make_learner(config(env="HalfCheetah-v4", **changes), [1, 2])
    learner.networks.parameters.data = learner.networks.parameters.data.double()
    torch.manual_seed(0)
    parameters = learner.networks.parameters
    parameters.gradient = torch.zeros_like(parameters.data)
    parameters.views = parameters.named_views(parameters.data)
    parameters.gradient_views = parameters.named_views(parameters.gradient)
    size = 33
    minibatch = {
        "observations": torch.randn(2, size, 17, dtype=torch.float64),
        "actions": torch.randn(2, size, 6, dtype=torch.float64),
        "log_probs": -8 + torch.randn(2, size, dtype=torch.float64),
        "values": torch.randn(2, size, dtype=torch.float64),
        "advantages": torch.randn(2, size, dtype=torch.float64),
        "returns": torch.randn(2, size, dtype=torch.float64),
    }
    expected = autograd_gradient(learner, minibatch)
    minibatch["advantages"] = normalize_minibatches(minibatch["advantages"], 1)
    compute_gradient(learner.networks, minibatch, learner.config)
    for name, gradient in expected.items():
        torch.testing.assert_close(
            parameters.gradient_views[name], gradient, rtol=1e-9, atol=1e-11, msg=name
        )


def test_advantages_are_those_of_the_definition():
    rng = np.random.default_rng(0)
    gamma, gae_lambda, steps = 0.9, 0.8, 6
    rewards, values = rng.normal(size=(1, steps, 1)), rng.normal(size=(1, steps, 1))
    dones = np.zeros((1, steps, 1))
    dones[0, 4, 0] = 1.0
    next_values, next_dones = rng.normal(size=(1, 1)), np.zeros((1, 1))
    advantages = generalized_advantages(
        rewards, values, dones, next_values, next_dones, gamma, gae_lambda
    )
    values_after = np.append(values[0, 1:, 0], next_values[0, 0])
    ends = np.append(dones[0, 1:, 0], next_dones[0, 0])
    deltas = rewards[0, :, 0] + gamma * values_after * (1 - ends) - values[0, :, 0]
    for start in range(steps):
        stop = 4 if start < 4 else steps
        expected = sum((gamma * gae_lambda) ** (t - start) * deltas[t] for t in range(start, stop))
        assert advantages[0, start, 0] == pytest.approx(expected, abs=1e-12)


def test_the_learning_rate_falls_linearly_to_zero_or_stays():
    rates = {}
    for anneal in (True, False):
        population = Population(config(anneal=anneal, learning_rate=1e-3))
        rates[anneal] = [population.advance().scalars["learning_rate"][0] for _ in range(4)]
    np.testing.assert_allclose(rates[True], [1e-3, 0.75e-3, 0.5e-3, 0.25e-3])
    np.testing.assert_allclose(rates[False], [1e-3] * 4)


def test_a_time_limit_is_bootstrapped_only_when_asked():
    rewards = {}
    for bootstrap in (False, True):
        learner = make_learner(
            config(
                env="Pendulum-v1",
                rollout_steps=200,
                bootstrap_time_limits=bootstrap,
                normalize_rewards=False,
            ),
            [1],
        )
        learner.collector.collect()
        rewards[bootstrap] = learner.rollout.rewards.copy()
    differ = np.flatnonzero(rewards[False] != rewards[True])
    assert differ.tolist() == [199]


def test_target_kl_stops_a_members_update_and_no_other_ones():
    limited = Population(config(target_kl=1e-9, learning_rate=1e-2, seeds=2))
    free = Population(config(learning_rate=1e-2, seeds=2))
    assert limited.advance().scalars["approx_kl"].max() < free.advance().scalars["approx_kl"].min()


def test_every_episode_is_reported_with_the_step_at_which_it_ended():
    population = Population(config(seeds=2))
    episodes = [episode for _ in range(3) for episode in population.advance().episodes]
    for member in (0, 1):
        own = [episode for episode in episodes if episode[0] == member]
        lengths = np.cumsum([length for _, _, _, length, _ in own])
        assert [step for _, step, *_ in own] == lengths.tolist()
        assert all(episode_return == length for _, _, episode_return, length, _ in own)


def test_a_member_that_becomes_non_finite_is_halted_and_harms_nobody():
    sick = Population(config(seeds=3, threads=1))
    clean = Population(config(seeds=3, threads=1))
    for population in (sick, clean):
        population.advance()
    sick.learner.networks.parameters.data[1, 5] = float("nan")
    reports = [sick.advance() for _ in range(3)]
    for _ in range(3):
        clean.advance()
    assert [member for member, _ in reports[0].halted] == [1]
    assert "non-finite" in reports[0].halted[0][1]
    assert not reports[1].halted
    assert not reports[2].halted
    assert sick.healthy.tolist() == [True, False, True]
    assert torch.equal(
        sick.learner.networks.parameters.data[[0, 2]],
        clean.learner.networks.parameters.data[[0, 2]],
    )


def test_learning_works():
    population = Population(
        config(seeds=3, rollout_steps=1024, minibatches=16, epochs=10, steps=40_000, threads=2)
    )
    episodes = [population.advance().episodes for _ in range(40)]
    first = np.mean([episode[2] for episode in episodes[0]])
    last = np.mean([episode[2] for report in episodes[-5:] for episode in report])
    assert last > 10 * first


def test_explained_variance_is_one_for_a_perfect_critic_and_undefined_for_constant_returns():
    returns = np.array([[1.0, 2.0, 3.0], [2.0, 2.0, 2.0]])
    values = np.array([[1.0, 2.0, 3.0], [1.0, 2.0, 3.0]])
    result = explained_variance(values, returns)
    assert result[0] == 1.0
    assert np.isnan(result[1])


def test_an_update_leaves_no_denormal_moments_and_the_rest_of_the_process_keeps_denormals():
    learner = make_learner(config(activation="relu"), [1])
    with torch.no_grad():
        # A unit that never fires: the gradients of its weights are exactly zero from now on.
        learner.networks.parameters.views["actor.layer_1.bias"][0, 0] = -1e6
    learner.advance()
    (state,) = learner.optimizer.optimizers[0].state.values()
    dead = learner.networks.parameters.named_views(state["exp_avg"])["actor.layer_1.weight"][0, 0]
    dead.fill_(1e-38)
    learner.advance()
    assert not dead.any()
    assert torch.tensor(1e-40) * 0.5 > 0
    assert np.float64(1e-310) * 0.5 > 0
