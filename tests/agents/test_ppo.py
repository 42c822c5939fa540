"""What PPO does with its settings, seen from outside."""

import math

import numpy as np
import pytest
import torch

import upgd_ppo.agents.learners.ppo
from upgd_ppo.agents.kernels import switch as compiled
from upgd_ppo.agents.learners.ppo import explained_variance
from upgd_ppo.agents.learners.ppo_loss import (
    MINIBATCH_STATISTICS,
    compute_gradient,
    minibatch_statistics,
    normalize_minibatches,
)
from upgd_ppo.agents.learners.rollout import generalized_advantages
from upgd_ppo.agents.networks.actor_critic import ActorCritic
from upgd_ppo.agents.population.population import Population, make_learner
from upgd_ppo.agents.settings.config import TrainConfig

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


def autograd_gradient(networks, minibatch, settings):
    """The gradient of the PPO loss, written with torch.distributions and differentiated."""
    views = {
        name: view.detach().double().requires_grad_()
        for name, view in networks.parameters.views.items()
    }
    minibatch = {name: values.double() for name, values in minibatch.items()}
    activation = {"tanh": torch.tanh, "relu": torch.relu}[settings.activation]

    def mlp(name, h):
        for layer in [f"layer_{i + 1}" for i in range(len(settings.hidden_sizes))]:
            weight, bias = views[f"{name}.{layer}.weight"], views[f"{name}.{layer}.bias"]
            h = activation(torch.einsum("sbi,soi->sbo", h, weight) + bias[:, None])
        weight, bias = views[f"{name}.output.weight"], views[f"{name}.output.bias"]
        return torch.einsum("sbi,soi->sbo", h, weight) + bias[:, None]

    means = mlp("actor", minibatch["observations"])
    if settings.state_dependent_std:
        means, raw = means.chunk(2, -1)
        # softplus with a floor of 0.01, and 1 at 0
        std = torch.nn.functional.softplus(raw + math.log(math.expm1(0.99))) + 0.01
    else:
        std = views["actor.log_std"].exp()[:, None]
    policy, draws = torch.distributions.Normal(means, std), minibatch["actions"]
    log_ratio = policy.log_prob(draws).sum(-1) - minibatch["log_probs"]
    entropy = policy.entropy().sum(-1)
    if settings.squash_actions:
        # The ratio of squashed actions, each probability with its correction.
        tanh = torch.distributions.TanhTransform()
        squashed = torch.distributions.TransformedDistribution(policy, tanh)
        before = minibatch["log_probs"] - tanh.log_abs_det_jacobian(draws, None).sum(-1)
        log_ratio = squashed.log_prob(tanh(draws)).sum(-1) - before
        moved = means + std * ((draws - means) / std).detach()
        entropy = entropy + tanh.log_abs_det_jacobian(moved, None).sum(-1)
    if settings.max_log_ratio is not None:
        log_ratio = log_ratio.clamp(-settings.max_log_ratio, settings.max_log_ratio)
    ratio = log_ratio.exp()
    advantages, clip = minibatch["advantages"], settings.clip_coef
    policy_loss = torch.max(-advantages * ratio, -advantages * ratio.clamp(1 - clip, 1 + clip))
    values = mlp("critic", minibatch["observations"]).squeeze(-1)
    value_losses = (values - minibatch["returns"]) ** 2
    if settings.clip_value_loss:
        change = (values - minibatch["values"]).clamp(-clip, clip)
        clipped = (minibatch["values"] + change - minibatch["returns"]) ** 2
        value_losses = torch.max(value_losses, clipped)
    loss = (
        policy_loss - settings.entropy_coef * entropy + settings.value_coef * 0.5 * value_losses
    ).mean(1)
    loss.sum().backward()
    norms = torch.stack([view.grad.flatten(1).square().sum(1) for view in views.values()]).sum(0)
    terms = {
        "gradient_norm": norms.sqrt(),
        "policy_loss": policy_loss.mean(1),
        "value_loss": 0.5 * value_losses.mean(1),
        "entropy": entropy.mean(1),
        "clip_fraction": ((ratio - 1).abs() > clip).double().mean(1),
        "max_ratio": ratio.amax(1),
        "approx_kl": (ratio - 1 - ratio.log()).mean(1),
    }
    return {name: view.grad for name, view in views.items()}, terms


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"clip_value_loss": False, "entropy_coef": 0.01},
        {"hidden_sizes": (24, 7, 16), "activation": "relu"},
        {"hidden_sizes": (5,)},
        {"state_dependent_std": True},
        {"state_dependent_std": True, "squash_actions": True, "entropy_coef": 0.1},
        {"squash_actions": True, "entropy_coef": 0.1, "activation": "relu"},
        {"max_log_ratio": 0.5, "clip_value_loss": False, "value_coef": 2.0},
    ],
    ids=[
        "default",
        "other_loss",
        "relu",
        "shallow",
        "network_std",
        "network_std_squashed",
        "squashed",
        "clamped_ratio",
    ],
)
@pytest.mark.parametrize("by", ["operations", "operations_in_float32", "kernels"])
def test_the_written_out_gradient_is_that_of_automatic_differentiation(by, changes, monkeypatch):
    if by != "kernels":
        monkeypatch.setattr(compiled, "kernels", lambda: None)
    dtype = torch.float64 if by == "operations" else torch.float32
    settings = config(max_grad_norm=0.0, **changes).ppo
    members, size, num_inputs, num_actions = 2, 33, 17, 6
    networks = ActorCritic(
        [1, 2],
        num_inputs,
        num_actions,
        settings.hidden_sizes,
        settings.activation,
        dtype=dtype,
        state_dependent_std=settings.state_dependent_std,
    )
    assert (networks.why_no_kernels is None) == (by == "kernels")
    torch.manual_seed(0)
    for view in networks.parameters.views.values():
        view += 0.1 * torch.randn_like(view)
    batch = {
        "observations": torch.randn(members, size, num_inputs, dtype=dtype),
        "actions": torch.randn(members, size, num_actions, dtype=dtype),
        "log_probs": -9 + torch.randn(members, size, dtype=dtype),
        "values": torch.randn(members, size, dtype=dtype),
        "advantages": torch.randn(members, size, dtype=dtype),
        "returns": torch.randn(members, size, dtype=dtype),
    }
    batch["advantages"] = normalize_minibatches(batch["advantages"], 1)
    # As in training, a minibatch is a part of something longer.
    minibatch = {name: torch.cat([values, values], 1)[:, :size] for name, values in batch.items()}
    expected, terms = autograd_gradient(networks, minibatch, settings)
    tolerance = dict(rtol=1e-9, atol=1e-11) if by == "operations" else dict(rtol=1e-4, atol=2e-6)
    computed = compute_gradient(networks, minibatch, settings)
    for name, gradient in expected.items():
        torch.testing.assert_close(
            networks.parameters.gradient_views[name].double(), gradient, msg=name, **tolerance
        )
    [statistics] = minibatch_statistics([computed], settings.clip_coef)
    for name, value in terms.items():
        column = statistics[:, MINIBATCH_STATISTICS.index(name)].double()
        torch.testing.assert_close(column, value, msg=name, **tolerance)


@pytest.mark.parametrize("by", ["operations", "kernels"])
def test_rounding_drops_no_value_gradient_that_is_not_clipped(by, monkeypatch):
    if by == "operations":
        monkeypatch.setattr(compiled, "kernels", lambda: None)
    settings = config(max_grad_norm=0.0, clip_coef=10.0).ppo
    networks = ActorCritic([1], 3, 2, (8,))
    torch.manual_seed(0)
    size = 4096
    minibatch = {
        "observations": torch.randn(1, size, 3),
        "actions": torch.randn(1, size, 2),
        "log_probs": torch.full((1, size), -3.0),
        "values": torch.randn(1, size),
        "advantages": torch.randn(1, size),
        "returns": torch.randn(1, size),
    }
    compute_gradient(networks, minibatch, settings)
    clipping = networks.parameters.gradient.clone()
    compute_gradient(networks, minibatch, config(max_grad_norm=0.0, clip_value_loss=False).ppo)
    critic = networks.parameters.gradient_views["critic.output.bias"]
    ours = networks.parameters.named_views(clipping)["critic.output.bias"]
    torch.testing.assert_close(ours, critic, rtol=1e-6, atol=0)


@pytest.mark.parametrize("by", ["operations", "kernels"])
def test_a_gradient_is_scaled_down_to_the_largest_norm_and_never_up(by, monkeypatch):
    if by == "operations":
        monkeypatch.setattr(compiled, "kernels", lambda: None)
    networks = ActorCritic([1, 2], 3, 2, (8,))
    torch.manual_seed(0)
    minibatch = {
        "observations": torch.randn(2, 16, 3),
        "actions": torch.randn(2, 16, 2),
        "log_probs": torch.full((2, 16), -3.0),
        "values": torch.zeros(2, 16),
        "advantages": torch.randn(2, 16),
        "returns": torch.stack([torch.full((16,), 1e-3), torch.full((16,), 50.0)]),
    }
    minibatch["advantages"][0] *= 1e-3
    gradients, norms = {}, {}
    for limit in (0.0, 0.5):
        settings = config(max_grad_norm=limit, clip_value_loss=False).ppo
        norms[limit] = compute_gradient(networks, minibatch, settings).gradient_norms
        gradients[limit] = networks.parameters.gradient.clone()
    assert norms[0.0][0] < 0.5 < norms[0.0][1]
    torch.testing.assert_close(norms[0.5], norms[0.0])
    torch.testing.assert_close(gradients[0.5][0], gradients[0.0][0], rtol=0, atol=0)
    torch.testing.assert_close(gradients[0.5][1], gradients[0.0][1] * 0.5 / norms[0.0][1])


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


def test_approx_kl_is_given_as_stable_baselines3_logs_it_and_as_the_mean_of_all_epochs(monkeypatch):
    """SB3 (ppo.py, train) empties its list of divergences at the start of each epoch."""
    learner = make_learner(config(epochs=4, learning_rate=3e-3), [1, 2])
    divergences = []
    original = upgd_ppo.agents.learners.ppo.compute_gradient

    def noting(*arguments):
        terms = original(*arguments)
        log_ratio = terms.log_ratios.double()
        divergences.append(((log_ratio.exp() - 1) - log_ratio).mean(1).numpy())
        return terms

    monkeypatch.setattr(upgd_ppo.agents.learners.ppo, "compute_gradient", noting)
    scalars = learner.advance().scalars
    by_epoch = np.reshape(divergences, (4, -1, 2))
    np.testing.assert_allclose(scalars["approx_kl_last_epoch"], by_epoch[-1].mean(0), rtol=1e-3)
    np.testing.assert_allclose(scalars["approx_kl"], by_epoch.mean((0, 1)), rtol=1e-3)
    assert (scalars["approx_kl_last_epoch"] > 1.2 * scalars["approx_kl"]).all()


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


@pytest.mark.parametrize("before", [True, False])
def test_denormals_are_flushed_in_an_update_and_afterwards_as_the_caller_had_it(before):
    def are_flushed():
        return (torch.tensor([2e-38]) * 0.1).item() == 0

    torch.set_flush_denormal(before)
    try:
        with upgd_ppo.agents.learners.ppo.flushed_denormals():
            assert are_flushed()
        assert are_flushed() == before
    finally:
        torch.set_flush_denormal(False)
