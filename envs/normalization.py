"""Observation and reward normalisation with one set of running statistics per member.

Around one environment per member this is, bit for bit, Gymnasium's `NormalizeObservation` and
`NormalizeReward` (each followed by a clip) around that environment, inside a vector environment
that resets within the step: the last observation of an episode is counted, then the first one of
the next. The running moments are Gymnasium's own (Chan et al.'s parallel variance).
"""

from typing import Any

import numpy as np
from gymnasium.spaces import Box
from gymnasium.vector import AutoresetMode, VectorEnv, VectorWrapper
from gymnasium.vector.utils import batch_space
from gymnasium.wrappers.utils import update_mean_var_count_from_moments
from numpy.typing import NDArray

FloatArray = NDArray[np.float64]

EVERYONE = slice(None)


class RunningMoments:
    """Mean, variance and count per member, in float64.

    Args:
        num_members: leading axis of every array.
        shape: what one sample looks like.
        initial_variance: 1, or slightly less where Gymnasium rounds it.
    """

    def __init__(
        self, num_members: int, shape: tuple[int, ...] = (), initial_variance: float = 1.0
    ) -> None:
        self.mean: FloatArray = np.zeros((num_members, *shape))
        self.var: FloatArray = np.full((num_members, *shape), initial_variance)
        self.count: FloatArray = np.full((num_members, *(1 for _ in shape)), 1e-4)

    def update(self, samples: FloatArray, members: slice | NDArray[np.intp]) -> None:
        """Count samples [len(members), n, ...], n of each of the given members."""
        n = samples.shape[1]
        if n == 1 and members is EVERYONE:
            self._count_one_each(samples[:, 0])
            return
        self.mean[members], self.var[members], self.count[members] = (
            update_mean_var_count_from_moments(
                self.mean[members],
                self.var[members],
                self.count[members],
                samples.mean(axis=1),
                samples.var(axis=1),
                n,
            )
        )

    def _count_one_each(self, samples: FloatArray) -> None:
        """The same, in place, for one sample of every member: most steps are this."""
        total = self.count + 1
        delta = samples - self.mean
        self.mean += delta / total
        np.square(delta, out=delta)
        delta *= self.count
        delta /= total
        self.var *= self.count
        self.var += delta
        self.var /= total
        self.count = total

    def state_dict(self) -> dict[str, FloatArray]:
        return {"mean": self.mean.copy(), "var": self.var.copy(), "count": self.count.copy()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        for name in ("mean", "var", "count"):
            own = getattr(self, name)
            if np.shape(state[name]) != own.shape:
                raise ValueError(
                    f"The state's {name} has shape {np.shape(state[name])}, not {own.shape}."
                )
            own[...] = state[name]


class MemberWrapper(VectorWrapper):
    """A vector environment whose sub-environments belong to members, N in a row to each.

    Attributes:
        update_running_mean: False freezes the statistics (evaluation).
    """

    def __init__(self, env: VectorEnv, num_members: int, epsilon: float, clip: float) -> None:
        super().__init__(env)
        if num_members < 1 or env.num_envs % num_members:
            raise ValueError(
                f"{env.num_envs} sub-environments cannot be shared evenly by {num_members} members."
            )
        if not epsilon > 0:
            raise ValueError(f"epsilon must be positive, not {epsilon}.")
        if not clip > 0:
            raise ValueError(f"clip must be positive, not {clip}.")
        if env.metadata.get("autoreset_mode") is not AutoresetMode.SAME_STEP:
            raise ValueError("The environment must reset within the step (SAME_STEP).")
        self.num_members = num_members
        self.envs_per_member = env.num_envs // num_members
        self.epsilon = epsilon
        self.clip = clip
        self.update_running_mean = True


class NormalizeObservation(MemberWrapper):
    """Observations with mean 0 and variance 1 under the member's statistics so far, clipped.

    Returns float32 observations, as Gymnasium does; final observations in `infos` are normalised
    too. With several environments per member, a step counts the observations it led to (last
    observations included) as one batch, then the first observations of new episodes as another.

    Args:
        env: [num_members * N] sub-environments with vector observations, member-major.
        num_members: how many sets of statistics.
        epsilon: added to the variance.
        clip: largest absolute value that is returned.

    Raises:
        ValueError: sub-environments do not divide among the members; a number out of range;
            another autoreset mode than SAME_STEP.
    """

    def __init__(
        self, env: VectorEnv, num_members: int, epsilon: float = 1e-8, clip: float = 10.0
    ) -> None:
        super().__init__(env, num_members, epsilon, clip)
        shape = env.single_observation_space.shape
        assert shape is not None
        self.single_observation_space = Box(-clip, clip, shape, np.float32)
        self.observation_space = batch_space(self.single_observation_space, env.num_envs)
        # Gymnasium starts from a float32 variance of 1, so its first var * count is
        # float32(1e-4); everything after is float64.
        self.obs_rms = RunningMoments(num_members, shape, float(np.float32(1e-4)) / 1e-4)

    def reset(self, **kwargs: Any) -> tuple[NDArray[np.float32], dict[str, Any]]:
        """Reset everything; the first observations are counted."""
        mask = (kwargs.get("options") or {}).get("reset_mask")
        if mask is not None and not np.all(mask):
            raise ValueError("NormalizeObservation resets all sub-environments or none.")
        observations, infos = self.env.reset(**kwargs)
        self._count(observations)
        return self._normalize(observations), infos

    def step(
        self, actions: NDArray[Any]
    ) -> tuple[NDArray[np.float32], FloatArray, NDArray[np.bool_], NDArray[np.bool_], Any]:
        """Step, count and normalise."""
        observations, rewards, terminations, truncations, infos = self.env.step(actions)
        if "final_obs" not in infos:
            self._count(observations)
        else:
            done = np.flatnonzero(infos["_final_obs"])
            last = observations.copy()
            last[done] = np.stack(infos["final_obs"][done])
            self._count(last)
            infos["final_obs"] = _only(done, self._normalize(last))
            self._count_some(observations, done)
        return self._normalize(observations), rewards, terminations, truncations, infos

    def _count(self, observations: FloatArray) -> None:
        if self.update_running_mean:
            self.obs_rms.update(self._by_member(observations), EVERYONE)

    def _count_some(self, observations: FloatArray, ids: NDArray[np.intp]) -> None:
        if not self.update_running_mean:
            return
        if self.envs_per_member == 1:
            self.obs_rms.update(observations[ids][:, None], ids)
            return
        owners = ids // self.envs_per_member
        for member in np.unique(owners):
            samples = observations[ids[owners == member]]
            self.obs_rms.update(samples[None], np.array([member]))

    def _normalize(self, observations: FloatArray) -> NDArray[np.float32]:
        scale = np.sqrt(self.obs_rms.var + self.epsilon)
        normalized = self._by_member(observations) - self.obs_rms.mean[:, None]
        normalized /= scale[:, None]
        np.minimum(np.maximum(normalized, -self.clip, out=normalized), self.clip, out=normalized)
        return normalized.astype(np.float32).reshape(observations.shape)

    def _by_member(self, observations: FloatArray) -> FloatArray:
        return observations.reshape(self.num_members, self.envs_per_member, -1)

    def state_dict(self) -> dict[str, FloatArray]:
        """The statistics, each array with a leading member axis."""
        return self.obs_rms.state_dict()

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take over the statistics; ValueError if they are of other shapes."""
        self.obs_rms.load_state_dict(state)


class FixedNormalizeObservation(VectorWrapper):
    """Observations with mean 0 and variance 1 under statistics of each member that never change,
    not clipped.

    Args:
        env: [num_members * N] sub-environments with vector observations, member-major.
        num_members: how many sets of statistics; they are those of `load_state_dict`, before
            which observations pass as they are.
    """

    def __init__(self, env: VectorEnv, num_members: int) -> None:
        super().__init__(env)
        shape = env.single_observation_space.shape
        assert shape is not None
        self.single_observation_space = Box(-np.inf, np.inf, shape, np.float32)
        self.observation_space = batch_space(self.single_observation_space, env.num_envs)
        self.mean: FloatArray = np.zeros((num_members, 1, *shape))
        self.std: FloatArray = np.ones((num_members, 1, *shape))

    def reset(self, **kwargs: Any) -> tuple[NDArray[np.float32], dict[str, Any]]:
        """Reset and normalise."""
        observations, infos = self.env.reset(**kwargs)
        return self._normalize(observations), infos

    def step(
        self, actions: NDArray[Any]
    ) -> tuple[NDArray[np.float32], FloatArray, NDArray[np.bool_], NDArray[np.bool_], Any]:
        """Step and normalise."""
        observations, rewards, terminations, truncations, infos = self.env.step(actions)
        if "final_obs" in infos:
            done = np.flatnonzero(infos["_final_obs"])
            last = observations.copy()
            last[done] = np.stack(infos["final_obs"][done])
            infos["final_obs"] = _only(done, self._normalize(last))
        return self._normalize(observations), rewards, terminations, truncations, infos

    def _normalize(self, observations: FloatArray) -> NDArray[np.float32]:
        normalized = observations.reshape(len(self.mean), -1, observations.shape[-1]) - self.mean
        normalized /= self.std
        return normalized.astype(np.float32).reshape(observations.shape)

    def state_dict(self) -> dict[str, FloatArray]:
        """The statistics [num_members, 1, O]."""
        return {"mean": self.mean.copy(), "std": self.std.copy()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take over the statistics; ValueError if they are of other shapes."""
        for name in ("mean", "std"):
            own = getattr(self, name)
            if np.shape(state[name]) != own.shape:
                raise ValueError(
                    f"The state's {name} has shape {np.shape(state[name])}, not {own.shape}."
                )
            own[...] = state[name]


def random_action_statistics(
    env: VectorEnv, reset_seeds: list[int], generators: list[np.random.Generator], steps: int
) -> dict[str, FloatArray]:
    """What `FixedNormalizeObservation` takes: mean and standard deviation of what is seen under
    uniformly random actions, as "No Representation, No Trust" (Moalla et al., 2024) has it.

    Args:
        env: [len(generators) * N] sub-environments, member-major, used up by this.
        reset_seeds: one per sub-environment.
        generators: draw the members' actions.
        steps: observations of each member that are counted, rounded up to a multiple of N.

    Raises:
        ValueError: the actions are not bounded.
    """
    space = env.single_action_space
    assert isinstance(space, Box)
    if not space.is_bounded():
        raise ValueError(f"Random actions are drawn from a box, and {space} is not bounded.")
    members = len(generators)
    num_envs = env.num_envs // members
    rounds = max(-(-steps // num_envs), 2)
    shape = (rounds, num_envs, *space.shape)
    draws = [generator.uniform(space.low, space.high, shape) for generator in generators]
    actions = np.stack(draws, axis=1).astype(np.float32)
    observations, _ = env.reset(seed=reset_seeds)  # type: ignore[arg-type]
    seen = np.empty((members, rounds, num_envs, observations.shape[-1]))
    for step in range(rounds):
        seen[:, step] = observations.reshape(members, num_envs, -1)
        observations, *_ = env.step(actions[step].reshape(env.action_space.shape or ()))
    # One member after the other: a sum's bits depend on the shape of what is summed.
    flat = [np.ascontiguousarray(one.reshape(rounds * num_envs, -1)) for one in seen]
    return {
        "mean": np.stack([one.mean(0) for one in flat])[:, None],
        "std": np.stack([np.maximum(one.std(0, ddof=1), 1e-6) for one in flat])[:, None],
    }


class AppendTime(VectorWrapper):
    """Observations with the time that has passed in the episode after them: −1 at its beginning, 1
    at the time limit.

    Args:
        env: sub-environments with vector observations.
        time_limit: steps.
    """

    def __init__(self, env: VectorEnv, time_limit: int) -> None:
        super().__init__(env)
        space = env.single_observation_space
        assert isinstance(space, Box)
        self.time_limit = time_limit
        dtype = space.dtype.type
        self.single_observation_space = Box(
            np.append(space.low, dtype(-1)), np.append(space.high, dtype(np.inf)), dtype=dtype
        )
        self.observation_space = batch_space(self.single_observation_space, env.num_envs)
        self.elapsed_steps = np.zeros(env.num_envs, np.int64)

    def reset(self, **kwargs: Any) -> tuple[FloatArray, dict[str, Any]]:
        """Reset; time begins anew, where that is not masked."""
        mask = (kwargs.get("options") or {}).get("reset_mask", EVERYONE)
        observations, infos = self.env.reset(**kwargs)
        self.elapsed_steps[mask] = 0
        return self._with_time(observations), infos

    def step(
        self, actions: NDArray[Any]
    ) -> tuple[FloatArray, FloatArray, NDArray[np.bool_], NDArray[np.bool_], dict[str, Any]]:
        """Step and append."""
        observations, rewards, terminations, truncations, infos = self.env.step(actions)
        self.elapsed_steps += 1
        if "final_obs" in infos:
            done = np.flatnonzero(infos["_final_obs"])
            last = observations.copy()
            last[done] = np.stack(infos["final_obs"][done])
            infos["final_obs"] = _only(done, self._with_time(last))
        self.elapsed_steps[terminations | truncations] = 0
        return self._with_time(observations), rewards, terminations, truncations, infos

    def _with_time(self, observations: FloatArray) -> FloatArray:
        time = 2 * self.elapsed_steps / self.time_limit - 1
        return np.concatenate([observations, time[:, None].astype(observations.dtype)], axis=1)

    def state_dict(self) -> dict[str, NDArray[np.int64]]:
        """Steps since each sub-environment's episode began."""
        return {"elapsed_steps": self.elapsed_steps.copy()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from there."""
        self.elapsed_steps[:] = state["elapsed_steps"]


def _only(ids: NDArray[np.intp], observations: NDArray[Any]) -> NDArray[np.object_]:
    """The rows with these ids as a `final_obs` info has them: None elsewhere."""
    rows = np.full(len(observations), None, dtype=object)
    for i in ids:
        rows[i] = observations[i]
    return rows


class NormalizeReward(MemberWrapper):
    """Rewards over the standard deviation of the member's discounted returns so far, clipped.

    The discounted return is Gymnasium's (and the original baselines'): it forgets at a
    termination, before that step's reward is added, and at nothing else.

    Args:
        env: [num_members * N] sub-environments, member-major.
        num_members: how many sets of statistics.
        gamma: discount, in [0, 1].
        epsilon: added to the variance.
        clip: largest absolute value that is returned.

    Raises:
        ValueError: as `NormalizeObservation`; gamma out of range.
    """

    def __init__(
        self,
        env: VectorEnv,
        num_members: int,
        gamma: float = 0.99,
        epsilon: float = 1e-8,
        clip: float = 10.0,
    ) -> None:
        super().__init__(env, num_members, epsilon, clip)
        if not 0 <= gamma <= 1:
            raise ValueError(f"gamma must be in [0, 1], not {gamma}.")
        self.gamma = gamma
        self.return_rms = RunningMoments(num_members)
        self.discounted_returns = np.zeros((num_members, self.envs_per_member))

    def step(
        self, actions: NDArray[Any]
    ) -> tuple[Any, FloatArray, NDArray[np.bool_], NDArray[np.bool_], dict[str, Any]]:
        """Step and normalise."""
        observations, rewards, terminations, truncations, infos = self.env.step(actions)
        by_member = rewards.reshape(self.num_members, self.envs_per_member)
        continues = 1 - terminations.reshape(by_member.shape)
        self.discounted_returns = self.discounted_returns * self.gamma * continues + by_member
        if self.update_running_mean:
            self.return_rms.update(self.discounted_returns, EVERYONE)
        scale = np.sqrt(self.return_rms.var + self.epsilon)
        normalized = by_member / scale[:, None]
        np.minimum(np.maximum(normalized, -self.clip, out=normalized), self.clip, out=normalized)
        return observations, normalized.reshape(-1), terminations, truncations, infos

    def state_dict(self) -> dict[str, FloatArray]:
        """The statistics and discounted returns, each array with a leading member axis."""
        return self.return_rms.state_dict() | {"discounted_returns": self.discounted_returns.copy()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take over the statistics; ValueError if they are of other shapes."""
        returns = np.array(state["discounted_returns"])
        if returns.shape != self.discounted_returns.shape:
            raise ValueError(
                f"The state's discounted_returns has shape {returns.shape}, "
                f"not {self.discounted_returns.shape}."
            )
        self.return_rms.load_state_dict(state)
        self.discounted_returns = returns
