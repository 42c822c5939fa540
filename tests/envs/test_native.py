"""The native environment beyond Gymnasium's: independence, saving, sick sub-environments."""

import io

import gymnasium
import numpy as np
import pytest
import torch
from trajectories import assert_same, play, random_actions, rows

from upgd_ppo.envs import BatchedMujocoEnv
from upgd_ppo.envs.tasks import TASKS


@pytest.mark.parametrize("task", ["HalfCheetah-v4", "Hopper-v5", "Ant-v5", "Reacher-v4"])
def test_a_sub_environment_of_eight_equals_the_same_one_alone(task: str) -> None:
    env = BatchedMujocoEnv(task, 8, threads=2, max_episode_steps=20)
    actions = random_actions(env, 60)
    together = play(env, actions, seed=list(range(40, 48)))
    for k in (0, 3, 7):
        alone = BatchedMujocoEnv(task, 1, max_episode_steps=20)
        part = slice(k, k + 1)
        assert_same(
            rows(play(alone, actions[:, part], seed=[40 + k]), slice(None)), rows(together, part)
        )


def through_a_file(state: dict) -> dict:
    """Saved by torch and read back with `weights_only`, arrays as tensors."""
    tensors = {
        key: torch.from_numpy(value) if isinstance(value, np.ndarray) else value
        for key, value in state.items()
    }
    buffer = io.BytesIO()
    torch.save(tensors, buffer)
    buffer.seek(0)
    loaded = torch.load(buffer, weights_only=True)
    return {
        key: value.numpy() if isinstance(value, torch.Tensor) else value
        for key, value in loaded.items()
    }


@pytest.mark.parametrize("task", TASKS)
def test_going_on_from_a_saved_state_equals_never_having_stopped(task: str) -> None:
    env = BatchedMujocoEnv(task, 3, max_episode_steps=30)
    actions = random_actions(env, 60)
    play(env, actions[:20])
    state = through_a_file(env.state_dict())
    last = env.observations
    expected = [env.step(action) for action in actions[20:]]

    resumed = BatchedMujocoEnv(task, 3, threads=2, max_episode_steps=30)
    resumed.load_state_dict(state)
    assert_same(last, resumed.observations)
    assert_same(expected, [resumed.step(action) for action in actions[20:]], task)


@pytest.mark.parametrize("task", ["Ant-v5", "Hopper-v4"])
def test_a_saved_state_can_be_cut_up_by_sub_environment(task: str) -> None:
    env = BatchedMujocoEnv(task, 4, max_episode_steps=30)
    actions = random_actions(env, 40)
    play(env, actions[:20])
    chosen = [3, 1]
    state = {
        key: value
        if isinstance(value, str)
        else value[chosen]
        if isinstance(value, np.ndarray)
        else [value[i] for i in chosen]
        for key, value in env.state_dict().items()
    }
    part = BatchedMujocoEnv(task, 2, max_episode_steps=30)
    part.load_state_dict(state)
    expected = [env.step(action) for action in actions[20:]]
    continued = [part.step(action[chosen]) for action in actions[20:]]
    assert_same(rows(expected, chosen), rows(continued, slice(None)))


def test_a_state_of_something_else_is_refused() -> None:
    env = BatchedMujocoEnv("Hopper-v4", 2)
    with pytest.raises(ValueError, match="one of Hopper-v5, not of Hopper-v4"):
        env.load_state_dict(BatchedMujocoEnv("Hopper-v5", 2).state_dict())
    with pytest.raises(ValueError, match="another number of sub-environments"):
        env.load_state_dict(BatchedMujocoEnv("Hopper-v4", 3).state_dict())


@pytest.mark.parametrize("task", ["Hopper-v4", "Ant-v5"])
def test_a_simulation_that_raises_is_reported_and_harms_nobody(task: str) -> None:
    healthy, env = (BatchedMujocoEnv(task, 4, max_episode_steps=15) for _ in range(2))
    actions = random_actions(env, 40)
    expected = play(healthy, actions)
    first, _ = env.reset(seed=5)
    env.simulation.batch.expand("opt.integrator")[2] = 99  # there is no such integrator
    others = [0, 1, 3]
    for action, one in zip(actions, expected[1:], strict=True):
        observations, rewards, terminations, truncations, infos = env.step(action)
        assert_same(
            [array[others] for array in one[:4]],
            [array[others] for array in (observations, rewards, terminations, truncations)],
        )
        assert infos["_simulation_error"].tolist() == [False, False, True, False]
        assert "integrator" in infos["simulation_error"][2]
        assert np.isnan(rewards[2])
        assert (terminations[2], truncations[2]) == (False, False)
        assert np.array_equal(observations[2], first[2])


def test_what_is_not_finite_is_reported_and_harms_nobody() -> None:
    healthy, env = (BatchedMujocoEnv("HalfCheetah-v4", 3) for _ in range(2))
    actions = random_actions(env, 10)
    expected = play(healthy, actions)
    sick = actions.copy()
    sick[4:, 1] = np.nan
    returned = play(env, sick)
    assert_same(rows(expected, slice(0, 3, 2)), rows(returned, slice(0, 3, 2)))
    assert not any("simulation_error" in step[-1] for step in returned[:5])
    for step in returned[5:]:
        assert step[-1]["_simulation_error"].tolist() == [False, True, False]
        assert "not finite" in step[-1]["simulation_error"][1]


def test_inactive_sub_environments_stand_still_and_the_others_go_on() -> None:
    whole, env = (BatchedMujocoEnv("Walker2d-v4", 4, max_episode_steps=12) for _ in range(2))
    actions = random_actions(env, 40)
    expected = play(whole, actions)
    play(env, actions[:10])
    before = env.observations
    env.unwrapped.set_active(np.array([True, False, True, True]))
    others = [0, 2, 3]
    for action, one in zip(actions[10:], expected[11:], strict=True):
        returned = env.step(action)
        assert_same([array[others] for array in one[:4]], [array[others] for array in returned[:4]])
        assert np.array_equal(returned[0][1], before[1])
        assert (returned[1][1], returned[2][1], returned[3][1]) == (0.0, False, False)


@pytest.mark.parametrize("task", TASKS)
def test_without_the_tasks_infos_all_else_is_the_same(task: str) -> None:
    env = BatchedMujocoEnv(task, 3, max_episode_steps=12)
    spare = BatchedMujocoEnv(task, 3, max_episode_steps=12, task_infos=False)
    actions = random_actions(env, 30)
    assert spare.reset(seed=1)[1] == {}
    env.reset(seed=1)
    for action in actions:
        whole, bare = env.step(action), spare.step(action)
        assert_same(whole[:4], bare[:4])
        assert bare[4].keys() <= {
            name for key in ("episode", "final_obs", "final_info") for name in (key, f"_{key}")
        }
        for name in bare[4].keys() & {"episode", "_episode", "_final_obs"}:
            assert_same(whole[4][name], bare[4][name])


def test_rendered_frames_show_each_sub_environments_state(monkeypatch) -> None:
    env = BatchedMujocoEnv("Hopper-v5", 2, render_mode="rgb_array")
    play(env, random_actions(env, 5))
    shown = []
    template = env._template
    monkeypatch.setattr(template, "render", lambda: shown.append(template.data.qpos.copy()))
    env.render()
    assert np.array_equal(np.stack(shown), env.simulation.qpos)


def test_misuse_is_refused_in_a_sentence() -> None:
    env = BatchedMujocoEnv("Hopper-v4", 2)
    with pytest.raises(gymnasium.error.ResetNeeded, match="reset"):
        env.step(np.zeros((2, 3)))
    with pytest.raises(ValueError, match="2 seeds are needed"):
        env.reset(seed=[1])
    env.reset()
    with pytest.raises(ValueError, match=r"shape \(2, 3\), not \(2, 4\)"):
        env.step(np.zeros((2, 4)))
    with pytest.raises(ValueError, match="2 booleans"):
        env.set_active([1, 0])
    with pytest.raises(ValueError, match="2 booleans"):
        env.reset(options={"reset_mask": np.array([False, False])})
    for name in ("num_envs", "threads", "max_episode_steps"):
        with pytest.raises(ValueError, match=name):
            BatchedMujocoEnv("Hopper-v4", **{name: 0})
    with pytest.raises(ValueError, match="none of Gymnasium's MuJoCo tasks"):
        BatchedMujocoEnv("Pendulum-v1")
    with pytest.raises(ImportError, match="only supported on `mujoco<3`"):
        BatchedMujocoEnv("Pusher-v4")
