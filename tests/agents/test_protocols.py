"""The published protocols and the settings they are made of, seen from outside."""

import shutil
from importlib import metadata
from pathlib import Path

import gymnasium
import numpy as np
import pytest
import torch
from scipy import stats

from upgd_ppo import train
from upgd_ppo.agents.kernels import switch as compiled
from upgd_ppo.agents.learners.ppo_loss import compute_gradient, normalize_rollout
from upgd_ppo.agents.networks.actor_critic import ActorCritic
from upgd_ppo.agents.optimizers import AdaptiveUPGD
from upgd_ppo.agents.playing import load_policies, make_env, play
from upgd_ppo.agents.population.population import Population, make_learner
from upgd_ppo.agents.runs.checkpoint import checkpoints, load_checkpoint
from upgd_ppo.agents.sb3 import export_sb3
from upgd_ppo.agents.settings.config import TrainConfig
from upgd_ppo.agents.settings.presets import load_preset

ROOT = Path(__file__).parent.parent.parent
PROTOCOLS = sorted((ROOT / "configs" / "protocols").glob("*.yaml"))
TASKS = [
    path
    for path in (ROOT / "configs").glob("*.yaml")
    if path.stem not in ("published", "accelerated_collapse", "demo")
]
SMALL = {
    "env": "Hopper-v4",
    "rollout_steps": 64,
    "minibatches": 4,
    "epochs": 2,
    "hidden_sizes": (16, 16),
    "steps": 64 * 4,
    "threads": 1,
}


def config(**changes):
    return TrainConfig().with_flat({**SMALL, **changes})


# ── Presets ─────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("protocol", PROTOCOLS, ids=lambda path: path.stem)
def test_a_protocol_says_all_that_a_protocol_can_and_wins_over_every_other_preset(protocol):
    alone = load_preset(protocol, TrainConfig())
    groups = ("ppo", "environment")
    named = {line.partition(":")[0] for line in protocol.read_text().splitlines()}
    for group in groups:
        assert set(vars(getattr(alone, group))) <= named
    for other in [*TASKS, *PROTOCOLS, ROOT / "configs/accelerated_collapse.yaml"]:
        stacked = load_preset(protocol, load_preset(other, TrainConfig()))
        for group in groups:
            assert getattr(stacked, group) == getattr(alone, group), other
    alone.check()


def test_the_published_protocol_is_the_default():
    preset = load_preset(ROOT / "configs/protocols/published_upgd.yaml", TrainConfig())
    assert preset.ppo == TrainConfig().ppo
    assert preset.environment == TrainConfig().environment


@pytest.mark.parametrize("opt", ["adam", "adam_equal_betas", "adamw", "upgd", "l2_init"])
@pytest.mark.parametrize(
    ("protocol", "eps"), [("published_upgd", 1e-5), ("nature", 1e-8), ("no_representation", 1e-8)]
)
def test_every_arm_of_a_protocol_has_its_eps(protocol, eps, opt):
    preset = load_preset(ROOT / f"configs/protocols/{protocol}.yaml", config())
    learner = make_learner(preset.with_flat({"opt": opt, "hidden_sizes": (8,)}), [1])
    optimizer = learner.optimizer
    if protocol == "no_representation" and opt == "upgd":
        optimizer = optimizer.optimizers["critic"]
    [own] = optimizer.optimizers
    assert own.param_groups[0]["eps"] == eps


@pytest.mark.parametrize(("former", "now"), [("true", "minibatch"), ("false", "off")])
def test_settings_files_of_older_versions_are_understood(former, now, tmp_path):
    path = tmp_path / "config.yaml"
    path.write_text(f"normalize_advantages: {former}\n")
    assert load_preset(path, TrainConfig()).ppo.normalize_advantages == now


# ── Initialisation ──────────────────────────────────────────────────────────────────────────────


def initial_layers(initialization):
    networks = ActorCritic(
        list(range(40)), 11, 3, (64, 32), initialization=initialization, activation="relu"
    )
    views = networks.parameters.views
    return [
        (views[f"{name}.weight"], views[f"{name}.bias"])
        for mlp in (networks.actor, networks.critic)
        for name in (*mlp.layers, mlp.output_layer)
    ]


def is_uniform(values, bound):
    assert values.abs().max() <= bound * (1 + 1e-6)
    unit = (values.flatten().double().numpy() / bound + 1) / 2
    return stats.kstest(unit, "uniform").pvalue > 1e-3


def test_lecun_uniform_reaches_every_layer_and_head():
    for weight, bias in initial_layers("lecun_uniform"):
        assert is_uniform(weight, (3 / weight.shape[2]) ** 0.5)
        assert not bias.any()


def test_pytorchs_default_reaches_every_layer_and_head():
    for weight, bias in initial_layers("pytorch"):
        linear = torch.nn.Linear(weight.shape[2], 10_000)
        assert is_uniform(weight, weight.shape[2] ** -0.5)
        assert is_uniform(bias, weight.shape[2] ** -0.5)
        assert is_uniform(linear.weight.detach(), weight.shape[2] ** -0.5)
        assert is_uniform(linear.bias.detach(), weight.shape[2] ** -0.5)


# ── What the environment sees ───────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("env", ["HalfCheetah-v4", "Pendulum-v1"])
@pytest.mark.parametrize("clips", [True, False])
def test_clipping_decides_what_the_environment_and_its_reward_see(env, clips, monkeypatch):
    settings = config(
        env=env, clip_actions=clips, normalize_rewards=False, normalize_observations=False
    )
    learner = make_learner(settings, [3])
    seen = []
    step = learner.collector.env.step
    monkeypatch.setattr(
        learner.collector.env, "step", lambda actions: seen.append(actions.copy()) or step(actions)
    )
    learner.collector.collect()
    box = learner.collector.env.single_action_space
    drawn = learner.rollout.actions[0, :, 0]
    assert (np.abs(drawn) > box.high).any()
    expected = np.clip(drawn, box.low, box.high) if clips else drawn
    np.testing.assert_array_equal(np.concatenate(seen), expected)
    if env == "HalfCheetah-v4":
        # The control cost, 0.1·Σa², is of the actions that the reward saw.
        single = gymnasium.make(env)
        single.reset(seed=learner.collector.environment_seeds[0])
        rewards = [single.step(action)[1] for action in expected]
        np.testing.assert_allclose(learner.rollout.rewards[0, :, 0], rewards, rtol=1e-6)


def test_squashed_actions_fill_the_box_and_their_draws_stay_within_bounds(monkeypatch):
    learner = make_learner(config(env="Humanoid-v4", squash_actions=True), [3])
    learner.networks.log_std.fill_(5.0)  # an std of 150
    seen = []
    step = learner.collector.env.step
    monkeypatch.setattr(
        learner.collector.env, "step", lambda actions: seen.append(actions.copy()) or step(actions)
    )
    learner.collector.collect()
    actions = np.concatenate(seen)
    assert 0.399 < np.abs(actions).max() <= 0.4
    draws = learner.rollout.actions[0, :, 0]
    assert np.abs(draws).max() < 7.26
    np.testing.assert_allclose(actions, 0.4 * np.tanh(draws), rtol=1e-5, atol=1e-7)


def test_squashing_needs_a_box():
    gymnasium.register("Unbounded-v0", _Unbounded)
    with pytest.raises(ValueError, match="not bounded"):
        make_learner(config(env="Unbounded-v0", squash_actions=True), [1])


class _Unbounded(gymnasium.Env):
    observation_space = gymnasium.spaces.Box(-1, 1, (2,))
    action_space = gymnasium.spaces.Box(-np.inf, np.inf, (1,))

    def reset(self, *, seed=None, options=None):
        return np.zeros(2, np.float32), {}


@pytest.mark.parametrize("squashes", [True, False])
def test_a_network_gives_the_std_that_its_actions_have(squashes):
    settings = config(
        state_dependent_std=True, squash_actions=squashes, rollout_steps=2000, minibatches=10
    )
    learner = make_learner(settings, [3])
    views = learner.networks.parameters.views
    views["actor.output.weight"].zero_()
    views["actor.output.bias"][0] = torch.tensor([0.1, 0.2, 0.3, -2.0, 0.0, 1.0])
    learner.collector.collect()
    draws = learner.rollout.actions[0, :, 0]
    expected = np.log1p(np.exp(np.array([-2.0, 0, 1]) + np.log(np.expm1(0.99)))) + 0.01
    assert expected[1] == pytest.approx(1)
    assert (np.abs(draws.mean(0) - [0.1, 0.2, 0.3]) < 4 * expected / 2000**0.5).all()
    np.testing.assert_allclose(draws.std(0), expected, rtol=0.08)
    np.testing.assert_allclose(learner.collector.mean_stds[0], expected, rtol=1e-5)
    log_probs = stats.norm.logpdf(draws, [0.1, 0.2, 0.3], expected).sum(1)
    np.testing.assert_allclose(learner.rollout.log_probs[0, :, 0], log_probs, rtol=1e-4, atol=1e-4)


# ── The update ──────────────────────────────────────────────────────────────────────────────────


def test_advantages_are_normalised_over_each_members_rollout():
    advantages = torch.randn(3, 50, generator=torch.Generator().manual_seed(1)).double() * 7 + 2
    advantages[2] = 4.0
    normalized = normalize_rollout(advantages)
    expected = (advantages[:2] - advantages[:2].mean(1, keepdim=True)) / advantages[:2].std(
        1, keepdim=True
    )
    torch.testing.assert_close(normalized[:2], expected)
    assert not normalized[2].any()


def minibatch_of(learner):
    rollout = learner.rollout
    names = ("observations", "actions", "log_probs", "values")
    minibatch = {name: rollout.samples(name, "cpu") for name in names}
    size = minibatch["values"].shape
    generator = torch.Generator().manual_seed(5)
    minibatch["advantages"] = torch.randn(size, generator=generator)
    minibatch["returns"] = 100 * torch.randn(size, generator=generator)
    return minibatch


@pytest.mark.parametrize("state_dependent_std", [True, False])
def test_clipping_apart_is_torchs_clipping_of_two_modules(computed_by, state_dependent_std):
    settings = config(state_dependent_std=state_dependent_std, seeds=2)
    learner = make_learner(settings, [1, 2])
    networks, minibatch = learner.networks, None
    learner.collector.collect()
    minibatch = minibatch_of(learner)
    minibatch["advantages"] *= 1e-3
    off = settings.with_flat({"max_grad_norm": 0.0}).ppo
    compute_gradient(networks, minibatch, off)
    plain = {k: v.clone() for k, v in networks.parameters.gradient_views.items()}
    apart = settings.with_flat({"separate_gradient_clipping": True}).ppo
    terms = compute_gradient(networks, minibatch, apart)
    assert terms.gradient_norms.shape == (2, 2)
    for member in range(2):
        for part, network in enumerate(("actor", "critic")):
            tensors = {k: v[member] for k, v in plain.items() if k.startswith(f"{network}.")}
            parameters = [torch.nn.Parameter(torch.zeros_like(t)) for t in tensors.values()]
            for parameter, tensor in zip(parameters, tensors.values(), strict=True):
                parameter.grad = tensor.clone()
            norm = torch.nn.utils.clip_grad_norm_(parameters, 0.5)
            torch.testing.assert_close(terms.gradient_norms[member, part], norm)
            for name, parameter in zip(tensors, parameters, strict=True):
                ours = networks.parameters.gradient_views[name][member]
                torch.testing.assert_close(ours, parameter.grad)
    assert (terms.gradient_norms[:, 0] < 0.5).all()  # else the test would show little
    assert (terms.gradient_norms[:, 1] > 0.5).all()


def trained_beside(settings, make_theirs):
    """Our parameters after two iterations, and those of torch's optimizers of actor and critic,
    given the same gradients."""
    learner = make_learner(settings, [1])
    views = learner.networks.parameters.views
    theirs = {name: torch.nn.Parameter(view[0].clone()) for name, view in views.items()}
    optimizers = [
        make_theirs([p for name, p in theirs.items() if name.startswith(network)])
        for network in ("actor", "critic")
    ]
    step = learner.optimizer.step

    def both(active=None):
        for name, parameter in theirs.items():
            parameter.grad = learner.networks.parameters.gradient_views[name][0].clone()
        step(active)
        for optimizer in optimizers:
            optimizer.step()

    learner.optimizer.step = both
    for _ in range(2):
        learner.advance()
    return views, theirs


def test_under_adam_separate_optimizers_are_one():
    settings = config(opt="adam", separate_optimizers=True, anneal=False)
    ours, theirs = trained_beside(settings, lambda p: torch.optim.Adam(p, lr=3e-4, eps=1e-5))
    for name, parameter in theirs.items():
        torch.testing.assert_close(ours[name][0], parameter.data, rtol=1e-5, atol=1e-6)


def test_separate_upgd_takes_the_largest_utility_of_each_network(computed_by):
    upgd = dict(lr=3e-4, sigma=0.0)
    settings = config(opt="upgd", opt_kwargs={"sigma": 0.0}, separate_optimizers=True, anneal=False)
    ours, theirs = trained_beside(settings, lambda p: AdaptiveUPGD(p, **upgd))
    for name, parameter in theirs.items():
        torch.testing.assert_close(ours[name][0], parameter.data, rtol=1e-4, atol=1e-5)
    joint = make_learner(settings.with_flat({"separate_optimizers": False}), [1])
    for _ in range(2):
        joint.advance()
    largest = max(
        (joint.networks.parameters.views[name][0] - parameter.data).abs().max()
        for name, parameter in theirs.items()
    )
    assert largest > 1e-4


@pytest.mark.parametrize("opt", ["adam", "adamw"])
def test_weight_decay_is_coupled_under_adam_and_decoupled_under_adamw(opt):
    kwargs = {"weight_decay": 0.1}
    cls = {"adam": torch.optim.Adam, "adamw": torch.optim.AdamW}[opt]
    ours, theirs = trained_beside(
        config(opt=opt, opt_kwargs=kwargs, anneal=False),
        lambda p: cls(p, lr=3e-4, eps=1e-5, weight_decay=0.1),
    )
    for name, parameter in theirs.items():
        torch.testing.assert_close(ours[name][0], parameter.data, rtol=1e-5, atol=1e-6)


def test_a_ratio_that_would_overflow_is_clamped(computed_by):
    settings = config(seeds=1)
    learner = make_learner(settings, [1])
    learner.collector.collect()
    minibatch = minibatch_of(learner)
    minibatch["log_probs"][0, 3] = -200.0
    minibatch["advantages"][0, 3] = -1.0
    compute_gradient(learner.networks, minibatch, settings.ppo)
    assert not torch.isfinite(learner.networks.parameters.gradient).all()
    learner.networks.parameters.gradient.zero_()
    clamped = settings.with_flat({"max_log_ratio": 20.7}).ppo
    terms = compute_gradient(learner.networks, minibatch, clamped)
    assert torch.isfinite(learner.networks.parameters.gradient).all()
    assert terms.log_ratios.max() == pytest.approx(20.7)


# ── Runs ────────────────────────────────────────────────────────────────────────────────────────

QUICK = [
    *("--rollout-steps", "64", "--steps", "256", "--minibatches", "4", "--epochs", "2"),
    *("--hidden-sizes", "8", "8", "--threads", "1", "--seeds", "2", "--opt", "adam"),
]


@pytest.fixture(scope="module", params=["nature", "no_representation"])
def run(request, tmp_path_factory):
    out = tmp_path_factory.mktemp("runs") / request.param
    presets = ["--config", str(ROOT / f"configs/protocols/{request.param}.yaml")]
    assert train.main([*presets, "--env", "Hopper-v4", *QUICK, "--out", str(out)]) == 0
    return out


def test_gymnasiums_own_environment_gives_the_same_returns(run):
    state = load_checkpoint(checkpoints(run / "checkpoints")[0])["agent"]
    squashed = run.name == "no_representation"
    size = 12 if squashed else 11
    networks = ActorCritic(
        [0], size, 3, (8, 8), "tanh" if squashed else "relu", state_dependent_std=squashed
    )
    policies = load_policies(run)
    seeds = np.array([[5, 6, 7]] * 2)
    *_, episodes = play(policies, make_env(policies, 3), seeds)
    env = gymnasium.make("Hopper-v4")
    for member in range(2):
        networks.parameters.data.copy_(state["parameters"][member : member + 1])
        for episode, seed in enumerate(seeds[member]):
            observation, _ = env.reset(seed=int(seed))
            episode_return, length, done = 0.0, 0, False
            while not done:
                seen = observation
                if squashed:
                    known = state["environment"]["FixedNormalizeObservation"]
                    seen = (seen - known["mean"][member, 0]) / known["std"][member, 0]
                    seen = np.append(seen, 2 * length / 1000 - 1)
                inputs = torch.from_numpy(seen.astype(np.float32))[None, None]
                action = networks.actor.forward(inputs)[0, 0, :3].numpy()
                action = np.tanh(action) if squashed else action
                observation, reward, terminated, truncated, _ = env.step(action)
                episode_return, length = episode_return + reward, length + 1
                done = terminated or truncated
            assert abs(length - episodes.lengths[member, episode]) <= 1
            assert episode_return == pytest.approx(episodes.returns[member, episode], rel=2e-2)


def test_sampled_actions_are_played_too(run):
    policies = load_policies(run)
    seeds = np.array([[5, 6, 7]] * 2)
    *_, sampled = play(policies, make_env(policies, 3), seeds, stochastic=True)
    *_, again = play(policies, make_env(policies, 3), seeds, stochastic=True)
    *_, alone = play(policies.select([1]), make_env(policies.select([1]), 3), seeds[1:], True)
    *_, mean = play(policies, make_env(policies, 3), seeds)
    np.testing.assert_array_equal(sampled.returns, again.returns)
    np.testing.assert_array_equal(sampled.returns[1:], alone.returns)
    assert (sampled.returns != mean.returns).all()


def test_a_run_repeats_from_its_own_settings_and_is_not_for_sb3(run, tmp_path):
    again = tmp_path / "again"
    assert train.main(["--config", str(run / "config.yaml"), "--out", str(again)]) == 0
    states = [
        load_checkpoint(checkpoints(path / "checkpoints")[0])["agent"]["parameters"]
        for path in (run, again)
    ]
    assert torch.equal(*states)
    with pytest.raises(ValueError, match=r"which SB3's PPO does not have.*evaluate\.py"):
        export_sb3(run, 0, tmp_path / "model.zip")
    shutil.rmtree(again)


@pytest.mark.parametrize(
    ("arguments", "why"),
    [
        (["--layer-norm"], "layer normalisation"),
        (["--activation", "elu"], "activation elu"),
        ([], "numba is not installed"),
    ],
)
def test_that_the_kernels_do_not_run_is_said_and_why(arguments, why, tmp_path, capsys, monkeypatch):
    if not arguments:
        monkeypatch.setattr(compiled, "kernels", lambda: None)
    words = ["--env", "Hopper-v4", *QUICK, *arguments, "--out", str(tmp_path / "run")]
    assert train.main(words) == 0
    assert f"Compiled kernels: not used: {why}.\n" in capsys.readouterr().out


def test_that_the_kernels_run_is_said_and_which(tmp_path, capsys):
    assert train.main(["--env", "Hopper-v4", *QUICK, "--out", str(tmp_path / "run")]) == 0
    assert f"Compiled kernels: numba {metadata.version('numba')}, " in capsys.readouterr().out


@pytest.mark.parametrize("protocol", PROTOCOLS, ids=lambda path: path.stem)
def test_the_kernels_know_every_protocol(protocol):
    preset = load_preset(protocol, config())
    population = Population(preset.with_flat({"threads": 1, "seeds": 1}))
    assert population.why_no_kernels is None
