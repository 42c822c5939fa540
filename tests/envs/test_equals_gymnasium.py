"""The native environments are Gymnasium's, bit for bit."""

from functools import cache
from pathlib import Path

import gymnasium.envs.mujoco
import numpy as np
import pytest
from trajectories import assert_same, gymnasium_envs, play, random_actions

from upgd_ppo.envs import BatchedMujocoEnv
from upgd_ppo.envs.tasks import TASKS

NUM_ENVS, STEPS = 3, 700

# Short time limits, so that many episodes end either way.
LIMITS = {"Ant": 50, "Hopper": 20, "Walker2d": 20, "Humanoid": 22}
LIMITS |= {"InvertedPendulum": 6, "InvertedDoublePendulum": 6}
NEVER_TERMINATE = {"HalfCheetah", "HumanoidStandup", "Pusher", "Reacher", "Swimmer"}


@cache
def reference(task: str) -> tuple[np.ndarray, list[tuple]]:
    limit = LIMITS.get(task[:-3], 40)
    env = gymnasium_envs(task, NUM_ENVS, limit)
    actions = random_actions(env, STEPS)
    return actions, play(env, actions)


@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize("task", TASKS)
def test_two_thousand_steps_are_gymnasiums_bit_for_bit(task: str, threads: int) -> None:
    actions, expected = reference(task)
    limit = LIMITS.get(task[:-3], 40)
    env = BatchedMujocoEnv(task, NUM_ENVS, threads, max_episode_steps=limit)
    # Observations, rewards, both flags and infos: last observations, episodes, rewards' parts.
    assert_same(expected, play(env, actions), task)


@pytest.mark.parametrize("task", TASKS)
def test_the_compared_steps_see_both_kinds_of_ending(task: str) -> None:
    _, returned = reference(task)
    terminated = sum(int(step[2].sum()) for step in returned[1:])
    truncated = sum(int(step[3].sum()) for step in returned[1:])
    assert truncated > 0
    assert (terminated == 0) == (task[:-3] in NEVER_TERMINATE)


@pytest.mark.parametrize(("task", "steps"), [("HalfCheetah-v4", 1002), ("Reacher-v5", 102)])
def test_the_registered_time_limit_holds_by_default(task: str, steps: int) -> None:
    reference_env = gymnasium_envs(task, 1)
    actions = random_actions(reference_env, steps)
    expected = play(reference_env, actions)
    assert_same(expected, play(BatchedMujocoEnv(task, 1), actions))
    assert any(step[3].any() for step in expected[1:])


def test_no_time_limit_on_request() -> None:
    env = BatchedMujocoEnv("Reacher-v4", 2, max_episode_steps=-1)
    returned = play(env, random_actions(env, 120))
    assert not any(step[2].any() or step[3].any() for step in returned[1:])


ASSETS = Path(gymnasium.envs.mujoco.__file__).parent / "assets"
ARGUMENTS = [
    ("Ant-v4", {"use_contact_forces": True, "contact_force_range": (-0.5, 0.8)}),
    ("Ant-v4", {"terminate_when_unhealthy": False, "healthy_z_range": (0.5, 0.7)}),
    ("Ant-v4", {"exclude_current_positions_from_observation": False, "healthy_reward": 2}),
    ("Ant-v5", {"main_body": "torso", "frame_skip": 3, "forward_reward_weight": 0.3}),
    ("Ant-v5", {"include_cfrc_ext_in_observation": False, "contact_cost_weight": 0.1}),
    ("Ant-v5", {"terminate_when_unhealthy": False, "healthy_z_range": (0.5, 0.7)}),
    ("HalfCheetah-v4", {"ctrl_cost_weight": 0.7, "reset_noise_scale": 0.3}),
    ("HalfCheetah-v5", {"exclude_current_positions_from_observation": False, "frame_skip": 2}),
    ("Hopper-v4", {"terminate_when_unhealthy": False, "healthy_reward": 3.0}),
    ("Hopper-v5", {"healthy_state_range": (-3.0, 3.0), "healthy_angle_range": (-0.1, 0.3)}),
    ("Walker2d-v4", {"exclude_current_positions_from_observation": False}),
    ("Walker2d-v5", {"xml_file": str(ASSETS / "walker2d.xml"), "healthy_z_range": (1.0, 1.3)}),
    ("Swimmer-v4", {"exclude_current_positions_from_observation": False}),
    ("Swimmer-v5", {"forward_reward_weight": 2.5, "ctrl_cost_weight": 0.3, "frame_skip": 2}),
    ("Humanoid-v4", {"terminate_when_unhealthy": False, "healthy_z_range": (1.3, 1.5)}),
    ("Humanoid-v5", {"contact_cost_weight": 0.3, "contact_cost_range": (0.1, 5.0)}),
    ("Humanoid-v5", {"include_cinert_in_observation": False, "include_cvel_in_observation": False}),
    ("HumanoidStandup-v5", {"impact_cost_weight": 0.2, "reset_noise_scale": 0.1}),
    ("HumanoidStandup-v5", {"include_qfrc_actuator_in_observation": False}),
    ("Reacher-v5", {"reward_dist_weight": 0.3, "reward_control_weight": 7}),
    ("Pusher-v5", {"reward_near_weight": 2.0, "reward_control_weight": 0.3}),
    ("InvertedPendulum-v5", {"reset_noise_scale": 0.1}),
    ("InvertedDoublePendulum-v5", {"healthy_reward": 3, "reset_noise_scale": 0.01}),
]


@pytest.mark.parametrize(("task", "kwargs"), ARGUMENTS)
def test_constructor_arguments_mean_what_they_mean_to_gymnasium(task: str, kwargs: dict) -> None:
    reference_env = gymnasium_envs(task, 2, 25, kwargs)
    env = BatchedMujocoEnv(task, 2, max_episode_steps=25, **kwargs)
    assert env.observation_space == reference_env.observation_space
    assert env.action_space == reference_env.action_space
    actions = random_actions(reference_env, 60)
    assert_same(play(reference_env, actions), play(env, actions), task)


@pytest.mark.parametrize("task", ["HalfCheetah-v4", "Ant-v4", "Humanoid-v5", "Pusher-v5"])
def test_actions_count_in_their_own_precision_and_unclipped(task: str) -> None:
    reference_env, env = gymnasium_envs(task, 2), BatchedMujocoEnv(task, 2)
    actions = random_actions(reference_env, 40, excess=3.0).astype(np.float64) * (1 + 1e-12)
    assert_same(play(reference_env, actions), play(env, actions), task)


def test_seeds_one_each_and_going_on_without_a_seed() -> None:
    reference_env, env = gymnasium_envs("Hopper-v5", 3), BatchedMujocoEnv("Hopper-v5", 3)
    for seed in ([7, 1, 300], None, 11):
        assert_same(reference_env.reset(seed=seed), env.reset(seed=seed))
    assert env.np_random_seed == reference_env.np_random_seed


def test_a_mask_resets_only_some() -> None:
    reference_env, env = gymnasium_envs("Walker2d-v5", 3, 30), BatchedMujocoEnv("Walker2d-v5", 3)
    mask = np.array([True, False, True])
    actions = random_actions(env, 5)
    play(reference_env, actions), play(env, actions)
    expected = reference_env.reset(options={"reset_mask": mask.copy()})
    assert_same(expected, env.reset(options={"reset_mask": mask}))
    assert_same(reference_env.step(actions[0]), env.step(actions[0]))


def test_what_a_step_returns_is_the_callers_to_keep() -> None:
    env = BatchedMujocoEnv("Humanoid-v5", 2, max_episode_steps=3)
    actions = random_actions(env, 8)
    again = play(env, actions)
    env.reset(seed=5)
    for action, kept in zip(actions, again[1:], strict=True):
        observations, rewards, *_, infos = env.step(action)
        assert_same(
            (observations, rewards, infos["x_position"]), (*kept[:2], kept[4]["x_position"])
        )
        observations[:] = rewards[:] = infos["x_position"][:] = 7.0
