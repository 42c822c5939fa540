"""Stable-Baselines3's `VecEnv` over the native batched MuJoCo environments."""

from __future__ import annotations

import difflib
from collections.abc import Callable, Iterable, Sequence
from time import perf_counter
from typing import Any

import gymnasium
import numpy as np
from gymnasium.envs.registration import EnvSpec
from numpy.typing import NDArray
from stable_baselines3.common.env_util import unwrap_wrapper
from stable_baselines3.common.monitor import Monitor
from stable_baselines3.common.vec_env import VecEnv
from stable_baselines3.common.vec_env.base_vec_env import VecEnvIndices, VecEnvStepReturn

from upgd_ppo.agents.machine.cores import available_cores
from upgd_ppo.envs import BatchedMujocoEnv
from upgd_ppo.envs.tasks import TASKS

Info = dict[str, Any]
ENDINGS = ("final_obs", "final_info", "episode")


class BatchedMujocoVecEnv(VecEnv):
    """`num_envs` copies of a Gymnasium MuJoCo task, stepped in one native call.

    Steps equal those of `make_vec_env(task, num_envs, seed)` (a `DummyVecEnv`) bit for bit. Every
    finished episode is told in `infos[i]["episode"]`, as SB3's `Monitor` does, so that returns are
    logged without a wrapper; `VecMonitor`, `VecNormalize` and the others go around it as usual.

    A sub-environment whose simulation becomes unstable says so in `infos[i]["simulation_error"]`
    and its reward may be NaN (`VecCheckNan` finds it); the others are not touched.

    Args:
        task: id of one of Gymnasium's MuJoCo tasks, such as "Ant-v4"; or, for
            `make_vec_env(task, n, vec_env_cls=BatchedMujocoVecEnv)`, constructors of its
            environments, which say the number, the time limit and the keyword arguments too.
        num_envs: number of sub-environments.
        seed: seeds sub-environment i with seed + i, as `make_vec_env` does; None leaves that to
            `seed()`, which SB3's algorithms call with their own seed.
        threads: native threads that share the physics; None is one per core this process may use.
        max_episode_steps: time limit; None is the task's own, -1 is none.
        render_mode: None or one of Gymnasium's off-screen modes, such as "rgb_array".
        **env_kwargs: keyword arguments of the task's constructor.

    Raises:
        ValueError: a task that is not one of Gymnasium's MuJoCo tasks, an argument it does not
            have, or a number out of range; constructors of unlike or wrapped environments.
    """

    def __init__(
        self,
        task: str | Sequence[Callable[[], gymnasium.Env]],
        num_envs: int = 1,
        seed: int | None = None,
        threads: int | None = None,
        max_episode_steps: int | None = None,
        render_mode: str | None = None,
        **env_kwargs: Any,
    ) -> None:
        if not isinstance(task, str):
            num_envs = len(task)
            spec = _common_spec(task)
            task, max_episode_steps = spec.id, spec.max_episode_steps
            env_kwargs = {**spec.kwargs, **env_kwargs}
            render_mode = env_kwargs.pop("render_mode", None) or render_mode
        if task not in TASKS:
            raise ValueError(_unknown_task(task, num_envs))
        threads = threads or available_cores()
        self._env = BatchedMujocoEnv(
            task, num_envs, threads, max_episode_steps, render_mode, **env_kwargs
        )
        self.spec = gymnasium.spec(task)  # VecMonitor writes the task's name in its file
        self._attributes: list[dict[str, Any]] = [
            {
                "spec": self.spec,
                "render_mode": render_mode,
                "metadata": self._env.metadata,
                "observation_space": self._env.single_observation_space,
                "action_space": self._env.single_action_space,
            }
            for _ in range(num_envs)
        ]
        self._fixed = frozenset(self._attributes[0])
        super().__init__(
            num_envs, self._env.single_observation_space, self._env.single_action_space
        )
        self._actions: NDArray[Any] | None = None
        self._start = perf_counter()
        if seed is not None:
            self.seed(seed)

    # ── Stepping ────────────────────────────────────────────────────────────────────────────────

    def reset(self) -> NDArray[np.float64]:
        """The first observations [num_envs, size]; their infos are in `reset_infos`."""
        observations, infos = self._env.reset(seed=self._seeds)
        self.reset_infos = _one_each(infos, self.num_envs)
        self._reset_seeds()
        self._reset_options()
        return observations

    def step_async(self, actions: NDArray[Any]) -> None:
        """Take actions [num_envs, size] for `step_wait`."""
        self._actions = actions

    def step_wait(self) -> VecEnvStepReturn:
        """Observations [num_envs, size], float32 rewards, dones and infos, one for each."""
        assert self._actions is not None
        observations, rewards, terminations, truncations, batch = self._env.step(self._actions)
        dones = terminations | truncations
        if dones.any():
            infos = self._infos_at_endings(batch, dones, truncations & ~terminations)
        else:
            infos = _one_each(batch, self.num_envs)
            for info in infos:
                info["TimeLimit.truncated"] = False
        return observations, rewards.astype(np.float32), dones, infos

    def _infos_at_endings(
        self, batch: Info, dones: NDArray[np.bool_], timed_out: NDArray[np.bool_]
    ) -> list[Info]:
        """Infos where some episodes ended: those speak of their last step, not of the reset."""
        going_on = {key: value for key, value in batch.items() if key.lstrip("_") not in ENDINGS}
        infos = _one_each(going_on, self.num_envs)
        last = _one_each(batch["final_info"], self.num_envs)
        elapsed = round(perf_counter() - self._start, 6)
        for i in np.flatnonzero(dones):
            self.reset_infos[i] = infos[i]
            infos[i] = last[i] | {
                "terminal_observation": batch["final_obs"][i],
                "episode": {
                    "r": round(float(batch["episode"]["r"][i]), 6),
                    "l": int(batch["episode"]["l"][i]),
                    "t": elapsed,
                },
            }
            if "simulation_error" in self.reset_infos[i]:
                infos[i]["simulation_error"] = self.reset_infos[i].pop("simulation_error")
        for info, truncated in zip(infos, timed_out.tolist(), strict=True):
            info["TimeLimit.truncated"] = truncated
        return infos

    def close(self) -> None:
        """Release the simulations."""
        self._env.close()

    def get_images(self) -> Sequence[NDArray[np.uint8] | None]:
        """A frame of each sub-environment; needs `render_mode="rgb_array"`."""
        return list(self._env.render())

    # ── Reaching into sub-environments ──────────────────────────────────────────────────────────

    def get_attr(self, attr_name: str, indices: VecEnvIndices = None) -> list[Any]:
        """An attribute of sub-environments: spec, spaces, metadata, and what `set_attr` has set.

        Raises:
            AttributeError: if they have no such attribute.
        """
        chosen = self._chosen(indices)
        for i in chosen:
            if attr_name not in self._attributes[i]:
                raise AttributeError(
                    f"The sub-environments of BatchedMujocoVecEnv are one simulation and have no "
                    f"{attr_name!r} of their own; use make_vec_env({self._env.task_id!r}, "
                    f"n_envs={self.num_envs}) where it is needed."
                )
        return [self._attributes[i][attr_name] for i in chosen]

    def set_attr(self, attr_name: str, value: Any, indices: VecEnvIndices = None) -> None:
        """Attach an attribute of your own to sub-environments.

        Raises:
            AttributeError: if the attribute belongs to the environment, where setting it would
                have no effect.
        """
        if attr_name in self._fixed:
            raise AttributeError(
                f"{attr_name!r} cannot be set in a BatchedMujocoVecEnv; give it to the constructor."
            )
        for i in self._chosen(indices):
            self._attributes[i][attr_name] = value

    def env_method(
        self, method_name: str, *method_args: Any, indices: VecEnvIndices = None, **kwargs: Any
    ) -> list[Any]:
        """Call a method of sub-environments; the only one they have is `render`.

        Raises:
            AttributeError: for any other.
        """
        if method_name != "render":
            raise AttributeError(
                f"The sub-environments of BatchedMujocoVecEnv have no method {method_name!r}, only "
                f"'render'; use make_vec_env({self._env.task_id!r}, n_envs={self.num_envs}) where "
                "it is needed."
            )
        frames = self._env.render()
        return [frames[i] for i in self._chosen(indices)]

    def env_is_wrapped(
        self, wrapper_class: type[gymnasium.Wrapper], indices: VecEnvIndices = None
    ) -> list[bool]:
        """False for each: sub-environments have no wrappers of their own."""
        return [False for _ in self._chosen(indices)]

    def _chosen(self, indices: VecEnvIndices) -> Iterable[int]:
        return list(self._get_indices(indices))


def _common_spec(constructors: Sequence[Callable[[], gymnasium.Env]]) -> EnvSpec:
    """What environments that `make_vec_env` would build all are, if they can be built natively."""
    specs = []
    for construct in constructors:
        env = construct()
        monitor = unwrap_wrapper(env, Monitor)
        specs.append(env.spec)
        env.close()
        if isinstance(monitor, Monitor) and (monitor.results_writer or monitor.info_keywords):
            raise ValueError(
                "BatchedMujocoVecEnv's copies have no Monitor of their own that could write files "
                "or keep info_keywords; leave monitor_dir and monitor_kwargs out, and put "
                "VecMonitor around it."
            )
    first = next(iter(specs), None)
    if first is None or any(spec != first for spec in specs):
        raise ValueError(
            "BatchedMujocoVecEnv steps copies of one of Gymnasium's registered MuJoCo tasks, which "
            "these environments are not; use DummyVecEnv or SubprocVecEnv."
        )
    wrappers = [wrapper.name for wrapper in first.additional_wrappers if wrapper.name != "Monitor"]
    if wrappers:
        raise ValueError(
            f"BatchedMujocoVecEnv's copies are one simulation and cannot wear {wrappers[0]} each; "
            "wrap the whole (VecNormalize, VecFrameStack, …), or use DummyVecEnv or SubprocVecEnv."
        )
    return first


def _one_each(batch: Info, num_envs: int) -> list[Info]:
    """A batch of infos, with its masks, as one dict for each sub-environment."""
    infos: list[Info] = [{} for _ in range(num_envs)]
    for key, values in batch.items():
        if key.startswith("_"):
            continue
        for i, (value, present) in enumerate(
            zip(_listed(values), batch[f"_{key}"].tolist(), strict=True)
        ):
            if present:
                infos[i][key] = value
    return infos


def _listed(values: NDArray[Any]) -> list[Any]:
    """Numbers as Python's, rows of arrays as arrays."""
    return values.tolist() if values.ndim == 1 else list(values)


def _unknown_task(task: str, num_envs: int) -> str:
    near = difflib.get_close_matches(task, TASKS, n=1, cutoff=0.7)
    if task not in gymnasium.registry and near:
        return f"BatchedMujocoVecEnv knows no {task!r}; perhaps you meant {near[0]!r}."
    return (
        f"BatchedMujocoVecEnv knows the MuJoCo tasks ({', '.join(TASKS)}) and not {task!r}; "
        f"use make_vec_env({task!r}, n_envs={num_envs}) instead."
    )
