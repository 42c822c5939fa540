"""A sub-environment that fails, in whatever way, harms none of those that are stepped with it."""

import sys

import gymnasium
import numpy as np
import pytest

from upgd_ppo.envs import make


def raises():
    raise RuntimeError("boom")


FAILURES = {
    "raises": (lambda result: raises(), "step() raised RuntimeError: boom"),
    "exits": (lambda result: sys.exit(3), "step() raised SystemExit: 3"),
    "nan observation": (lambda r: (r[0] * np.nan, *r[1:]), "a non-finite observation"),
    "wrong observation": (lambda r: (r[0][:1], *r[1:]), "an observation of size 1, not 2"),
    "nan reward": (lambda r: (r[0], np.nan, *r[2:]), "a non-finite reward"),
    "array reward": (lambda r: (r[0], np.ones(2), *r[2:]), "step() raised ValueError"),
    "four values": (lambda r: r[:4], "step() raised ValueError"),
    "no infos": (lambda r: (*r[:4], None), "step() raised"),
    "no observation": (lambda r: (None, *r[1:]), "an observation of size 1, not 2"),
}


class Failing(gymnasium.Env):
    """A walk. What is reset with a seed of `sick_from` or more fails at its fourth step."""

    def __init__(self, kind="raises", sick_from=7):
        self.kind, self.sick_from = kind, sick_from
        self.observation_space = gymnasium.spaces.Box(-np.inf, np.inf, (2,))
        self.action_space = gymnasium.spaces.Box(-1, 1, (2,), np.float32)

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        if seed is not None:
            self.sick, self.steps = seed >= self.sick_from, 0
        if self.sick and (self.steps == 4 or self.kind == "at first"):
            raises()
        self.position = self.np_random.normal(size=2).astype(np.float32)
        return self.position.copy(), {}

    def step(self, action):
        if not np.isfinite(action).all():
            raise ValueError("this environment takes no NaN")
        self.steps += 1
        self.position += action
        ended = self.steps % 4 == 0 and self.kind == "at reset"
        result = self.position.copy(), float(self.position.sum()), ended, False, {}
        if self.sick and self.steps >= 4 and self.kind in FAILURES:
            return FAILURES[self.kind][0](result)
        return result


gymnasium.register("Failing-v0", entry_point=Failing)


def played(seeds, kind, steps=8):
    env = make("Failing-v0", len(seeds), env_kwargs={"kind": kind})
    observations, infos = env.reset(seed=seeds)
    yield observations, np.zeros(len(seeds)), None, None, infos
    for step in range(steps):
        yield env.step(np.full((len(seeds), 2), 0.1 * step, np.float32))


@pytest.mark.filterwarnings("ignore::UserWarning", "ignore::DeprecationWarning")
@pytest.mark.parametrize("kind", [*FAILURES, "at reset", "at first"])
def test_what_fails_is_reported_from_then_on_and_the_others_play_as_if_alone(kind):
    sick = list(played([1, 7, 2], kind))
    well = list(played([1, 2], kind))
    first = 0 if kind == "at first" else 4
    for step, (ours, theirs) in enumerate(zip(sick, well, strict=True)):
        np.testing.assert_array_equal(ours[0][[0, 2]], theirs[0])
        np.testing.assert_array_equal(ours[1][[0, 2]], theirs[1])
        assert np.isfinite(ours[0]).all()
        infos = ours[-1]
        if step < first:
            assert "simulation_error" not in infos
        else:
            assert infos["_simulation_error"].tolist() == [False, True, False]
            expected = FAILURES[kind][1] if kind in FAILURES else "reset() raised RuntimeError"
            assert expected in infos["simulation_error"][1]


def test_a_message_says_where_it_was_raised():
    infos = list(played([7], "raises"))[-1][-1]
    assert infos["simulation_error"][0].endswith(f"line {raises.__code__.co_firstlineno + 1})")
    assert "test_containment.py" in infos["simulation_error"][0]


def test_what_is_not_active_is_not_stepped():
    env = make("Failing-v0", 2)
    env.reset(seed=[7, 1])
    env.unwrapped.set_active(np.array([False, True]))
    before = env.unwrapped.envs[0].unwrapped.steps
    for _ in range(6):
        observations, rewards, *_, infos = env.step(np.ones((2, 2), np.float32))
    assert env.unwrapped.envs[0].unwrapped.steps == before
    assert rewards[0] == 0.0
    assert "simulation_error" not in infos
    env.unwrapped.set_active(np.array([True, True]))
    moved = env.step(np.ones((2, 2), np.float32))[0]
    assert (moved > observations).all()
