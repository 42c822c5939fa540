"""From our checkpoints to SB3, and from SB3's files to a policy that can be scored."""

import base64
import io
import json
import pickle
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import gymnasium
import numpy as np
import pytest
import torch
from sb3_contrib import RecurrentPPO
from stable_baselines3 import DQN, PPO, SAC
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.torch_layers import BaseFeaturesExtractor
from stable_baselines3.common.vec_env import VecNormalize

from upgd_ppo import train
from upgd_ppo.agents.networks.actor_critic import ActorCritic
from upgd_ppo.agents.runs.checkpoint import checkpoints, load_checkpoint
from upgd_ppo.agents.sb3 import BatchedMujocoVecEnv, UPGDPolicy, export_sb3, load_policy

pytestmark = pytest.mark.filterwarnings("ignore:.*out of date.*")

TINY = "--steps 128 --rollout-steps 64 --minibatches 4 --epochs 2 --threads 1 --opt upgd --out"


def run_of(tmp_path, settings):
    out = tmp_path / "run"
    assert train.main([*settings.split(), *TINY.split(), str(out)]) == 0
    return out


def test_the_plug_in_imports_where_file_locks_are_missing():
    code = (
        "import sys; sys.modules['fcntl'] = None\n"  # as on Windows
        "import checkout\n"
        "from upgd_ppo.sb3 import BatchedMujocoVecEnv, PlasticityCallback, UPGDPolicy\n"
        "assert 'upgd_ppo.agents.runs.run_directory' not in sys.modules\n"
    )
    root = Path(train.__file__).parent
    result = subprocess.run([sys.executable, "-c", code], cwd=root, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr


@pytest.fixture(scope="module")
def hopper_run(tmp_path_factory):
    return run_of(
        tmp_path_factory.mktemp("hopper"),
        "--env Hopper-v4 --seeds 3 --hidden-sizes 16 8 --activation relu",
    )


def our_actions(run, member, observations, shape, sizes, activation):
    """What the member's own networks play, from the checkpoint."""
    state = load_checkpoint(checkpoints(run / "checkpoints")[0])["agent"]
    networks = ActorCritic([0], *shape, sizes, activation)
    networks.parameters.data.copy_(state["parameters"][member : member + 1])
    if "NormalizeObservation" in state["environment"]:
        moments = state["environment"]["NormalizeObservation"]
        observations = (observations - moments["mean"][member]) / np.sqrt(
            moments["var"][member] + 1e-8
        )
        observations = np.clip(observations, -10, 10)
    inputs = observations.astype(np.float32)[None]
    return networks.actor.infer(inputs, networks.actor.numpy_layers())[0]


@pytest.mark.parametrize("member", [0, 2])
def test_ppo_load_plays_a_members_actions(member, hopper_run, tmp_path):
    model_file, statistics_file = export_sb3(hopper_run, member, tmp_path / "hopper.zip")
    assert (model_file.name, statistics_file.name) == ("hopper.zip", "hopper_vecnormalize.pkl")
    env = VecNormalize.load(str(statistics_file), BatchedMujocoVecEnv("Hopper-v4", 4, seed=3))
    assert not env.training
    model = PPO.load(model_file, env=env, device="cpu")
    observations = env.reset()
    for _ in range(10):
        actions, _ = model.predict(observations, deterministic=True)
        expected = our_actions(hopper_run, member, env.get_original_obs(), (11, 3), (16, 8), "relu")
        np.testing.assert_allclose(actions, np.clip(expected, -1, 1), atol=1e-6)
        observations, *_ = env.step(actions)


def test_members_differ_and_the_model_knows_its_past(hopper_run, tmp_path):
    models = [
        PPO.load(export_sb3(hopper_run, member, tmp_path / f"{member}")[0], device="cpu")
        for member in (0, 1)
    ]
    assert not torch.equal(models[0].policy.action_net.weight, models[1].policy.action_net.weight)
    assert models[0].num_timesteps == 128
    assert models[0].env_id == "Hopper-v4"
    assert (models[0].n_steps, models[0].batch_size, models[0].n_epochs) == (64, 16, 2)
    state = load_checkpoint(checkpoints(hopper_run / "checkpoints")[0])["agent"]
    networks = ActorCritic([0], 11, 3, (16, 8), "relu")
    networks.parameters.data.copy_(state["parameters"][:1])
    inputs = torch.randn(6, 11)
    with torch.no_grad():
        values = models[0].policy.predict_values(inputs)
    torch.testing.assert_close(values, networks.critic.forward(inputs[None])[0])
    torch.testing.assert_close(models[0].policy.log_std.data, networks.log_std[0])


def test_an_exported_model_goes_on_training(hopper_run, tmp_path):
    model_file, statistics_file = export_sb3(hopper_run, 0, tmp_path / "hopper.zip")
    env = VecNormalize.load(str(statistics_file), BatchedMujocoVecEnv("Hopper-v4", 1, seed=3))
    env.training = True
    model = PPO.load(model_file, env=env, device="cpu")
    before = model.policy.action_net.weight.detach().clone()
    model.learn(64, reset_num_timesteps=False)
    assert model.num_timesteps == 192
    assert not torch.equal(before, model.policy.action_net.weight)


@pytest.mark.parametrize("activation", ["tanh", "leaky_relu", "elu", "silu"])
def test_every_activation_and_no_normalisation(activation, tmp_path):
    run = run_of(
        tmp_path,
        f"--env Pendulum-v1 --activation {activation} --hidden-sizes 8"
        " --no-normalize-observations --no-normalize-rewards",
    )
    model_file, statistics_file = export_sb3(run, 0, tmp_path / "deep" / "pendulum")
    assert model_file.name == "pendulum.zip"
    assert statistics_file is None
    observations = np.random.default_rng(0).normal(size=(20, 3))
    actions, _ = PPO.load(model_file, device="cpu").predict(observations, deterministic=True)
    expected = our_actions(run, 0, observations, (3, 1), (8,), activation)
    np.testing.assert_allclose(actions, np.clip(expected, -2, 2), atol=1e-6)


def test_what_cannot_be_exported_is_said_in_a_sentence(hopper_run, tmp_path):
    with pytest.raises(ValueError, match="no member 3: it has 3, counted from 0"):
        export_sb3(hopper_run, 3, tmp_path / "hopper.zip")
    with pytest.raises(ValueError, match="not a run directory"):
        export_sb3(tmp_path, 0, tmp_path / "hopper.zip")
    run = run_of(tmp_path, "--env Pendulum-v1 --layer-norm")
    with pytest.raises(ValueError, match=r"layer normalisation.*evaluate\.py"):
        export_sb3(run, 0, tmp_path / "pendulum.zip")
    without = tmp_path / "without"
    shutil.copytree(hopper_run, without, ignore=shutil.ignore_patterns("*.pt"))
    with pytest.raises(ValueError, match="no checkpoint"):
        export_sb3(without, 0, tmp_path / "hopper.zip")


def test_no_older_policy_is_exported_in_place_of_a_damaged_one(hopper_run, tmp_path):
    damaged = tmp_path / "damaged"
    shutil.copytree(hopper_run, damaged)
    newest, *older = sorted((damaged / "checkpoints").glob("*.pt"), reverse=True)
    assert older
    newest.write_bytes(newest.read_bytes()[:-1])
    with pytest.raises(ValueError, match="damaged"):
        export_sb3(damaged, 0, tmp_path / "hopper.zip")
    assert not (tmp_path / "hopper.zip").exists()


# ── Loading SB3's files ─────────────────────────────────────────────────────────────────────────


def test_an_exported_policy_is_scored_without_naming_anything(hopper_run, tmp_path):
    model_file, statistics_file = export_sb3(hopper_run, 1, tmp_path / "hopper.zip")
    saved = load_policy(tmp_path / "hopper")
    assert (saved.env_id, saved.env_kwargs) == ("Hopper-v4", {})
    env = VecNormalize.load(str(statistics_file), BatchedMujocoVecEnv("Hopper-v4", 3, seed=0))
    expected, _ = PPO.load(model_file, device="cpu").predict(env.reset(), deterministic=True)
    np.testing.assert_array_equal(saved.predict(env.get_original_obs()), expected)
    assert saved.observation_space.shape == (11,)
    assert saved.action_space.shape == (3,)


@pytest.mark.parametrize(
    ("algorithm", "policy", "env_id", "settings"),
    [
        (PPO, UPGDPolicy, "Pendulum-v1", dict(n_steps=64, use_sde=True)),
        (SAC, "MlpPolicy", "Pendulum-v1", dict(buffer_size=10)),
        (DQN, "MlpPolicy", "CartPole-v1", dict(buffer_size=10)),
    ],
)
def test_policies_of_any_algorithm_play_as_sb3_plays_them(
    algorithm, policy, env_id, settings, tmp_path
):
    model = algorithm(policy, env_id, device="cpu", seed=0, **settings)
    model.save(tmp_path / "model.zip")
    saved = load_policy(tmp_path / "model.zip")
    size = model.observation_space.shape[0]
    observations = np.random.default_rng(0).normal(size=(5, size)).astype(np.float32)
    expected, _ = model.predict(observations, deterministic=True)
    np.testing.assert_array_equal(saved.predict(observations), expected)
    assert saved.env_id is None
    assert saved.normalizer is None


def test_a_recurrent_policy_remembers_until_an_episode_starts(tmp_path):
    policy_kwargs = dict(lstm_hidden_size=8, net_arch=[8])
    model = RecurrentPPO(
        "MlpLstmPolicy", "Pendulum-v1", policy_kwargs=policy_kwargs, device="cpu", seed=0
    )
    model.save(tmp_path / "model.zip")
    saved = load_policy(tmp_path / "model.zip")
    observations = np.ones((2, 3), np.float32)
    first = saved.predict(observations)
    second = saved.predict(observations, episode_starts=np.array([False, True]))
    assert first[0] != second[0]
    np.testing.assert_allclose(second[1], first[1], rtol=1e-6)


def test_the_rl_zoos_statistics_are_found_and_others_can_be_named(tmp_path):
    env = VecNormalize(make_vec_env("Pendulum-v1", 1, seed=0))
    model = PPO("MlpPolicy", env, n_steps=64, device="cpu").learn(64)
    model.save(tmp_path / "Pendulum-v1.zip")
    (tmp_path / "Pendulum-v1").mkdir()
    env.save(str(tmp_path / "Pendulum-v1" / "vecnormalize.pkl"))
    env.obs_rms.mean += 1.0
    env.save(str(tmp_path / "other.pkl"))
    raw = np.random.default_rng(0).normal(size=(4, 3))
    found = load_policy(tmp_path / "Pendulum-v1.zip").predict(raw)
    named = load_policy(tmp_path / "Pendulum-v1.zip", tmp_path / "other.pkl").predict(raw)
    expected, _ = model.predict(env.normalize_obs(raw), deterministic=True)
    np.testing.assert_array_equal(named, expected)
    assert not np.array_equal(found, named)


class Marker:
    """Leaves a file behind when it is unpickled."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return (open, (str(self.path), "w"))


class OwnExtractor(BaseFeaturesExtractor):
    def __init__(self, observation_space):
        super().__init__(observation_space, 3)

    def forward(self, observations):
        return observations * 2


def test_loading_runs_no_code_from_the_file(tmp_path):
    model = PPO("MlpPolicy", "Pendulum-v1", n_steps=64, device="cpu")
    model.save(tmp_path / "model.zip")
    evil = base64.b64encode(pickle.dumps(Marker(tmp_path / "it_ran"))).decode()
    with zipfile.ZipFile(tmp_path / "model.zip") as archive:
        parts = {name: archive.read(name) for name in archive.namelist()}
    data = json.loads(parts["data"])
    # Where it is not needed it is not even read; where it is needed it is refused.
    for key, works in (("lr_schedule", True), ("policy_kwargs", False)):
        changed = data | {key: {":type:": "x", ":serialized:": evil}}
        with zipfile.ZipFile(tmp_path / f"{key}.zip", "w") as archive:
            for name, content in (parts | {"data": json.dumps(changed).encode()}).items():
                archive.writestr(name, content)
        if works:
            load_policy(tmp_path / f"{key}.zip")
        else:
            with pytest.raises(ValueError, match=r"needs .*open.*run_code=True"):
                load_policy(tmp_path / f"{key}.zip")
    (tmp_path / "model_vecnormalize.pkl").write_bytes(pickle.dumps(Marker(tmp_path / "it_ran")))
    with pytest.raises(ValueError, match=r"needs .*open"):
        load_policy(tmp_path / "model.zip")
    assert not (tmp_path / "it_ran").exists()


@pytest.mark.parametrize(
    "name", ["torch.hub.load", "numpy.load", "stable_baselines3.common.save_util.load_from_pkl"]
)
def test_functions_of_known_libraries_are_refused_too(name, tmp_path):
    from upgd_ppo.agents.sb3.safe_pickle import safe_loads

    module, _, function = name.rpartition(".")
    with pytest.raises(pickle.UnpicklingError, match=name.replace(".", r"\.")):
        safe_loads(f"c{module}\n{function}\n.".encode())


def test_classes_of_ones_own_load_on_trust(tmp_path):
    policy_kwargs = dict(features_extractor_class=OwnExtractor)
    model = PPO("MlpPolicy", "Pendulum-v1", n_steps=64, device="cpu", policy_kwargs=policy_kwargs)
    model.save(tmp_path / "model.zip")
    with pytest.raises(ValueError, match=r"OwnExtractor.*run_code=True"):
        load_policy(tmp_path / "model.zip")
    observations = np.ones((1, 3), np.float32)
    expected, _ = model.predict(observations, deterministic=True)
    actions = load_policy(tmp_path / "model.zip", run_code=True).predict(observations)
    np.testing.assert_array_equal(actions, expected)


def test_other_files_are_refused_in_a_sentence(tmp_path):
    with pytest.raises(ValueError, match=r"There is no model .*nothing\.zip"):
        load_policy(tmp_path / "nothing")
    (tmp_path / "text.zip").write_text("hello")
    with zipfile.ZipFile(tmp_path / "empty.zip", "w") as archive:
        archive.writestr("readme", "hello")
    for name in ("text.zip", "empty.zip"):
        with pytest.raises(ValueError, match="not a model that Stable-Baselines3 saved"):
            load_policy(tmp_path / name)
    model = PPO("MlpPolicy", "Pendulum-v1", n_steps=64, device="cpu")
    model.save(tmp_path / "model.zip")
    buffer = io.BytesIO()
    pickle.dump(gymnasium.spaces.Discrete(2), buffer)
    (tmp_path / "space.pkl").write_bytes(buffer.getvalue())
    with pytest.raises(ValueError, match="holds no VecNormalize statistics"):
        load_policy(tmp_path / "model.zip", tmp_path / "space.pkl")
    with pytest.raises(ValueError, match="Cannot read the statistics"):
        load_policy(tmp_path / "model.zip", tmp_path / "missing.pkl")
