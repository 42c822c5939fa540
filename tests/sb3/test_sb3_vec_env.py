"""BatchedMujocoVecEnv against SB3's own DummyVecEnv over Gymnasium's environments."""

import json
import warnings

import gymnasium
import numpy as np
import pytest
import torch
from gymnasium.envs.mujoco.hopper_v4 import HopperEnv
from gymnasium.wrappers import ClipAction
from stable_baselines3 import PPO, SAC
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.evaluation import evaluate_policy
from stable_baselines3.common.monitor import Monitor
from stable_baselines3.common.vec_env import (
    VecCheckNan,
    VecFrameStack,
    VecMonitor,
    VecNormalize,
    is_vecenv_wrapped,
)

from upgd_ppo.agents.sb3 import BatchedMujocoVecEnv

pytestmark = pytest.mark.filterwarnings("ignore:.*out of date.*")


def assert_same_info(mine, theirs):
    assert mine.keys() == theirs.keys()
    for key, value in theirs.items():
        if key == "episode":  # its "t" is wall time
            assert (mine[key]["r"], mine[key]["l"]) == (value["r"], value["l"])
            assert mine[key].keys() == value.keys()
        else:
            np.testing.assert_array_equal(mine[key], value, err_msg=key)


def assert_same_steps(mine, theirs, steps):
    """The two step alike, bit for bit; returns how many episodes ended."""
    observations = mine.reset(), theirs.reset()
    assert observations[0].dtype == observations[1].dtype
    np.testing.assert_array_equal(*observations)
    for infos in zip(mine.reset_infos, theirs.reset_infos, strict=True):
        assert_same_info(*infos)
    rng = np.random.default_rng(0)
    space = mine.action_space
    endings = 0
    for _ in range(steps):
        actions = rng.uniform(space.low, space.high, (mine.num_envs, *space.shape))
        actions = actions.astype(np.float32)
        *values, infos = mine.step(actions)
        *expected, expected_infos = theirs.step(actions)
        for value, other in zip(values, expected, strict=True):
            assert value.dtype == other.dtype
            np.testing.assert_array_equal(value, other)
        for pair in zip(infos, expected_infos, strict=True):
            assert_same_info(*pair)
        for pair in zip(mine.reset_infos, theirs.reset_infos, strict=True):
            assert_same_info(*pair)
        endings += int(values[2].sum())
    return endings


@pytest.mark.parametrize(
    ("task", "env_kwargs"),
    [
        ("HalfCheetah-v4", {}),
        ("Hopper-v5", {}),
        ("Ant-v5", dict(healthy_z_range=(0.4, 1.0))),
        ("InvertedDoublePendulum-v4", {}),
    ],
)
def test_steps_equal_those_of_make_vec_env_bit_for_bit(task, env_kwargs):
    theirs = make_vec_env(task, 3, seed=7, env_kwargs=env_kwargs)
    mine = BatchedMujocoVecEnv(task, 3, seed=7, **env_kwargs)
    assert mine.observation_space == theirs.observation_space
    assert mine.action_space == theirs.action_space
    endings = assert_same_steps(mine, theirs, 80)
    assert endings > 0 or task.startswith("HalfCheetah")
    # Without new seeds the generators go on; with a seed everything begins again.
    assert_same_steps(mine, theirs, 5)
    assert mine.seed(3) == theirs.seed(3)
    assert_same_steps(mine, theirs, 5)


def test_time_limits_are_told_from_terminations():
    settings = dict(max_episode_steps=7)
    theirs = make_vec_env("Hopper-v4", 2, seed=0, env_kwargs=settings)
    mine = BatchedMujocoVecEnv("Hopper-v4", 2, seed=0, **settings)
    assert assert_same_steps(mine, theirs, 20) >= 4
    mine.reset()
    for _ in range(7):
        observations, _, dones, infos = mine.step(np.zeros((2, 3), np.float32))
    assert dones.all()
    for observation, info in zip(observations, infos, strict=True):
        assert info["TimeLimit.truncated"] is True
        assert info["episode"]["l"] == 7
        assert info["terminal_observation"].shape == observation.shape
        assert not np.array_equal(info["terminal_observation"], observation)


def test_make_vec_env_can_build_it():
    settings = dict(seed=3, env_kwargs=dict(max_episode_steps=9, reset_noise_scale=0.1))
    theirs = make_vec_env("Hopper-v4", 3, **settings)
    mine = make_vec_env(
        "Hopper-v4",
        3,
        vec_env_cls=BatchedMujocoVecEnv,
        vec_env_kwargs=dict(threads=1),
        **settings,
    )
    assert isinstance(mine, BatchedMujocoVecEnv)
    assert mine.num_envs == 3
    assert assert_same_steps(mine, theirs, 20) >= 6
    assert mine.render_mode == theirs.render_mode


@pytest.mark.parametrize(
    ("env", "settings", "message"),
    [
        ("Hopper-v4", dict(wrapper_class=ClipAction), r"cannot wear ClipAction.*DummyVecEnv"),
        ("Hopper-v4", dict(monitor_dir="logs"), r"monitor_dir.*VecMonitor"),
        ("Hopper-v4", dict(monitor_kwargs=dict(info_keywords=("x",))), r"VecMonitor"),
        ("CartPole-v1", {}, r"CartPole-v1.*make_vec_env\('CartPole-v1', n_envs=2\)"),
        (HopperEnv, {}, r"registered MuJoCo tasks.*DummyVecEnv"),
    ],
)
def test_what_make_vec_env_cannot_have_of_it_says_what_to_use(
    env, settings, message, tmp_path, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ValueError, match=message):
        make_vec_env(env, 2, vec_env_cls=BatchedMujocoVecEnv, **settings)


def test_environments_that_differ_are_refused():
    constructors = [
        lambda size=size: gymnasium.make("Hopper-v4", reset_noise_scale=size) for size in (0.1, 0.2)
    ]
    with pytest.raises(ValueError, match="copies of one"):
        BatchedMujocoVecEnv(constructors)


def test_training_on_it_equals_training_on_dummy_vec_env():
    finals = []
    for env in (
        make_vec_env("Hopper-v4", 2, seed=1),
        BatchedMujocoVecEnv("Hopper-v4", num_envs=2, seed=1),
    ):
        model = PPO(
            "MlpPolicy", VecNormalize(env), n_steps=64, n_epochs=2, seed=5, device="cpu"
        ).learn(256)
        assert len(model.ep_info_buffer) > 3
        finals.append(
            (
                [p.detach() for p in model.policy.parameters()],
                [e["r"] for e in model.ep_info_buffer],
            )
        )
    for mine, theirs in zip(finals[0][0], finals[1][0], strict=True):
        assert torch.equal(mine, theirs)
    assert finals[0][1] == finals[1][1]


def test_sb3s_wrappers_go_around_it(tmp_path):
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # VecMonitor warns where a Monitor is in its way
        env = VecMonitor(
            BatchedMujocoVecEnv("Hopper-v5", 2, seed=0, max_episode_steps=10),
            str(tmp_path / "monitor.csv"),
        )
        env = VecFrameStack(VecCheckNan(VecNormalize(env, clip_obs=1.0)), n_stack=2)
        assert env.reset().shape == (2, 22)
        for _ in range(21):
            observations, rewards, dones, infos = env.step(np.zeros((2, 3), np.float32))
            for done, info in zip(dones, infos, strict=True):
                assert ("terminal_observation" in info) == done
                if done:
                    assert info["terminal_observation"].shape == (22,)
                    assert np.abs(info["terminal_observation"]).max() <= 1.0
            assert np.abs(observations).max() <= 1.0
        assert rewards.dtype == np.float32
    assert is_vecenv_wrapped(env, VecNormalize)
    assert env.env_is_wrapped(Monitor) == [False, False]
    env.close()
    header, *rows = (tmp_path / "monitor.csv").read_text().splitlines()
    assert json.loads(header[1:])["env_id"] == "Hopper-v5"
    assert len(rows) == 1 + 4


def test_policies_are_evaluated_and_trained_off_policy_on_it():
    env = BatchedMujocoVecEnv("InvertedPendulum-v4", num_envs=2, seed=0)
    model = SAC("MlpPolicy", env, learning_starts=20, buffer_size=100, seed=0, device="cpu")
    model.learn(40)
    mean_return, _ = evaluate_policy(model, VecMonitor(env), n_eval_episodes=3)
    assert mean_return >= 1


def test_attributes_of_sub_environments():
    env = BatchedMujocoVecEnv("Hopper-v4", num_envs=3)
    assert env.get_attr("spec")[0].id == "Hopper-v4"
    assert env.get_attr("action_space", indices=[0, 2]) == [env.action_space] * 2
    assert env.get_attr("render_mode", indices=1) == [None]
    env.set_attr("label", "left", indices=[0, 1])
    assert env.has_attr("label") is False  # the third has none
    env.set_attr("label", "right", indices=2)
    assert env.get_attr("label") == ["left", "left", "right"]
    with pytest.raises(AttributeError, match=r"no 'sim' of their own; use make_vec_env"):
        env.get_attr("sim")
    with pytest.raises(AttributeError, match=r"'spec' cannot be set.*constructor"):
        env.set_attr("spec", None)
    with pytest.raises(AttributeError, match=r"no method 'set_state', only 'render'; use make_vec"):
        env.env_method("set_state", 0, 0)


@pytest.mark.parametrize(
    ("task", "message"),
    [
        ("CartPole-v1", r"Ant-v4.*not 'CartPole-v1'; use make_vec_env\('CartPole-v1', n_envs=4\)"),
        ("Antv4", r"perhaps you meant 'Ant-v4'"),
        ("Pusher-v4", r"use make_vec_env"),
    ],
)
def test_an_unknown_task_says_what_to_use_instead(task, message):
    with pytest.raises(ValueError, match=message):
        BatchedMujocoVecEnv(task, num_envs=4)


def test_an_unknown_argument_names_the_nearest():
    with pytest.raises(ValueError, match=r"(?i)perhaps you meant 'forward_reward_weight'"):
        BatchedMujocoVecEnv("Hopper-v4", forward_reward_wait=1.0)
