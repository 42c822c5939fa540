"""The callback measures what it says, on any algorithm, and leaves training as it was."""

import json
import warnings
from typing import ClassVar

import gymnasium
import numpy as np
import pandas as pd
import pytest
import torch
from gymnasium import spaces
from sb3_contrib import ARS, QRDQN, TQC, TRPO, CrossQ, MaskablePPO, RecurrentPPO
from sb3_contrib.common.envs import InvalidActionEnvDiscrete
from stable_baselines3 import A2C, DQN, PPO, SAC, TD3, HerReplayBuffer
from stable_baselines3.common.callbacks import BaseCallback, CallbackList
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.envs import BitFlippingEnv, FakeImageEnv, SimpleMultiObsEnv
from stable_baselines3.common.logger import configure
from stable_baselines3.common.torch_layers import BaseFeaturesExtractor
from stable_baselines3.common.vec_env import DummyVecEnv, VecNormalize
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from torch import nn

from upgd_ppo.agents.sb3 import AdaptiveUPGD, PlasticityCallback, PlasticityWarning, UPGDPolicy

pytestmark = pytest.mark.filterwarnings("ignore::upgd_ppo.agents.sb3.PlasticityWarning")

SMALL = dict(seed=0, device="cpu")
PPO_SETTINGS = dict(n_steps=64, batch_size=32, n_epochs=2) | SMALL
OFF_POLICY = dict(buffer_size=300, learning_starts=20, batch_size=16) | SMALL
FEATURES = {
    "dormant_fraction",
    "dead_fraction",
    "saturated_fraction",
    "effective_rank",
    "stable_rank",
    "srank",
    "approximate_rank",
    "feature_rank",
    "feature_norm",
    "nonfinite_count",
}
WEIGHTS = {
    "weight_l2",
    "weight_mean_abs",
    "weight_max_abs",
    "weight_rank",
    "distance_from_init",
    "update_ratio",
    "gradient_l2",
    "gradient_zero_fraction",
}
UPGD_ONES = {
    "utility_mean",
    "utility_max",
    "scaled_utility_q25",
    "scaled_utility_q50",
    "scaled_utility_q75",
    "protected_fraction",
}


class LastRollout(BaseCallback):
    """Keeps what independent computations need, as it is at the end of every rollout."""

    latest_gradients: ClassVar[dict] = {}

    def _on_step(self):
        return True

    def _on_rollout_end(self):
        policy = self.model.policy
        self.before = getattr(self, "now", None)
        self.now = {name: p.detach().clone() for name, p in policy.named_parameters()}
        self.gradients = dict(self.latest_gradients)
        observations = torch.as_tensor(self.model.rollout_buffer.observations).flatten(0, 1)
        self.observations = [*getattr(self, "observations", []), observations]
        with torch.no_grad():
            inputs = torch.cat(self.observations)[-1024:]
            self.features = policy.mlp_extractor.policy_net(inputs).double().numpy()


def tag_of(network, layer, statistic):
    return "/".join(["statistics", network, *([] if layer == "all" else [layer]), statistic])


def effective_rank(features):
    sigma = np.linalg.svd(features, compute_uv=False)
    q = sigma / sigma.sum()
    return np.exp(-(q * np.log(np.maximum(q, 1e-300))).sum())


def learn(model, tmp_path, steps, every, *others, **settings):
    callback = PlasticityCallback(every=every, log_dir=tmp_path, **settings)
    model.learn(steps, callback=CallbackList([callback, *others]))
    return callback, pd.read_csv(tmp_path / "plasticity.csv")


def value(table, network, layer, statistic):
    last = table[table.step == table.step.max()]
    chosen = last[(last.network == network) & (last.layer == layer) & (last.statistic == statistic)]
    assert len(chosen) == 1
    return chosen.value.item()


def gradients_before_clipping(model, monkeypatch):
    """Filled with the latest gradients that came to be clipped, by name."""
    latest = {}
    clip = torch.nn.utils.clip_grad_norm_

    def note(parameters, max_norm):
        for name, p in model.policy.named_parameters():
            if p.grad is not None:
                latest[name] = p.grad.clone()
        return clip(parameters, max_norm)

    monkeypatch.setattr(torch.nn.utils, "clip_grad_norm_", note)
    return latest


def test_the_statistics_are_those_of_the_latest_rollout_and_update(tmp_path, monkeypatch):
    model = PPO(UPGDPolicy, "Pendulum-v1", **PPO_SETTINGS, max_grad_norm=1e-3)
    start = {name: p.detach().clone() for name, p in model.policy.named_parameters()}
    witness = LastRollout()
    witness.latest_gradients = gradients_before_clipping(model, monkeypatch)
    _, table = learn(model, tmp_path, 4 * 64, 64, witness)
    assert table.columns.tolist() == ["step", "network", "layer", "statistic", "value"]
    assert table.step.unique().tolist() == [128, 192, 256]
    assert table.value.notna().all()

    # Rollouts of 64 are too few for ranks, so that several are measured together.
    assert len(witness.features) == 256
    rank = effective_rank(witness.features)
    assert value(table, "actor", "layer_2", "effective_rank") == pytest.approx(rank, 1e-4)

    name = "mlp_extractor.policy_net.0.weight"
    now, before = witness.now[name], witness.before[name]
    expected = {
        "weight_l2": now.norm(),
        "weight_max_abs": now.abs().max(),
        "update_ratio": (now - before).norm() / now.norm(),
        "distance_from_init": (now - start[name]).norm() / start[name].norm(),
        "gradient_l2": witness.gradients[name].norm(),
    }
    for statistic, number in expected.items():
        assert value(table, "actor", "layer_1", statistic) == pytest.approx(number.item(), 1e-4)
    assert witness.gradients[name].norm() > 1e-3
    whole = torch.cat([witness.now[n].flatten() for n in witness.now if "value_net" in n])
    assert value(table, "critic", "all", "weight_l2") == pytest.approx(whole.norm().item(), 1e-4)
    assert 0.4 < value(table, "actor", "layer_1", "scaled_utility_q50") < 0.6


def test_a_rollout_of_a_thousand_samples_is_measured_by_itself(tmp_path):
    model = PPO(
        "MlpPolicy", "Pendulum-v1", **PPO_SETTINGS | dict(n_steps=1024, batch_size=256, n_epochs=1)
    )
    witness = LastRollout()
    _, table = learn(model, tmp_path, 2048, 10_000, witness)
    assert table.step.unique().tolist() == [2048]
    assert len(witness.features) == 1024
    rank = effective_rank(witness.features)
    assert value(table, "actor", "layer_2", "effective_rank") == pytest.approx(rank, 1e-4)
    norm = np.linalg.norm(witness.features, axis=1).mean()
    assert value(table, "actor", "layer_2", "feature_norm") == pytest.approx(norm, 1e-5)


def test_every_statistic_of_every_layer_is_there(tmp_path):
    _, table = learn(PPO(UPGDPolicy, "Pendulum-v1", **PPO_SETTINGS), tmp_path, 192, 64)
    by_place = table.groupby(["network", "layer"]).statistic.agg(set)
    step = {"effective_step"}
    for network in ("actor", "critic"):
        for layer in ("layer_1", "layer_2"):
            assert by_place[network, layer] == FEATURES | WEIGHTS | UPGD_ONES | step
        assert by_place[network, "output"] == WEIGHTS | UPGD_ONES | step
        assert by_place[network, "all"] == (WEIGHTS - {"weight_rank"}) | UPGD_ONES | step
    assert len(by_place) == 8


class Convolutions(BaseFeaturesExtractor):
    def __init__(self, observation_space):
        super().__init__(observation_space, 6)
        self.image = nn.Sequential(nn.Conv2d(1, 4, 8, 4), nn.ELU(), nn.Flatten(), nn.LazyLinear(6))
        self.image(torch.zeros(1, *observation_space.shape))

    def forward(self, observations):
        return self.image(observations)


IMAGES = FakeImageEnv(screen_height=40, screen_width=40, n_channels=1)


@pytest.mark.parametrize(
    ("algorithm", "policy", "env", "settings", "networks"),
    [
        (A2C, "MlpPolicy", "Pendulum-v1", SMALL, {"actor", "critic"}),
        (
            TRPO,
            "MlpPolicy",
            "CartPole-v1",
            dict(n_steps=64, batch_size=64) | SMALL,
            {"actor", "critic"},
        ),
        (SAC, "MlpPolicy", "Pendulum-v1", OFF_POLICY, {"actor.latent_pi", "critic.qf0"}),
        (TD3, "MlpPolicy", "Pendulum-v1", OFF_POLICY, {"actor.mu", "critic.qf1"}),
        (TQC, "MlpPolicy", "Pendulum-v1", OFF_POLICY, {"actor.latent_pi", "critic.qf0"}),
        (DQN, "MlpPolicy", "CartPole-v1", OFF_POLICY, {"q_net.q_net"}),
        (QRDQN, "MlpPolicy", "CartPole-v1", OFF_POLICY, {"quantile_net.quantile_net"}),
        (PPO, "CnnPolicy", IMAGES, PPO_SETTINGS, {"features_extractor.cnn", "actor"}),
        (
            PPO,
            "MultiInputPolicy",
            SimpleMultiObsEnv(random_start=False),
            PPO_SETTINGS,
            {"features_extractor.extractors.img.cnn", "actor", "critic"},
        ),
        (DQN, "CnnPolicy", IMAGES, OFF_POLICY, {"q_net.features_extractor.cnn"}),
        (RecurrentPPO, "MlpLstmPolicy", "Pendulum-v1", PPO_SETTINGS, {"actor", "critic"}),
        (
            MaskablePPO,
            "MlpPolicy",
            InvalidActionEnvDiscrete(dim=8, n_invalid_actions=2),
            PPO_SETTINGS,
            {"actor", "critic"},
        ),
        (CrossQ, "MlpPolicy", "Pendulum-v1", OFF_POLICY, {"actor.latent_pi", "critic.qf0"}),
        (SAC, "MlpPolicy", "Pendulum-v1", OFF_POLICY | dict(use_sde=True), {"actor.latent_pi"}),
        (PPO, "MlpPolicy", "Pendulum-v1", PPO_SETTINGS | dict(use_sde=True), {"actor", "critic"}),
        (
            SAC,
            "MultiInputPolicy",
            BitFlippingEnv(n_bits=4, continuous=True, max_steps=4),
            OFF_POLICY | dict(replay_buffer_class=HerReplayBuffer),
            {"actor.latent_pi", "critic.qf0"},
        ),
    ],
)
def test_any_algorithm_and_features_extractor(algorithm, policy, env, settings, networks, tmp_path):
    policy_kwargs = {} if "Multi" in policy or "Cnn" in policy else dict(net_arch=[8, 8])
    if algorithm is RecurrentPPO:
        policy_kwargs["lstm_hidden_size"] = 8
    model = algorithm(policy, env, policy_kwargs=policy_kwargs, **settings)
    steps = 192 if hasattr(model, "rollout_buffer") else 90
    _, table = learn(model, tmp_path, steps, 30)
    assert networks <= set(table.network)
    assert table.step.nunique() >= 2
    assert table.value.notna().all()
    moved = table[(table.statistic == "update_ratio") & (table.step == table.step.max())]
    assert (moved.value > 0).mean() > 0.5
    assert {"effective_rank", "gradient_l2"} <= set(table.statistic)


def test_a_features_extractor_of_ones_own(tmp_path):
    policy_kwargs = dict(features_extractor_class=Convolutions, net_arch=[8])
    model = PPO("CnnPolicy", IMAGES, policy_kwargs=policy_kwargs, **PPO_SETTINGS)
    _, table = learn(model, tmp_path, 128, 64)
    first = table[(table.network == "features_extractor.image") & (table.layer == "layer_1")]
    assert "effective_rank" in set(first.statistic)


def test_the_replay_batch_is_normalised_as_for_training(tmp_path):
    env = VecNormalize(make_vec_env("Pendulum-v1", 2, seed=0))
    settings = OFF_POLICY | dict(learning_starts=10_000, policy_kwargs=dict(net_arch=[8]))
    model = SAC("MlpPolicy", env, **settings).learn(40)
    env.training = False
    _, table = learn(model, tmp_path, 40, 1)
    raw = model.replay_buffer.observations[: model.replay_buffer.size()].reshape(-1, 3)
    features = model.actor.latent_pi(torch.as_tensor(env.normalize_obs(raw)))
    norm = features.norm(dim=1).mean().item()
    assert value(table, "actor.latent_pi", "layer_1", "feature_norm") == pytest.approx(norm, 1e-5)


@pytest.mark.parametrize(
    ("algorithm", "settings", "steps"),
    [
        (PPO, PPO_SETTINGS, 256),
        (A2C, SMALL, 100),
        (SAC, OFF_POLICY, 60),
        (RecurrentPPO, PPO_SETTINGS, 128),
    ],
)
def test_training_is_the_same_with_and_without_it(algorithm, settings, steps, tmp_path):
    finals = []
    for callback in (None, PlasticityCallback(every=10, log_dir=tmp_path)):
        policy = "MlpLstmPolicy" if algorithm is RecurrentPPO else "MlpPolicy"
        policy_kwargs = dict(net_arch=[8], optimizer_class=AdaptiveUPGD)
        model = algorithm(policy, "Pendulum-v1", policy_kwargs=policy_kwargs, **settings)
        model.learn(steps, callback=callback)
        finals.append([p.detach() for p in model.policy.parameters()])
    for one, other in zip(*finals, strict=True):
        assert torch.equal(one, other)


def test_everything_reaches_sb3s_own_logger(tmp_path, capsys):
    model = PPO(UPGDPolicy, "Pendulum-v1", verbose=1, **PPO_SETTINGS)
    model.set_logger(configure(str(tmp_path), ["stdout", "csv", "json", "tensorboard"]))
    callback = PlasticityCallback(every=64, thresholds={"warn_dormant_fraction": -1.0})
    model.learn(192, callback=callback)

    table = pd.read_csv(tmp_path / "plasticity.csv")  # beside SB3's own logs
    last = table[table.step == 192]
    expected = {
        tag_of(row.network, row.layer, row.statistic): row.value for row in last.itertuples()
    }
    progress = pd.read_csv(tmp_path / "progress.csv").iloc[-1]
    record = json.loads((tmp_path / "progress.json").read_text().splitlines()[-1])
    board = EventAccumulator(str(tmp_path), size_guidance={"tensors": 0}).Reload()
    for key, number in expected.items():
        assert progress[key] == pytest.approx(number)
        assert record[key] == pytest.approx(number)
        scalar = board.Scalars(key)[-1]
        assert (scalar.step, scalar.value) == (192, pytest.approx(number, rel=1e-5))
    assert "statistics/warning/text_summary" in board.Tags()["tensors"]
    assert progress["statistics/warnings"] == len(callback.warnings) > 0
    printed = capsys.readouterr().out
    assert "actor/layer_1/effective_rank" in printed
    assert "weight_max_abs" not in printed


@pytest.mark.parametrize(
    ("algorithm", "settings"), [(PPO, PPO_SETTINGS | dict(n_steps=30)), (SAC, OFF_POLICY)]
)
def test_tensorboard_has_every_measurement_at_its_step(algorithm, settings, tmp_path):
    model = algorithm("MlpPolicy", "Pendulum-v1", policy_kwargs=dict(net_arch=[8]), **settings)
    model.set_logger(configure(str(tmp_path), ["tensorboard"]))
    model.learn(150, callback=PlasticityCallback(every=30), log_interval=1)
    table = pd.read_csv(tmp_path / "plasticity.csv")
    board = EventAccumulator(str(tmp_path)).Reload()
    for (network, layer, statistic), rows in table.groupby(["network", "layer", "statistic"]):
        logged = board.Scalars(tag_of(network, layer, statistic))
        assert [scalar.step for scalar in logged] == rows.step.tolist()
        np.testing.assert_allclose([scalar.value for scalar in logged], rows.value, rtol=1e-5)
    assert table.step.nunique() >= 4


def test_long_names_fit_into_sb3s_table_if_asked_for(tmp_path, capsys):
    policy_kwargs = dict(features_extractor_class=Convolutions, net_arch=[8])
    model = PPO("CnnPolicy", IMAGES, policy_kwargs=policy_kwargs, verbose=1, **PPO_SETTINGS)
    learn(model, tmp_path, 128, 64, stdout=("gradient_l2", "gradient_zero_fraction"))
    assert "features_extractor.image/layer_1/gradient_zero_fraction" in capsys.readouterr().out


def test_a_dying_layer_is_told_once(tmp_path):
    model = PPO("MlpPolicy", "Pendulum-v1", **PPO_SETTINGS)
    callback = PlasticityCallback(every=64, log_dir=tmp_path)
    with warnings.catch_warnings():
        warnings.simplefilter("error", PlasticityWarning)
        model.learn(128, callback=callback)
    with torch.no_grad():
        model.policy.mlp_extractor.policy_net[2].weight[:40] = 0.0
        model.policy.mlp_extractor.policy_net[2].bias[:40] = 0.0
    with pytest.warns(PlasticityWarning, match=r"step \d+: actor layer_2 dormant_fraction is 0\.6"):
        model.learn(256, callback=callback, reset_num_timesteps=False)
    told = [message for _, message in callback.warnings if "dormant_fraction" in message]
    assert len(told) == 1


def test_exploration_and_the_policys_moves_are_watched_too(tmp_path):
    policy_kwargs = dict(log_std_init=-4.0)
    model = PPO("MlpPolicy", "Pendulum-v1", policy_kwargs=policy_kwargs, **PPO_SETTINGS)
    thresholds = {"warn_kl": -1.0}
    callback, _ = learn(model, tmp_path, 192, 64, thresholds=thresholds)
    messages = [message for _, message in callback.warnings]
    assert any("policy std_0 is 0.018" in message for message in messages)
    assert any("policy approx_kl" in message for message in messages)


def test_a_continued_training_continues_the_file(tmp_path):
    model = PPO("MlpPolicy", "Pendulum-v1", **PPO_SETTINGS)
    learn(model, tmp_path, 128, 64)
    model.save(tmp_path / "model.zip")
    model = PPO.load(tmp_path / "model.zip", env=make_vec_env("Pendulum-v1"), device="cpu")
    callback = PlasticityCallback(every=64, log_dir=tmp_path)
    model.learn(128, callback=callback, reset_num_timesteps=False)
    table = pd.read_csv(tmp_path / "plasticity.csv")
    assert table.step.unique().tolist() == [128, 256]


def test_a_file_of_an_earlier_training_is_never_written_over(tmp_path):
    for number, name in enumerate(["plasticity.csv", "plasticity_2.csv", "plasticity_3.csv"], 1):
        callback = PlasticityCallback(every=64, log_dir=tmp_path)
        model = PPO("MlpPolicy", "Pendulum-v1", **PPO_SETTINGS)
        with warnings.catch_warnings(record=True) as told:
            warnings.simplefilter("always")
            model.learn(64 + 64 * number, callback=callback)
        assert callback.path == tmp_path / name
        assert [name in str(warning.message) for warning in told] == [True] * (number > 1)
    model.learn(64, callback=callback, reset_num_timesteps=False)
    steps = [
        pd.read_csv(tmp_path / f"plasticity{end}.csv").step.unique().tolist()
        for end in ("", "_2", "_3")
    ]
    assert steps == [[128], [128, 192], [128, 192, 256, 320]]


def test_left_to_itself_it_takes_a_small_share_of_the_time(tmp_path, monkeypatch):
    monkeypatch.setattr("upgd_ppo.agents.sb3.plasticity_callback.DEFAULT_CADENCE", 64)

    def measured(**cadence):
        folder = tmp_path / str(len(list(tmp_path.iterdir())))
        callback = PlasticityCallback(log_dir=folder, **cadence)
        PPO("MlpPolicy", "Pendulum-v1", **PPO_SETTINGS).learn(384, callback=callback)
        return pd.read_csv(callback.path).step.nunique()

    assert measured(every=64) == 5
    monkeypatch.setattr("upgd_ppo.agents.sb3.plasticity_callback.LARGEST_SHARE", 1e-6)
    assert measured(every=64) == 5  # as told, whatever it costs
    assert measured() == 1


def test_without_logs_the_file_is_in_the_current_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    PPO("MlpPolicy", "Pendulum-v1", **PPO_SETTINGS).learn(
        128, callback=PlasticityCallback(every=64)
    )
    assert len(pd.read_csv("plasticity.csv")) > 50


def test_a_training_of_one_rollout_is_measured_at_its_end(tmp_path, capsys):
    model = PPO("MlpPolicy", "Pendulum-v1", n_steps=1024, n_epochs=1, verbose=1, **SMALL)
    model.set_logger(configure(str(tmp_path), ["stdout", "csv"]))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        model.learn(1024, callback=PlasticityCallback())
    table = pd.read_csv(tmp_path / "plasticity.csv")
    assert table.step.unique().tolist() == [1024]
    name = "mlp_extractor.policy_net.0.weight"
    norm = dict(model.policy.named_parameters())[name].norm().item()
    assert value(table, "actor", "layer_1", "weight_l2") == pytest.approx(norm)
    assert value(table, "actor", "layer_1", "update_ratio") > 0
    assert value(table, "actor", "layer_1", "gradient_l2") > 0
    logged = pd.read_csv(tmp_path / "progress.csv")
    assert logged["statistics/actor/layer_1/weight_l2"].iloc[-1] == pytest.approx(norm)
    assert "actor/layer_1/effective_rank" in capsys.readouterr().out


class StopAt(BaseCallback):
    def __init__(self, step):
        super().__init__()
        self.step = step

    def _on_step(self):
        return self.num_timesteps < self.step


def test_a_training_that_is_stopped_in_a_rollout_is_measured_on_the_last_whole_one(tmp_path):
    model = PPO("MlpPolicy", "Pendulum-v1", n_steps=1024, n_epochs=1, **SMALL)
    witness = LastRollout()
    _, table = learn(model, tmp_path, 9999, None, witness, StopAt(1030))
    assert table.step.unique().tolist() == [1030]
    with torch.no_grad():
        features = model.policy.mlp_extractor.policy_net(witness.observations[-1]).double()
    assert value(table, "actor", "layer_2", "effective_rank") == pytest.approx(
        effective_rank(features.numpy()), 1e-4
    )


def test_it_says_that_nothing_was_measured(tmp_path):
    model = PPO("MlpPolicy", "Pendulum-v1", **PPO_SETTINGS)
    with pytest.warns(UserWarning, match=r"measured nothing.*step 128.*step 1024.*every="):
        model.learn(128, callback=PlasticityCallback(log_dir=tmp_path))


def test_a_training_in_short_pieces_is_measured_at_the_cadence(tmp_path):
    model = PPO("MlpPolicy", "Pendulum-v1", **PPO_SETTINGS)
    callback = PlasticityCallback(every=128, log_dir=tmp_path)
    for _ in range(6):
        model.learn(64, callback=callback, reset_num_timesteps=False)
    assert pd.read_csv(tmp_path / "plasticity.csv").step.unique().tolist() == [128, 256, 384]


class EnvironmentOfItsOwn(gymnasium.Env):
    """Shows nothing but its number."""

    action_space = spaces.Discrete(2)

    def __init__(self, number, count):
        self.observation_space = spaces.Box(0.0, 1.0, (count,), np.float32)
        self.seen = np.eye(count, dtype=np.float32)[number]

    def reset(self, *, seed=None, options=None):
        return self.seen, {}

    def step(self, action):
        return self.seen, 0.0, False, False, {}


@pytest.mark.parametrize("count", [2, 8])
@pytest.mark.parametrize("algorithm", [PPO, DQN])
def test_every_environment_has_its_share_of_the_samples(algorithm, count, tmp_path):
    env = DummyVecEnv([lambda i=i: EnvironmentOfItsOwn(i, count) for i in range(count)])
    settings = dict(
        PPO=dict(n_steps=2048 // count, batch_size=2048, n_epochs=1),
        DQN=dict(learning_starts=10**9, train_freq=2048 // count),
    )[algorithm.__name__]
    model = algorithm("MlpPolicy", env, learning_rate=0.0, **settings, **SMALL)
    _, table = learn(model, tmp_path, 2048, None)
    linear = next(part for part in model.policy.modules() if isinstance(part, nn.Linear))
    activation = torch.relu if algorithm is DQN else torch.tanh
    with torch.no_grad():
        features = activation(linear(torch.eye(count))).double()
    network = "q_net.q_net" if algorithm is DQN else "actor"
    # All of them alike: the mean norm over the samples is that over the environments.
    expected = features.norm(dim=1).mean().item()
    assert value(table, network, "layer_1", "feature_norm") == pytest.approx(expected, rel=0.01)


class PlainReLU(BaseFeaturesExtractor):
    def __init__(self, observation_space):
        super().__init__(observation_space, 32)
        self.layers = nn.Sequential(nn.Linear(observation_space.shape[0], 32), nn.ReLU())

    def forward(self, observations):
        return self.layers(observations)


@pytest.mark.parametrize(
    ("policy", "env", "policy_kwargs"),
    [
        ("CnnPolicy", FakeImageEnv(screen_height=36, screen_width=36, n_channels=1), {}),
        ("MlpPolicy", "Pendulum-v1", dict(features_extractor_class=PlainReLU)),
    ],
)
def test_a_relu_extractor_before_tanh_layers_is_no_alarm(policy, env, policy_kwargs, tmp_path):
    model = PPO(policy, env, learning_rate=0.0, policy_kwargs=policy_kwargs, **PPO_SETTINGS)
    callback, table = learn(model, tmp_path, 192, 64)
    saturated = table[table.statistic == "saturated_fraction"]
    assert (saturated.value > 0.5).any()
    assert callback.warnings == []


def test_saturated_tanh_layers_behind_a_relu_extractor_are_an_alarm(tmp_path):
    policy_kwargs = dict(features_extractor_class=PlainReLU, net_arch=[8])
    settings = dict(learning_rate=0.0, policy_kwargs=policy_kwargs) | PPO_SETTINGS
    model = PPO("MlpPolicy", "Pendulum-v1", **settings)
    with torch.no_grad():
        model.policy.mlp_extractor.policy_net[0].bias[:5] = 100.0
    callback, _ = learn(model, tmp_path, 128, 64)
    [(_, message)] = callback.warnings
    assert message.startswith("actor layer_1 saturated_fraction is 0.6")
    assert "above 0.5" in message


@pytest.mark.parametrize("policy_kwargs", [dict(net_arch=[]), dict(activation_fn=nn.Identity)])
def test_a_network_without_hidden_layers_says_what_to_do(policy_kwargs, tmp_path):
    model = PPO("MlpPolicy", "Pendulum-v1", policy_kwargs=policy_kwargs, **PPO_SETTINGS)
    with pytest.raises(ValueError, match=r"no hidden layer.*leave the callback out.*net_arch=\["):
        model.learn(256, callback=PlasticityCallback(every=64, log_dir=tmp_path))


def test_an_algorithm_without_a_buffer_says_what_to_use():
    with pytest.raises(TypeError, match=r"ARS does not; call upgd_ppo\.measure"):
        ARS("LinearPolicy", "Pendulum-v1").learn(10, callback=PlasticityCallback())


def test_a_cadence_below_one_is_refused():
    with pytest.raises(ValueError, match=r"every=….*at least 1, not 0"):
        PlasticityCallback(every=0)
