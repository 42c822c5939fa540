"""Observations normalised once and for all, and with the time in them."""

import gymnasium
import numpy as np
import pytest

from upgd_ppo.agents.learners import observation
from upgd_ppo.agents.population.population import make_learner
from upgd_ppo.agents.settings.config import TrainConfig
from upgd_ppo.envs import make
from upgd_ppo.envs.normalization import (
    AppendTime,
    FixedNormalizeObservation,
    random_action_statistics,
)


def config(**changes):
    small = {"env": "Hopper-v4", "rollout_steps": 64, "minibatches": 4, "hidden_sizes": (8,)}
    return TrainConfig().with_flat({**small, "threads": 1, **changes})


@pytest.mark.parametrize("task", ["Hopper-v4", "Pendulum-v1"])
def test_the_statistics_are_those_of_gymnasiums_own_random_episodes(task):
    steps, seeds = 300, [3, 4]
    generators = [np.random.default_rng(seed) for seed in seeds]
    found = random_action_statistics(make(task, 2), [13, 14], generators, steps)
    for member, seed in enumerate(seeds):
        env = gymnasium.make(task)
        space, generator = env.action_space, np.random.default_rng(seed)
        actions = generator.uniform(space.low, space.high, (steps, 1, *space.shape))
        seen = [env.reset(seed=13 + member)[0]]
        for action in actions[:-1, 0].astype(np.float32):
            one, _, terminated, truncated, _ = env.step(action)
            seen.append(env.reset()[0] if terminated or truncated else one)
        # Pendulum's own observations are float32.
        np.testing.assert_allclose(found["mean"][member, 0], np.mean(seen, 0, float), rtol=1e-6)
        expected = np.std(np.array(seen, float), 0, ddof=1)
        np.testing.assert_allclose(found["std"][member, 0], expected, rtol=1e-6)


def test_what_never_moves_does_not_divide_by_zero():
    env = make("Ant-v4", 1, env_kwargs={"use_contact_forces": False})
    space = gymnasium.spaces.Box(-1, 1, env.single_observation_space.shape)

    class Still(gymnasium.vector.VectorWrapper):
        def reset(self, **kwargs):
            return np.zeros((1, *space.shape)), self.env.reset(**kwargs)[1]

        def step(self, actions):
            return np.zeros((1, *space.shape)), *self.env.step(actions)[1:]

    found = random_action_statistics(Still(env), [1], [np.random.default_rng(1)], 5)
    np.testing.assert_array_equal(found["std"], 1e-6)


def test_a_fixed_normaliser_neither_changes_nor_clips():
    env = FixedNormalizeObservation(make("Hopper-v4", 2, max_episode_steps=4), 2)
    statistics = {"mean": np.full((2, 1, 11), 1.0), "std": np.full((2, 1, 11), 1e-3)}
    statistics["std"][1] = 2.0
    env.load_state_dict(statistics)
    plain = make("Hopper-v4", 2, max_episode_steps=4)
    ours, theirs = env.reset(seed=[5, 6])[0], plain.reset(seed=[5, 6])[0]
    for _ in range(6):
        expected = (theirs - statistics["mean"][:, 0]) / statistics["std"][:, 0]
        np.testing.assert_array_equal(ours, expected.astype(np.float32))
        assert np.abs(ours[0]).max() > 10
        ours, _, _, _, infos = env.step(np.zeros((2, 3)))
        theirs, _, _, ended, plain_infos = plain.step(np.zeros((2, 3)))
        if ended[1]:
            last = (plain_infos["final_obs"][1] - 1.0) / 2.0
            np.testing.assert_array_equal(infos["final_obs"][1], last.astype(np.float32))
    np.testing.assert_array_equal(env.state_dict()["mean"], statistics["mean"])
    with pytest.raises(ValueError, match="shape"):
        env.load_state_dict({"mean": np.zeros((3, 1, 11)), "std": np.zeros((3, 1, 11))})


def test_time_runs_from_minus_one_to_one_and_begins_anew_with_the_episode():
    env = AppendTime(make("HalfCheetah-v4", 2, max_episode_steps=4), 4)
    observations, _ = env.reset(seed=1)
    assert env.single_observation_space.contains(observations[0])
    times = [observations[:, -1]]
    finals = []
    for _ in range(5):
        observations, _, _, _, infos = env.step(np.zeros((2, 6)))
        times.append(observations[:, -1])
        finals += [infos["final_obs"][0][-1]] if "final_obs" in infos else []
    np.testing.assert_array_equal(np.array(times)[:, 0], [-1, -0.5, 0, 0.5, -1, -0.5])
    np.testing.assert_array_equal(np.array(times)[:, 1], np.array(times)[:, 0])
    assert finals == [1.0]
    restored = AppendTime(make("HalfCheetah-v4", 2, max_episode_steps=4), 4)
    restored.load_state_dict(env.state_dict())
    restored.env.reset(seed=1)
    np.testing.assert_array_equal(restored.step(np.zeros((2, 6)))[0][:, -1], [0, 0])


def test_time_needs_a_limit():
    gymnasium.register("Endless-v0", "gymnasium.envs.classic_control:PendulumEnv")
    with pytest.raises(ValueError, match="no time limit"):
        make_learner(config(env="Endless-v0", time_in_observation=True), [1])


def test_the_statistics_have_a_stream_of_their_own():
    settings = config(fixed_normalization_steps=40)
    statistics = observation.random_statistics(settings, [5, 6])
    assert not np.array_equal(statistics["mean"][0], statistics["mean"][1])
    alone = observation.random_statistics(settings, [6])
    np.testing.assert_array_equal(alone["std"][0], statistics["std"][1])
    with_it = make_learner(settings, [5]).collector
    without = make_learner(config(normalize_observations=False), [5]).collector
    mean, std = statistics["mean"][:1], statistics["std"][:1]
    np.testing.assert_allclose(
        with_it.rollout.next_observations * std + mean,
        without.rollout.next_observations,
        atol=1e-6,
    )


def test_normalising_in_two_ways_at_once_is_refused():
    with pytest.raises(ValueError, match="leave one of them out"):
        config(normalize_observations=False, fixed_normalization_steps=10).check()
