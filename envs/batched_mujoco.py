"""Gymnasium's MuJoCo tasks as one vector environment on MuJoCo's native thread pool."""

import math
from collections.abc import Sequence
from typing import Any

import gymnasium
import mujoco
import numpy as np
from gymnasium.utils import seeding
from gymnasium.vector import AutoresetMode, VectorEnv
from gymnasium.vector.utils import batch_space
from numpy.typing import NDArray

from upgd_ppo.envs.gymnasium_task import construct
from upgd_ppo.envs.simulation import FloatArray, Simulation
from upgd_ppo.envs.tasks import TASKS
from upgd_ppo.envs.tasks.base import Infos

Mask = NDArray[np.bool_]
Step = tuple[FloatArray, FloatArray, NDArray[np.bool_], NDArray[np.bool_], dict[str, Any]]


class BatchedMujocoEnv(VectorEnv[FloatArray, NDArray[Any], NDArray[Any]]):
    """`num_envs` sub-environments of one Gymnasium MuJoCo task, stepped in one native call.

    Sub-environment i equals `gymnasium.make(task, **kwargs)` bit for bit: observations, rewards,
    both flags and the states after resets, for the same seed and actions, whatever `num_envs`
    and `threads`. A sub-environment that ends is reset within the same step (`SAME_STEP`): the
    step returns the first observation of the new episode, and `infos` holds the last one of
    the old under `final_obs`, its infos under `final_info`, and its return and length under
    `episode` (`r` and `l`), each with its mask (`_final_obs`, ...), as Gymnasium's vector
    environments do.

    A sub-environment in which MuJoCo raises, or whose observation or reward is not finite, is
    reported in `infos["simulation_error"]` (a message each) with the mask
    `infos["_simulation_error"]`; the others go on. Where MuJoCo raised, the state and the
    observation stay as they were and the reward is NaN.

    Args:
        task: a key of `upgd_ppo.envs.tasks.TASKS`, such as "Ant-v4".
        num_envs: number of sub-environments.
        threads: native threads that share the physics.
        max_episode_steps: time limit; None is the registered one, -1 is none.
        render_mode: None or one of Gymnasium's off-screen modes, such as "rgb_array".
        task_infos: whether `infos` hold what the task itself reports, such as "x_position"; what
            ended and what failed they always hold.
        **kwargs: the keyword arguments of Gymnasium's constructor of the task.

    Raises:
        ValueError: unknown task or keyword argument, or a number out of range.
        ImportError: Gymnasium itself refuses the task with this MuJoCo (Pusher-v4).

    Attributes:
        exact_state: whether `state_dict` captures everything; True.
    """

    exact_state = True

    def __init__(
        self,
        task: str,
        num_envs: int = 1,
        threads: int = 1,
        max_episode_steps: int | None = None,
        render_mode: str | None = None,
        task_infos: bool = True,
        **kwargs: Any,
    ) -> None:
        if num_envs < 1:
            raise ValueError(f"num_envs must be at least 1, not {num_envs}.")
        if threads < 1:
            raise ValueError(f"threads must be at least 1, not {threads}.")
        env, parameters = construct(task, render_mode, kwargs)
        self.task_id = task
        self.num_envs = num_envs
        self.render_mode = render_mode
        self.metadata = {**env.metadata, "autoreset_mode": AutoresetMode.SAME_STEP}
        self.single_observation_space = env.observation_space
        self.single_action_space = env.action_space
        self.observation_space = batch_space(env.observation_space, num_envs)
        self.action_space = batch_space(env.action_space, num_envs)
        if max_episode_steps is None:
            max_episode_steps = gymnasium.spec(task).max_episode_steps
        if max_episode_steps is None or max_episode_steps == -1:
            max_episode_steps = np.iinfo(np.int64).max
        if max_episode_steps < 1:
            raise ValueError(f"max_episode_steps must be positive or -1, not {max_episode_steps}.")
        self._limit = max_episode_steps
        self._task_infos = task_infos

        self._template = env
        self._frame_skip = env.frame_skip
        contact_forces = TASKS[task].needs_contact_forces(parameters)
        self.simulation = Simulation(env.model, num_envs, threads, contact_forces)
        self._task = TASKS[task](env, parameters, self.simulation)
        self._position = self._task.locate()
        self._observations: FloatArray = self._task.observe()
        self._elapsed_steps = np.zeros(num_envs, np.int64)
        self._episode_returns = np.zeros(num_envs)
        self._active = np.ones(num_envs, bool)
        self._everyone = np.ones(num_envs, bool)
        self._everyone.flags.writeable = False
        self._ids: NDArray[np.int32] | None = None
        self._generators: list[np.random.Generator | None] = [None] * num_envs
        self._seeds: list[int] = [-1] * num_envs
        self._needs_reset = True
        self._actions_shape = self.action_space.shape

    def step(self, actions: NDArray[Any]) -> Step:
        """Advance every active sub-environment by one action.

        Args:
            actions: [num_envs, action size], used in the precision they come in and not clipped
                (MuJoCo clips the controls, the reward sees the action), as in Gymnasium.

        Returns:
            observations [num_envs, size] float64, rewards [num_envs] float64, terminations and
            truncations [num_envs] bool, infos. All are the caller's to keep.

        Raises:
            ValueError: the actions have another shape.
            gymnasium.error.ResetNeeded: before the first `reset`.
        """
        actions = np.asarray(actions)
        if actions.shape != self._actions_shape:
            raise ValueError(f"Actions must have shape {self._actions_shape}, not {actions.shape}.")
        if self._needs_reset:
            raise gymnasium.error.ResetNeeded("Call reset() before the first step().")
        simulation, task = self.simulation, self._task
        simulation.ctrl[...] = actions
        errors = simulation.step(self._frame_skip, self._ids)

        before, after = self._position, task.locate()
        observations = task.observe()
        rewards, terminations, task_infos = task.evaluate(actions, before, after)
        infos = task_infos() if self._task_infos else {}
        if terminations is None:
            terminations = np.zeros(self.num_envs, bool)
        if errors or self._ids is not None:
            still = ~self._active
            still[list(errors)] = True
            after[still] = before[still]
            observations[still] = self._observations[still]
            rewards[still] = 0.0
            terminations[still] = False
            self._elapsed_steps[still] -= 1
        self._elapsed_steps += 1
        self._episode_returns += rewards
        self._position = after
        truncations = self._elapsed_steps >= self._limit

        if errors:
            rewards[list(errors)] = np.nan
        total = np.add.reduce(observations, axis=None) + np.add.reduce(rewards)
        if not math.isfinite(total):
            finite = np.isfinite(observations).all(axis=1) & np.isfinite(rewards)
            for i in np.flatnonzero(~finite):
                errors.setdefault(int(i), "The observation or the reward is not finite.")
        done = terminations | truncations
        if np.count_nonzero(done):
            observations, infos = self._autoreset(done, observations, infos, errors)
        else:
            infos = with_masks(infos, self._everyone)
        if errors:
            infos |= error_infos(errors, self.num_envs)
        self._observations = observations
        return observations.copy(), rewards, terminations, truncations, infos

    def _autoreset(
        self, done: Mask, observations: FloatArray, infos: Infos, errors: dict[int, str]
    ) -> tuple[FloatArray, dict[str, Any]]:
        """Start new episodes where one is done; what ended moves into the `final_...` infos."""
        ids = np.flatnonzero(done).astype(np.int32)
        final_obs = np.full(self.num_envs, None, dtype=object)
        for i in ids:
            final_obs[i] = observations[i].copy()
        endings: dict[str, Any] = {
            "final_obs": final_obs,
            "final_info": with_masks(
                {key: only(done, value) for key, value in infos.items()}, done
            ),
            "episode": {
                "r": np.where(done, self._episode_returns, 0.0),
                "l": np.where(done, self._elapsed_steps, 0),
            },
        }
        errors |= self._start_episodes(ids)
        observations = np.where(done[:, None], self._task.observe(), observations)

        going_on = {key: only(~done, value) for key, value in infos.items()}
        step_infos = with_masks(going_on, ~done) if not done.all() else {}
        for key, value in self._reset_infos().items():
            going_on[key][done] = value[done]
            step_infos |= with_masks({key: going_on[key]}, self._everyone)
        return observations, step_infos | with_masks(endings, done)

    # -------------------------------------------------------------- resetting

    def reset(
        self,
        *,
        seed: int | Sequence[int | None] | None = None,
        options: dict[str, Any] | None = None,
    ) -> tuple[FloatArray, dict[str, Any]]:
        """Start a new episode in every sub-environment.

        Args:
            seed: None goes on with the generators there are; an int seeds sub-environment i with
                seed + i; a sequence holds one seed (or None) each.
            options: `reset_mask`, [num_envs] bool, resets only some sub-environments.

        Returns:
            observations [num_envs, size] float64 and infos.

        Raises:
            ValueError: as many seeds as sub-environments are needed; an unusable mask.
        """
        if seed is None or isinstance(seed, (int, np.integer)):
            seeds = [None if seed is None else int(seed) + i for i in range(self.num_envs)]
        else:
            seeds = [None if one is None else int(one) for one in seed]
        if len(seeds) != self.num_envs:
            raise ValueError(f"{self.num_envs} seeds are needed, one each, not {len(seeds)}.")
        mask = np.ones(self.num_envs, bool)
        if options is not None and "reset_mask" in options:
            mask = np.asarray(options["reset_mask"])
            if mask.dtype != bool or mask.shape != (self.num_envs,) or not mask.any():
                raise ValueError(
                    f"options['reset_mask'] must be {self.num_envs} booleans, not all False."
                )
        ids = np.flatnonzero(mask).astype(np.int32)
        for i in ids:
            if seeds[i] is not None:
                self._generators[i], self._seeds[i] = seeding.np_random(seeds[i])
        errors = self._start_episodes(ids)
        self._observations = np.where(mask[:, None], self._task.observe(), self._observations)
        self._needs_reset = False
        infos = {key: only(mask, value) for key, value in self._reset_infos().items()}
        infos = with_masks(infos, mask)
        if errors:
            infos |= error_infos(errors, self.num_envs)
        return self._observations.copy(), infos

    def _reset_infos(self) -> Infos:
        return self._task.reset_infos() if self._task_infos else {}

    def _start_episodes(self, ids: NDArray[np.int32]) -> dict[int, str]:
        states = [self._task.initial_state(self._generator(i)) for i in ids]
        qpos, qvel = (np.stack(parts) for parts in zip(*states, strict=True))
        errors = self.simulation.reset(ids, qpos, qvel)
        self._position[ids] = self._task.locate()[ids]
        self._elapsed_steps[ids] = 0
        self._episode_returns[ids] = 0.0
        return errors

    def _generator(self, i: int) -> np.random.Generator:
        generator = self._generators[i]
        if generator is None:
            generator, self._seeds[i] = seeding.np_random()
            self._generators[i] = generator
        return generator

    @property  # type: ignore[misc]  # Gymnasium's can be set, too
    def np_random(self) -> tuple[np.random.Generator, ...]:  # type: ignore[override]
        """The sub-environments' random generators."""
        return tuple(self._generator(i) for i in range(self.num_envs))

    @property
    def np_random_seed(self) -> tuple[int, ...]:  # type: ignore[override]
        """The sub-environments' seeds."""
        return tuple(self._seeds[i] for i, _ in enumerate(self.np_random))

    # ------------------------------------------------------- excluding, saving

    @property
    def active(self) -> Mask:
        """[num_envs] the sub-environments that `step` advances."""
        return self._active.copy()

    def set_active(self, active: Mask) -> None:
        """Choose the sub-environments that `step` advances.

        The others keep state and observation, with reward 0 and neither flag.

        Raises:
            ValueError: `active` is not [num_envs] bool.
        """
        active = np.asarray(active)
        if active.dtype != bool or active.shape != (self.num_envs,):
            raise ValueError(f"active must be {self.num_envs} booleans.")
        self._active = active.copy()
        self._ids = None if active.all() else np.flatnonzero(active).astype(np.int32)

    @property
    def observations(self) -> FloatArray:
        """[num_envs, size] the observations that the last `step` or `reset` returned."""
        return self._observations.copy()

    def state_dict(self) -> dict[str, Any]:
        """Everything the future depends on, as plain containers, NumPy arrays, ints and strings.

        Each array, and each list, has one entry per sub-environment along its first axis, so a
        caller may cut it up by sub-environment and put it together again.
        """
        return {
            "task": self.task_id,
            "physics": self.simulation.state.copy(),
            "position": self._position.copy(),
            "observations": self._observations.copy(),
            "elapsed_steps": self._elapsed_steps.copy(),
            "episode_returns": self._episode_returns.copy(),
            "active": self._active.copy(),
            "generators": [generator.bit_generator.state for generator in self.np_random],
            "seeds": list(self.np_random_seed),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from where `state_dict` was taken, bit for bit.

        Raises:
            ValueError: the state is of another task, number of sub-environments or model.
        """
        if state["task"] != self.task_id:
            raise ValueError(f"The state is one of {state['task']}, not of {self.task_id}.")
        own: dict[str, NDArray[Any]] = {
            "physics": self.simulation.state,
            "position": self._position,
            "observations": self._observations,
            "elapsed_steps": self._elapsed_steps,
            "episode_returns": self._episode_returns,
        }
        for name, array in own.items():
            if np.shape(state[name]) != array.shape:
                raise ValueError(
                    f"The state's {name} has shape {np.shape(state[name])}, not {array.shape}: "
                    "it is of another number of sub-environments or other arguments."
                )
        for name, array in own.items():
            array[...] = state[name]
        self.set_active(state["active"])
        for i, (generator, seed) in enumerate(
            zip(state["generators"], state["seeds"], strict=True)
        ):
            self._generator(i).bit_generator.state = generator
            self._seeds[i] = seed
        self._needs_reset = False

    # ----------------------------------------------------------------- viewing

    def render(self) -> tuple[Any, ...]:
        """A frame of each sub-environment, by Gymnasium's own renderer."""
        frames = []
        for i in range(self.num_envs):
            self.simulation.batch.get_data(i, self._template.data)
            mujoco.mj_forward(self._template.model, self._template.data)
            frames.append(self._template.render())
        return tuple(frames)

    def close_extras(self, **kwargs: Any) -> None:
        self._template.close()


def only(mask: Mask, values: NDArray[Any]) -> NDArray[Any]:
    """`values` where the mask is set, zero elsewhere."""
    selected = np.zeros_like(values)
    selected[mask] = values[mask]
    return selected


def with_masks(infos: dict[str, Any], mask: Mask) -> dict[str, Any]:
    """Add to each info the `_name` entry that says which sub-environments it is of."""
    masked = dict(infos)
    for key in infos:
        masked[f"_{key}"] = mask
    return masked


def error_infos(errors: dict[int, str], num_envs: int) -> dict[str, Any]:
    """The messages of sick sub-environments, None for the others, and their mask."""
    messages = np.full(num_envs, None, dtype=object)
    messages[list(errors)] = list(errors.values())
    return with_masks({"simulation_error": messages}, messages != None)  # noqa: E711
