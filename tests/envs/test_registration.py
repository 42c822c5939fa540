"""The native environments in Gymnasium's registry, and Gymnasium's own checks on them."""

import warnings
from typing import Any

import gymnasium
import numpy as np
import pytest
from gymnasium.utils.env_checker import check_env
from gymnasium.utils.env_match import check_environments_match
from gymnasium.vector import AutoresetMode
from gymnasium.wrappers import TransformReward
from trajectories import assert_same, make_quietly, play, random_actions

from upgd_ppo.envs import BatchedMujocoEnv
from upgd_ppo.envs.tasks import TASKS


class OnlyOne(gymnasium.Env):
    """The one sub-environment of a native environment, for Gymnasium's checks of single ones."""

    def __init__(self, task: str) -> None:
        self.env = BatchedMujocoEnv(task, 1)
        self.observation_space = self.env.single_observation_space
        self.action_space = self.env.single_action_space

    def reset(self, *, seed: int | None = None, options: dict | None = None) -> tuple[Any, dict]:
        super().reset(seed=seed)
        observations, infos = self.env.reset(seed=seed, options=options)
        self._np_random = self.env.np_random[0]
        return observations[0], self.of_one(infos)

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict]:
        observations, rewards, terminations, truncations, infos = self.env.step(action[None])
        if "final_obs" in infos:
            observations, infos = infos["final_obs"], infos["final_info"]
        last = observations[0]
        return last, rewards[0], bool(terminations[0]), bool(truncations[0]), self.of_one(infos)

    @staticmethod
    def of_one(infos: dict) -> dict:
        return {key: value[0] for key, value in infos.items() if not key.startswith("_")}


@pytest.mark.parametrize("task", TASKS)
def test_gymnasiums_checker_finds_nothing(task: str) -> None:
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        check_env(OnlyOne(task), skip_render_check=True)
    # Gymnasium's checker says of its own environments, too, that infinite bounds are unusual.
    ours = [str(warning.message) for warning in caught]
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        check_env(make_quietly(task).unwrapped, skip_render_check=True)
    assert set(ours) <= {str(warning.message) for warning in caught}


@pytest.mark.parametrize("task", TASKS)
def test_gymnasium_finds_the_environments_to_match(task: str) -> None:
    # Some of Gymnasium's rewards and infos are Python's ints and floats; ours are NumPy's.
    gymnasiums = TransformReward(make_quietly(task), np.float64)
    check_environments_match(
        gymnasiums, OnlyOne(task), 30, skip_render=True, info_comparison="keys-equivalence"
    )


@pytest.mark.parametrize("task", TASKS)
def test_make_vec_builds_the_native_one(task: str) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        env = gymnasium.make_vec(task, num_envs=2, vectorization_mode="vector_entry_point")
    assert isinstance(env, BatchedMujocoEnv)
    assert env.metadata["autoreset_mode"] is AutoresetMode.SAME_STEP
    assert env.spec.id == task
    actions = random_actions(env, 3)
    returned = play(env, actions)
    assert_same(returned, play(BatchedMujocoEnv(task, 2), actions))
    for observations, *_ in returned:
        assert observations in env.observation_space


def test_make_vec_passes_arguments_on() -> None:
    env = gymnasium.make_vec("Ant-v5", 3, "vector_entry_point", threads=2, frame_skip=2)
    assert env.num_envs == 3
    assert env.simulation.batch.nthread == 2
    observations = env.reset(seed=0)[0]
    assert_same(observations, BatchedMujocoEnv("Ant-v5", 3, frame_skip=2).reset(seed=0)[0])


def test_make_and_the_other_vectorisations_stay_as_they_were() -> None:
    assert isinstance(gymnasium.make("Ant-v5").unwrapped, gymnasium.envs.mujoco.ant_v5.AntEnv)
    sync = gymnasium.make_vec("Ant-v5", 2, vectorization_mode="sync")
    assert isinstance(sync, gymnasium.vector.SyncVectorEnv)
    assert "Ant-v5" in gymnasium.spec("Ant-v5").to_json()


def test_an_episode_reports_its_return_and_length() -> None:
    env = BatchedMujocoEnv("HalfCheetah-v5", 2, max_episode_steps=4)
    returned = play(env, random_actions(env, 9))[1:]
    for start, end in ((0, 3), (4, 7)):
        infos = returned[end][-1]
        episode = infos["episode"]
        assert episode["l"].tolist() == [4, 4]
        total = np.zeros(2)
        for step in returned[start : end + 1]:
            total += step[1]
        assert np.array_equal(episode["r"], total)
        assert infos["_episode"].all()
    assert all("episode" not in returned[i][-1] for i in (0, 1, 2, 4, 5, 6, 8))
