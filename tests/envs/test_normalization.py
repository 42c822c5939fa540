"""Normalisation per member is Gymnasium's around one environment, bit for bit."""

from collections.abc import Callable
from functools import partial

import gymnasium
import numpy as np
import pytest
from gymnasium.vector import AutoresetMode, SyncVectorEnv, VectorEnv
from gymnasium.wrappers import (
    NormalizeObservation as GymnasiumNormalizeObservation,
)
from gymnasium.wrappers import (
    NormalizeReward as GymnasiumNormalizeReward,
)
from gymnasium.wrappers import TransformObservation, TransformReward
from gymnasium.wrappers.utils import RunningMeanStd
from trajectories import assert_same, make_quietly, play, random_actions, rows

from upgd_ppo.envs import NormalizeObservation, NormalizeReward, make

TASKS = ["HalfCheetah-v4", "Hopper-v4", "Ant-v5", "InvertedPendulum-v5"]


def normalized(env: VectorEnv, num_members: int, gamma: float = 0.99) -> VectorEnv:
    return NormalizeReward(NormalizeObservation(env, num_members), num_members, gamma)


def gymnasiums(task: str, limit: int, gamma: float) -> gymnasium.Env:
    env = make_quietly(task, max_episode_steps=limit)
    env = GymnasiumNormalizeObservation(env)
    clip: Callable = partial(np.clip, a_min=-10, a_max=10)
    env = TransformObservation(env, clip, env.observation_space)
    return TransformReward(GymnasiumNormalizeReward(env, gamma=gamma), clip)


@pytest.mark.parametrize("task", TASKS)
def test_one_environment_per_member_is_gymnasiums_wrappers_around_it(task: str) -> None:
    build = partial(gymnasiums, task, 15, 0.97)
    reference_env = SyncVectorEnv([build] * 3, autoreset_mode=AutoresetMode.SAME_STEP)
    env = normalized(make(task, 3, max_episode_steps=15), 3, gamma=0.97)
    actions = random_actions(reference_env, 300)
    endings = 0
    for ours, theirs in zip(play(env, actions), play(reference_env, actions), strict=True):
        assert_same(theirs[:-1], ours[:-1], task)
        assert_same(theirs[-1].get("final_obs"), ours[-1].get("final_obs"), task)
        endings += "final_obs" in theirs[-1]
    assert endings > 10


def test_explicit_resets_count_as_gymnasiums() -> None:
    build = partial(gymnasiums, "Hopper-v5", 15, 0.99)
    reference_env = SyncVectorEnv([build], autoreset_mode=AutoresetMode.SAME_STEP)
    env = normalized(make("Hopper-v5", 1, max_episode_steps=15), 1)
    actions = random_actions(reference_env, 25)
    for seed in (1, 2):
        assert_same(
            rows(play(reference_env, actions, seed), slice(None)),
            rows(play(env, actions, seed), slice(None)),
        )


def test_frozen_statistics_stay() -> None:
    build = partial(gymnasiums, "Hopper-v5", 15, 0.99)
    reference_env, env = build(), normalized(make("Hopper-v5", 1, max_episode_steps=15), 1)
    actions = random_actions(env, 30)
    reference_env.reset(seed=5), env.reset(seed=5)
    for action in actions[:10]:
        reference_env.step(action[0]), env.step(action)
    env.update_running_mean = env.env.update_running_mean = False
    reference_env.set_wrapper_attr("update_running_mean", False)  # the rewards'
    reference_env.env.env.env.update_running_mean = False  # the observations'
    before = env.env.state_dict(), env.return_rms.state_dict()
    for action in actions[10:14]:
        observation, reward, *_ = reference_env.step(action[0])
        ours = env.step(action)
        assert_same((observation, reward), (ours[0][0], ours[1][0]))
    env.reset()
    assert_same(before, (env.env.state_dict(), env.return_rms.state_dict()))


def test_a_member_with_several_environments_shares_their_statistics() -> None:
    raw = make("HalfCheetah-v4", 2, envs_per_member=3)
    env = normalized(make("HalfCheetah-v4", 2, envs_per_member=3), 2, gamma=0.9)
    actions = random_actions(raw, 50)
    for member in (0, 1):
        part = slice(3 * member, 3 * member + 3)
        observed, returns, discounted = RunningMeanStd(shape=(17,)), RunningMeanStd(), np.zeros(3)
        pairs = list(
            zip(rows(play(raw, actions), part), rows(play(env, actions), part), strict=True)
        )
        env = normalized(make("HalfCheetah-v4", 2, envs_per_member=3), 2, gamma=0.9)
        for plain, ours in pairs:
            observed.update(plain[0])
            expected = (plain[0] - observed.mean) / np.sqrt(observed.var + 1e-8)
            np.testing.assert_allclose(ours[0], np.clip(expected, -10, 10), rtol=1e-6, atol=1e-6)
            if len(plain) > 1:
                discounted = discounted * 0.9 + plain[1]
                returns.update(discounted)
                expected = np.clip(plain[1] / np.sqrt(returns.var + 1e-8), -10, 10)
                np.testing.assert_allclose(ours[1], expected, rtol=1e-12)


@pytest.mark.parametrize("envs_per_member", [1, 3])
def test_last_and_first_observations_of_episodes_are_all_counted_once(envs_per_member) -> None:
    env = NormalizeObservation(make("Hopper-v4", 2, envs_per_member, max_episode_steps=9), 2)
    raw = make("Hopper-v4", 2, envs_per_member, max_episode_steps=9)
    actions = random_actions(env, 60)
    play(env, actions)
    seen: list[list[np.ndarray]] = [[], []]
    for step in play(raw, actions):
        for i in range(raw.num_envs):
            seen[i // envs_per_member].append(step[0][i])
            if "final_obs" in step[-1] and step[-1]["final_obs"][i] is not None:
                seen[i // envs_per_member].append(step[-1]["final_obs"][i])
    for member, samples in enumerate(seen):
        assert env.obs_rms.count[member] == pytest.approx(len(samples), abs=1e-3)
        np.testing.assert_allclose(env.obs_rms.mean[member], np.mean(samples, axis=0), atol=1e-5)
        np.testing.assert_allclose(env.obs_rms.var[member], np.var(samples, axis=0), atol=1e-3)


@pytest.mark.parametrize("envs_per_member", [1, 2, 9])
def test_a_member_of_eight_equals_the_same_member_alone(envs_per_member: int) -> None:
    def build(members: int) -> VectorEnv:
        env = make("Hopper-v5", members, envs_per_member, max_episode_steps=12)
        return normalized(env, members)

    together, seeds = build(8), list(range(8 * envs_per_member))
    actions = random_actions(together, 50)
    everyone = play(together, actions, seeds)
    for member in (0, 5):
        part = slice(member * envs_per_member, (member + 1) * envs_per_member)
        alone = play(build(1), actions[:, part], seeds[part])
        assert_same(rows(alone, slice(None)), rows(everyone, part))


@pytest.mark.parametrize("envs_per_member", [1, 2])
def test_going_on_from_saved_states_equals_never_having_stopped(envs_per_member: int) -> None:
    def build() -> VectorEnv:
        return normalized(make("Ant-v4", 2, envs_per_member, max_episode_steps=20), 2)

    env, resumed = build(), build()
    actions = random_actions(env, 60)
    play(env, actions[:30])
    resumed.unwrapped.load_state_dict(env.unwrapped.state_dict())
    resumed.env.load_state_dict(env.env.state_dict())
    resumed.load_state_dict(env.state_dict())
    assert all(len(array) == 2 for array in (env.state_dict() | env.env.state_dict()).values())
    assert_same([env.step(a) for a in actions[30:]], [resumed.step(a) for a in actions[30:]])


def test_misuse_is_refused_in_a_sentence() -> None:
    env = make("Hopper-v4", 3)
    with pytest.raises(ValueError, match="3 sub-environments cannot be shared evenly by 2"):
        NormalizeObservation(env, 2)
    with pytest.raises(ValueError, match="epsilon must be positive"):
        NormalizeReward(env, 3, epsilon=0)
    with pytest.raises(ValueError, match="clip must be positive"):
        NormalizeObservation(env, 3, clip=-1)
    with pytest.raises(ValueError, match=r"gamma must be in \[0, 1\]"):
        NormalizeReward(env, 3, gamma=1.1)
    with pytest.raises(ValueError, match="SAME_STEP"):
        NormalizeObservation(gymnasium.make_vec("Pendulum-v1", 2, "sync"), 2)
    wrapped = NormalizeObservation(env, 3)
    with pytest.raises(ValueError, match="all sub-environments or none"):
        wrapped.reset(options={"reset_mask": np.array([True, False, True])})
    with pytest.raises(ValueError, match="state's mean has shape"):
        wrapped.load_state_dict(NormalizeObservation(make("Ant-v4", 3), 3).state_dict())
