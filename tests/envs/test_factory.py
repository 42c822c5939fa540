"""`envs.make`: whatever can be trained on is built, and the rest refused in a sentence."""

import importlib

import gymnasium
import numpy as np
import pytest
from gymnasium.vector import AutoresetMode
from trajectories import assert_same, gymnasium_envs, play, random_actions

from upgd_ppo.envs import BatchedMujocoEnv, make


class Drift(gymnasium.Env):
    """A user's own environment: a [2, 2] observation that moves by its [2] action."""

    def __init__(self, speed: float = 1.0) -> None:
        self.speed = speed
        self.observation_space = gymnasium.spaces.Box(-9, 9, (2, 2), np.float32)
        self.action_space = gymnasium.spaces.Box(-1, 1, (2,), np.float32)

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.position = self.np_random.normal(size=(2, 2)).astype(np.float32)
        return self.position.copy(), {}

    def step(self, action):
        self.position += np.float32(self.speed) * action
        return self.position.copy(), -float(np.abs(self.position).sum()), False, False, {}


class Pixels(Drift):
    def __init__(self) -> None:
        super().__init__()
        self.observation_space = gymnasium.spaces.Box(0, 255, (8, 8, 3), np.uint8)


class Named(Drift):
    def __init__(self) -> None:
        super().__init__()
        self.observation_space = gymnasium.spaces.Dict(where=self.observation_space)


class Steps(Drift):
    def __init__(self) -> None:
        super().__init__()
        self.action_space = gymnasium.spaces.Box(0, 3, (2,), np.int64)


for env_class in (Drift, Pixels, Named, Steps):
    name = f"{env_class.__name__}-v0"
    gymnasium.register(name, entry_point=env_class, max_episode_steps=5)


def test_mujoco_tasks_are_native_and_member_major() -> None:
    env = make("Hopper-v4", num_members=3, envs_per_member=2, threads=2)
    assert isinstance(env, BatchedMujocoEnv)
    assert env.num_envs == 6
    assert env.unwrapped.exact_state is True


@pytest.mark.parametrize("env_id", ["Pendulum-v1", "LunarLanderContinuous-v3"])
def test_other_environments_are_gymnasiums(env_id: str) -> None:
    env, reference_env = make(env_id, 2, max_episode_steps=15), gymnasium_envs(env_id, 2, 15)
    assert env.metadata["autoreset_mode"] is AutoresetMode.SAME_STEP
    assert env.unwrapped.exact_state is False
    actions = random_actions(reference_env, 40)
    for ours, theirs in zip(play(env, actions), play(reference_env, actions), strict=True):
        assert ours[0].dtype == np.float64
        assert np.array_equal(ours[0], theirs[0])
        assert_same(ours[1:-1], theirs[1:-1])
        assert_same(ours[-1].get("episode"), theirs[-1].get("episode"))


def test_a_users_own_environment_is_flattened_and_takes_its_arguments() -> None:
    slow, fast = make("Drift-v0", 2), make("Drift-v0", 2, env_kwargs={"speed": 2.0})
    actions = np.ones((2, 2), np.float32)
    first, _ = slow.reset(seed=1)
    assert first.shape == slow.observation_space.shape == (2, 4)
    assert_same(first, fast.reset(seed=1)[0])
    assert np.allclose(slow.step(actions)[0] - first, 1.0)
    assert np.allclose(fast.step(actions)[0] - first, 2.0)


def test_the_environments_of_an_imported_module_are_found(tmp_path, monkeypatch) -> None:
    (tmp_path / "drifting.py").write_text(
        "import gymnasium\ngymnasium.register('Imported-v0', entry_point='test_factory:Drift')\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(ValueError, match="'import drifting' in Python"):
        make("drifting:Imported-v0")
    importlib.import_module("drifting")
    assert isinstance(make("drifting:Imported-v0").unwrapped.envs[0].unwrapped, Drift)


@pytest.mark.parametrize(
    ("env_id", "sentence"),
    [
        ("HalfCheeta-v4", "no environment 'HalfCheeta-v4'.*did you mean HalfCheetah-v4"),
        ("Ant", "no environment 'Ant'.*did you mean Ant-v"),
        ("qqqqqq", r"no environment 'qqqqqq' in Gymnasium's registry\.$"),
        ("no_such_module:Env-v0", "needs the module 'no_such_module'"),
        ("CartPole-v1", "CartPole-v1 has Discrete actions; only continuous"),
        ("Steps-v0", "int64 actions"),
        ("Pixels-v0", r"images of shape \(8, 8, 3\)"),
        ("Named-v0", "Dict observations; only Box"),
        ("Pusher-v4", "only supported on `mujoco<3`.*issues/950"),
        ("Ant-v2", "gymnasium-robotics"),
    ],
)
def test_what_cannot_be_trained_on_is_refused(env_id: str, sentence: str) -> None:
    with pytest.raises(ValueError, match=sentence):
        make(env_id)


@pytest.mark.parametrize(
    ("env_id", "kwargs", "sentence"),
    [
        ("Ant-v4", {"ctrl_cost_wieght": 1.0}, "it takes xml_file,.*meant 'ctrl_cost_weight'"),
        ("HalfCheetah-v4", {"frame_skip": 3}, "no argument 'frame_skip'; it takes forward_"),
        ("Pendulum-v1", {"gravity": 3}, "no argument 'gravity'; it takes render_mode, g"),
        ("Drift-v0", {"sped": 3}, "meant 'speed'"),
        ("Ant-v5", {"xml_file": "/nowhere.xml"}, "cannot be built: File /nowhere.xml does not"),
    ],
)
def test_arguments_that_do_not_exist_are_refused(env_id: str, kwargs: dict, sentence: str) -> None:
    with pytest.raises(ValueError, match=sentence):
        make(env_id, env_kwargs=kwargs)


def test_a_population_of_nobody_is_refused() -> None:
    with pytest.raises(ValueError, match="at least 1, not 0 and 1"):
        make("Ant-v4", num_members=0)
