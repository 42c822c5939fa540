"""Every algorithm of SB3 and sb3-contrib trains with our optimizers, and goes on after a load."""

from copy import deepcopy

import numpy as np
import pytest
import torch
from sb3_contrib import TQC, TRPO, RecurrentPPO
from stable_baselines3 import A2C, DQN, PPO, SAC, TD3

from agents.sb3 import UPGD, AdaptiveUPGD
from agents.sb3.statistics import optimizers_of

STEPS = 48
ON_POLICY = dict(n_steps=24)
OFF_POLICY = dict(buffer_size=200, learning_starts=20, batch_size=12)
ALGORITHMS = {
    A2C: ("MlpPolicy", "Pendulum-v1", ON_POLICY),
    PPO: ("MlpPolicy", "Pendulum-v1", ON_POLICY | dict(batch_size=12, n_epochs=2)),
    TRPO: ("MlpPolicy", "Pendulum-v1", ON_POLICY | dict(batch_size=12)),
    RecurrentPPO: ("MlpLstmPolicy", "Pendulum-v1", ON_POLICY | dict(batch_size=12, n_epochs=1)),
    SAC: ("MlpPolicy", "Pendulum-v1", OFF_POLICY),
    TD3: ("MlpPolicy", "Pendulum-v1", OFF_POLICY),
    TQC: ("MlpPolicy", "Pendulum-v1", OFF_POLICY),
    DQN: ("MlpPolicy", "CartPole-v1", OFF_POLICY | dict(train_freq=1)),
}


def make(algorithm, optimizer_class, **optimizer_kwargs):
    policy, env, settings = ALGORITHMS[algorithm]
    policy_kwargs = dict(
        net_arch=[8], optimizer_class=optimizer_class, optimizer_kwargs=optimizer_kwargs
    )
    if algorithm is RecurrentPPO:
        policy_kwargs["lstm_hidden_size"] = 8
    return algorithm(policy, env, policy_kwargs=policy_kwargs, seed=0, device="cpu", **settings)


def named_parameters(model):
    return {name: p.detach().clone() for name, p in model.policy.named_parameters()}


@pytest.mark.parametrize("optimizer_class", [UPGD, AdaptiveUPGD])
@pytest.mark.parametrize("algorithm", ALGORITHMS, ids=lambda algorithm: algorithm.__name__)
def test_each_algorithm_trains(algorithm, optimizer_class):
    model = make(algorithm, optimizer_class, sigma=1e-3)
    before = named_parameters(model)
    model.learn(STEPS)
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
