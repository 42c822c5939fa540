"""Every algorithm of SB3 and sb3-contrib trains with our optimizers, and goes on after a load."""

from copy import deepcopy

import numpy as np
import pytest
import torch
from sb3_contrib import QRDQN, TQC, TRPO, CrossQ, MaskablePPO, RecurrentPPO
from sb3_contrib.common.envs import InvalidActionEnvDiscrete
from stable_baselines3 import A2C, DDPG, DQN, PPO, SAC, TD3
from stable_baselines3.common.envs import FakeImageEnv, SimpleMultiObsEnv
from torch.optim.optimizer import register_optimizer_step_pre_hook

from upgd_ppo.agents.sb3 import UPGD, AdaptiveUPGD, UPGDCnnPolicy, UPGDMultiInputPolicy, UPGDPolicy
from upgd_ppo.agents.sb3.statistics import optimizers_of

STEPS = 48
ON_POLICY = dict(n_steps=24)
OFF_POLICY = dict(buffer_size=200, learning_starts=20, batch_size=12)
MASKED = InvalidActionEnvDiscrete(dim=8, n_invalid_actions=2)
ALGORITHMS = {
    A2C: ("MlpPolicy", "Pendulum-v1", ON_POLICY),
    PPO: ("MlpPolicy", "Pendulum-v1", ON_POLICY | dict(batch_size=12, n_epochs=2)),
    TRPO: ("MlpPolicy", "Pendulum-v1", ON_POLICY | dict(batch_size=12)),
    RecurrentPPO: ("MlpLstmPolicy", "Pendulum-v1", ON_POLICY | dict(batch_size=12, n_epochs=1)),
    SAC: ("MlpPolicy", "Pendulum-v1", OFF_POLICY),
    TD3: ("MlpPolicy", "Pendulum-v1", OFF_POLICY),
    TQC: ("MlpPolicy", "Pendulum-v1", OFF_POLICY),
    DQN: ("MlpPolicy", "CartPole-v1", OFF_POLICY | dict(train_freq=1)),
    DDPG: ("MlpPolicy", "Pendulum-v1", OFF_POLICY),
    QRDQN: ("MlpPolicy", "CartPole-v1", OFF_POLICY | dict(train_freq=1)),
    CrossQ: ("MlpPolicy", "Pendulum-v1", OFF_POLICY),
    MaskablePPO: (
        "MlpPolicy",
        InvalidActionEnvDiscrete(dim=8, n_invalid_actions=2),
        ON_POLICY | dict(batch_size=12, n_epochs=2),
    ),
}


def make(algorithm, optimizer_class, **optimizer_kwargs):
    policy, env, settings = ALGORITHMS[algorithm]
    policy_kwargs = dict(
        net_arch=[8], optimizer_class=optimizer_class, optimizer_kwargs=optimizer_kwargs
    )
    if algorithm is RecurrentPPO:
        policy_kwargs["lstm_hidden_size"] = 8
    return algorithm(policy, env, policy_kwargs=policy_kwargs, seed=0, device="cpu", **settings)


def optimizers_that_step(model, steps=STEPS):
    """Names of a policy's parameters, by the class of the optimizer that stepped them."""
    names = {id(p): name for name, p in model.policy.named_parameters()}
    stepped = {}

    def note(optimizer, *_):
        for group in optimizer.param_groups:
            mine = {names[id(p)] for p in group["params"] if id(p) in names and p.grad is not None}
            if mine:
                stepped.setdefault(type(optimizer), set()).update(mine)

    handle = register_optimizer_step_pre_hook(note)
    try:
        model.learn(steps)
    finally:
        handle.remove()
    return stepped


ACTOR_CRITIC = {
    "UPGDPolicy": (UPGDPolicy, "Pendulum-v1"),
    "UPGDCnnPolicy": (UPGDCnnPolicy, FakeImageEnv(screen_height=36, screen_width=36, n_channels=1)),
    "UPGDMultiInputPolicy": (UPGDMultiInputPolicy, SimpleMultiObsEnv(random_start=False)),
}


@pytest.mark.parametrize("by_name", [True, False], ids=["name", "class"])
@pytest.mark.parametrize("policy", ACTOR_CRITIC)
@pytest.mark.parametrize("algorithm", [PPO, A2C, TRPO], ids=lambda algorithm: algorithm.__name__)
def test_upgd_policies_are_stepped_by_adaptive_upgd_alone(algorithm, policy, by_name):
    policy_class, env = ACTOR_CRITIC[policy]
    settings = ALGORITHMS[algorithm][2]
    policy_kwargs = dict(net_arch=[8], optimizer_kwargs=dict(sigma=1e-2))
    model = algorithm(
        policy if by_name else policy_class, env, policy_kwargs=policy_kwargs, **settings
    )
    stepped = optimizers_that_step(model)
    assert stepped.keys() == {AdaptiveUPGD}
    assert {"value_net.weight"} <= stepped[AdaptiveUPGD]
    assert model.policy.optimizer.param_groups[0]["sigma"] == 1e-2
    assert model.policy.optimizer.param_groups[0]["eps"] == 1e-5


def test_a_loaded_a2c_is_stepped_by_upgd_too(tmp_path):
    model = A2C("UPGDPolicy", "Pendulum-v1", policy_kwargs=dict(optimizer_kwargs=dict(sigma=0.1)))
    model.learn(10)
    model.save(tmp_path / "model.zip")
    loaded = A2C.load(tmp_path / "model.zip", env=model.get_env())
    assert optimizers_that_step(loaded, 10).keys() == {AdaptiveUPGD}
    assert loaded.policy.optimizer.param_groups[0]["sigma"] == 0.1


@pytest.mark.parametrize("optimizer_class", [torch.optim.RMSprop, torch.optim.SGD, UPGD])
def test_an_optimizer_that_a2c_is_given_is_honoured(optimizer_class):
    policy_kwargs = dict(optimizer_class=optimizer_class)
    model = A2C("UPGDPolicy", "Pendulum-v1", policy_kwargs=policy_kwargs)
    assert optimizers_that_step(model, 10).keys() == {optimizer_class}


def test_a2cs_own_policies_are_stepped_as_before():
    assert optimizers_that_step(A2C("MlpPolicy", "Pendulum-v1"), 10).keys() == {torch.optim.RMSprop}
    model = A2C("MlpPolicy", "Pendulum-v1", use_rms_prop=False)
    assert optimizers_that_step(model, 10).keys() == {torch.optim.Adam}


def test_rmsprop_and_upgd_at_once_are_refused():
    with pytest.raises(ValueError, match=r"UPGDPolicy trains with UPGD and use_rms_prop=True"):
        A2C("UPGDPolicy", "Pendulum-v1", use_rms_prop=True)


@pytest.mark.parametrize(("first", "env"), [(A2C, "Pendulum-v1"), (QRDQN, "CartPole-v1")])
def test_policy_kwargs_can_be_shared_between_arms(first, env):
    policy_kwargs = dict(net_arch=[8])
    first("MlpPolicy", env, policy_kwargs=policy_kwargs)
    assert policy_kwargs == dict(net_arch=[8])
    for algorithm in (A2C, PPO):
        model = algorithm("UPGDPolicy", "Pendulum-v1", n_steps=5, policy_kwargs=policy_kwargs)
        assert optimizers_that_step(model, 10).keys() == {AdaptiveUPGD}


def named_parameters(model):
    return {name: p.detach().clone() for name, p in model.policy.named_parameters()}


@pytest.mark.parametrize("optimizer_class", [UPGD, AdaptiveUPGD])
@pytest.mark.parametrize("algorithm", ALGORITHMS, ids=lambda algorithm: algorithm.__name__)
def test_each_algorithm_trains(algorithm, optimizer_class):
    model = make(algorithm, optimizer_class, sigma=1e-3)
    before = named_parameters(model)
    stepped = optimizers_that_step(model)
    assert stepped.keys() == {optimizer_class}
    optimizers = optimizers_of(model.policy)
    assert optimizers
    for optimizer in optimizers:
        assert type(optimizer) is optimizer_class
        assert optimizer.state
        assert all(state["step"] > 1 for state in optimizer.state.values())
    after = named_parameters(model)
    assert all(p.isfinite().all() for p in after.values())
    weights = [name for name in before if name.endswith("weight") and "target" not in name]
    assert all(not torch.equal(before[name], after[name]) for name in weights)


def update(model, data):
    """One update on given data, with given random numbers."""
    np.random.seed(1)  # noqa: NPY002 (what SB3 samples with)
    torch.manual_seed(1)
    if isinstance(model, SAC | TD3 | DQN):
        model.replay_buffer = data
        model.train(gradient_steps=4, batch_size=12)
    else:
        model.rollout_buffer = deepcopy(data)
        model.train()
    return named_parameters(model)


@pytest.mark.parametrize(
    "algorithm", [PPO, A2C, SAC, TD3, DQN, RecurrentPPO], ids=lambda algorithm: algorithm.__name__
)
def test_a_loaded_model_goes_on_with_the_optimizers_traces(algorithm, tmp_path):
    model = make(algorithm, AdaptiveUPGD).learn(STEPS)
    model.save(tmp_path / "model.zip")
    loaded = type(model).load(tmp_path / "model.zip", device="cpu")
    forgetful = type(model).load(tmp_path / "model.zip", device="cpu")
    for optimizer in optimizers_of(forgetful.policy):
        optimizer.state.clear()

    for optimizer, saved in zip(
        optimizers_of(loaded.policy), optimizers_of(model.policy), strict=True
    ):
        mine, theirs = optimizer.state_dict()["state"], saved.state_dict()["state"]
        assert mine.keys() == theirs.keys()
        assert theirs
        for key, state in theirs.items():
            assert {"utility", "exp_avg", "exp_avg_sq", "step"} <= state.keys()
            for name, value in state.items():
                assert torch.equal(torch.as_tensor(mine[key][name]), torch.as_tensor(value)), name

    off_policy = isinstance(model, SAC | TD3 | DQN)
    data = model.replay_buffer if off_policy else deepcopy(model.rollout_buffer)
    for copy in (loaded, forgetful):
        copy.set_logger(model.logger)
    expected, actual, without = (update(m, data) for m in (model, loaded, forgetful))
    for name, value in expected.items():
        assert torch.equal(actual[name], value), name
    assert any(not torch.equal(without[name], value) for name, value in expected.items())
