"""The UPGD policies: which optimizer they choose, what they let through, whom they refuse."""

import numpy as np
import pytest
import torch
import yaml
from sb3_contrib import QRDQN, TQC, CrossQ
from stable_baselines3 import A2C, DQN, PPO, SAC, TD3
from stable_baselines3.common.envs import FakeImageEnv, IdentityEnv, SimpleMultiObsEnv
from stable_baselines3.common.evaluation import evaluate_policy
from stable_baselines3.common.torch_layers import BaseFeaturesExtractor
from torch import nn

from upgd_ppo.agents.sb3 import UPGD, AdaptiveUPGD, UPGDCnnPolicy, UPGDMultiInputPolicy, UPGDPolicy

PUBLISHED = {
    "lr": 3e-4,
    "betas": (0.9, 0.999),
    "eps": 1e-5,
    "weight_decay": 1e-3,
    "beta_utility": 0.999,
    "sigma": 1e-3,
    "step_scale": 2.0,
    "order": "first",
    "scope": "global",
    "protecting": True,
}


class OneLayer(BaseFeaturesExtractor):
    def __init__(self, observation_space, features_dim=5):
        super().__init__(observation_space, features_dim)
        self.layer = nn.Sequential(nn.Linear(observation_space.shape[0], features_dim), nn.ReLU())

    def forward(self, observations):
        return self.layer(observations)


def small_ppo(policy, env="Pendulum-v1", policy_kwargs=None, **kwargs):
    settings = dict(n_steps=32, batch_size=16, n_epochs=2, seed=0, device="cpu") | kwargs
    return PPO(policy, env, policy_kwargs=policy_kwargs, **settings)


def parameters(model):
    return [p.detach().clone() for p in model.policy.parameters()]


def assert_learns(model, steps=64):
    before = parameters(model)
    model.learn(steps)
    after = parameters(model)
    assert all(p.isfinite().all() for p in after)
    assert sum(not torch.equal(b, a) for b, a in zip(before, after, strict=True)) > len(before) / 2


def test_the_optimizer_is_adaptive_upgd_with_the_published_settings():
    optimizer = small_ppo(UPGDPolicy).policy.optimizer
    assert type(optimizer) is AdaptiveUPGD
    (group,) = optimizer.param_groups
    assert {name: group[name] for name in PUBLISHED} == PUBLISHED


def test_it_differs_from_mlp_policy_in_the_optimizer_alone():
    choices = {
        "upgd": (UPGDPolicy, None),
        "adam": ("MlpPolicy", None),
        "named": ("MlpPolicy", dict(optimizer_class=AdaptiveUPGD)),
    }
    before, after = {}, {}
    for name, (policy, policy_kwargs) in choices.items():
        model = small_ppo(policy, policy_kwargs=policy_kwargs)
        before[name] = parameters(model)
        after[name] = parameters(model.learn(64))
    for mine, theirs in zip(before["upgd"], before["adam"], strict=True):
        assert torch.equal(mine, theirs)
    for mine, theirs in zip(after["upgd"], after["named"], strict=True):
        assert torch.equal(mine, theirs)
    assert not torch.equal(after["upgd"][1], after["adam"][1])


@pytest.mark.parametrize(
    ("policy", "env"),
    [
        (UPGDCnnPolicy, FakeImageEnv(screen_height=40, screen_width=40, n_channels=1)),
        (UPGDMultiInputPolicy, SimpleMultiObsEnv(random_start=False)),
    ],
)
def test_the_siblings_train_on_images_and_dictionaries(policy, env):
    model = small_ppo(policy, env)
    assert type(model.policy.optimizer) is AdaptiveUPGD
    assert_learns(model)


@pytest.mark.parametrize("algorithm", [PPO, A2C])
@pytest.mark.parametrize(
    ("name", "policy", "env"),
    [
        ("UPGDPolicy", UPGDPolicy, "Pendulum-v1"),
        ("UPGDCnnPolicy", UPGDCnnPolicy, FakeImageEnv(screen_height=40, screen_width=40)),
        ("UPGDMultiInputPolicy", UPGDMultiInputPolicy, SimpleMultiObsEnv()),
    ],
)
def test_policies_are_known_by_name(algorithm, name, policy, env):
    assert type(algorithm(name, env, n_steps=64, device="cpu").policy) is policy


def test_a_hyper_parameter_file_of_the_rl_zoo_can_name_the_policy(tmp_path):
    path = tmp_path / "ppo.yml"
    path.write_text(
        "Pendulum-v1:\n"
        "  policy: 'UPGDPolicy'\n"
        "  n_steps: 32\n"
        "  batch_size: 16\n"
        '  policy_kwargs: "dict(net_arch=[8, 8], optimizer_kwargs=dict(sigma=0.01))"\n'
    )
    hyperparameters = yaml.safe_load(path.read_text())["Pendulum-v1"]
    # As the zoo does with values that YAML cannot write.
    hyperparameters["policy_kwargs"] = eval(hyperparameters["policy_kwargs"])
    model = PPO(env="Pendulum-v1", device="cpu", **hyperparameters)
    assert model.policy.optimizer.param_groups[0]["sigma"] == 0.01
    assert_learns(model)


@pytest.mark.parametrize(
    "policy_kwargs",
    [
        dict(net_arch=[8], activation_fn=nn.ReLU),
        dict(net_arch=dict(pi=[8], vf=[8, 8]), ortho_init=False, log_std_init=-1.0),
        dict(features_extractor_class=OneLayer, features_extractor_kwargs=dict(features_dim=3)),
        dict(features_extractor_class=OneLayer, share_features_extractor=False),
        dict(optimizer_kwargs=dict(sigma=0.0, scope="local", weight_decay=0.0)),
        dict(optimizer_class=UPGD, optimizer_kwargs=dict(beta_utility=0.99)),
        dict(optimizer_class=torch.optim.Adam, optimizer_kwargs=dict(eps=1e-7)),
    ],
)
def test_every_policy_keyword_of_sb3_is_honoured(policy_kwargs):
    model = small_ppo(UPGDPolicy, policy_kwargs=policy_kwargs)
    (group,) = model.policy.optimizer.param_groups
    for name, value in policy_kwargs.get("optimizer_kwargs", {}).items():
        assert group[name] == value
    assert type(model.policy.optimizer) is policy_kwargs.get("optimizer_class", AdaptiveUPGD)
    for name in ("net_arch", "activation_fn", "log_std_init", "share_features_extractor"):
        if name in policy_kwargs:
            assert getattr(model.policy, name) == policy_kwargs[name]
    assert_learns(model)


def test_state_dependent_exploration_and_a_learning_rate_schedule():
    model = small_ppo(
        UPGDPolicy,
        policy_kwargs=dict(squash_output=True, net_arch=[8]),
        use_sde=True,
        learning_rate=lambda remaining: remaining * 1e-3,
    )
    assert_learns(model, steps=128)
    assert model.policy.optimizer.param_groups[0]["lr"] == pytest.approx(0.0)


def test_it_learns_to_name_what_it_sees():
    env = IdentityEnv(dim=4, ep_length=100)
    model = small_ppo(
        UPGDPolicy, env, n_steps=256, batch_size=64, n_epochs=8, gamma=0.0, learning_rate=1e-2
    )
    model.learn(1024)
    mean_return, _ = evaluate_policy(model, env, n_eval_episodes=5, warn=False)
    assert mean_return > 90


def test_a_policy_can_be_saved_and_loaded_by_itself(tmp_path):
    model = small_ppo(UPGDPolicy, policy_kwargs=dict(net_arch=[8]))
    model.learn(32)
    model.policy.save(tmp_path / "policy.pth")
    loaded = UPGDPolicy.load(tmp_path / "policy.pth", device="cpu")
    observations = np.random.default_rng(0).normal(size=(5, 3)).astype(np.float32)
    expected, _ = model.predict(observations, deterministic=True)
    np.testing.assert_array_equal(loaded.predict(observations, deterministic=True)[0], expected)


@pytest.mark.parametrize("policy", [UPGDPolicy, "UPGDPolicy"])
@pytest.mark.parametrize(
    ("algorithm", "env"),
    [
        (SAC, "Pendulum-v1"),
        (TD3, "Pendulum-v1"),
        (TQC, "Pendulum-v1"),
        (CrossQ, "Pendulum-v1"),
        (DQN, "CartPole-v1"),
        (QRDQN, "CartPole-v1"),
    ],
)
def test_an_algorithm_of_another_kind_says_what_to_use_instead(algorithm, env, policy):
    with pytest.raises(AttributeError, match=r"PPO, A2C and TRPO.*optimizer_class=AdaptiveUPGD"):
        algorithm(policy, env, buffer_size=10)


def test_recurrent_ppo_says_what_to_use_instead():
    from sb3_contrib import RecurrentPPO

    for policy in (UPGDPolicy, "UPGDPolicy"):
        with pytest.raises(AttributeError, match=r"optimizer_class=AdaptiveUPGD"):
            RecurrentPPO(policy, "Pendulum-v1")


@pytest.mark.parametrize("policy", ["UPGDPolicy", UPGDPolicy])
def test_dictionaries_are_taken_as_the_multi_input_policy_takes_them(policy):
    env = SimpleMultiObsEnv(random_start=False)
    model = small_ppo(policy, env)
    other = small_ppo("UPGDMultiInputPolicy", env)
    assert {name: p.shape for name, p in model.policy.named_parameters()} == {
        name: p.shape for name, p in other.policy.named_parameters()
    }
    assert_learns(model)


def test_a_misspelt_optimizer_setting_is_told_the_nearest():
    for algorithm in (PPO, A2C):
        with pytest.raises(TypeError, match=r"AdaptiveUPGD.*'sgima'\. Perhaps you meant sigma\?"):
            algorithm(
                "UPGDPolicy",
                "Pendulum-v1",
                policy_kwargs=dict(optimizer_kwargs=dict(sgima=1.0)),
            )
    with pytest.raises(TypeError, match=r"'xyz'\. It has .*beta_utility"):
        small_ppo(UPGDPolicy, policy_kwargs=dict(optimizer_kwargs=dict(xyz=1.0)))


def test_an_unknown_optimizer_setting_is_refused_with_its_value():
    with pytest.raises(ValueError, match=r"sigma.*-1"):
        small_ppo(UPGDPolicy, policy_kwargs=dict(optimizer_kwargs=dict(sigma=-1)))
