"""One call that builds any environment the agents can train on."""

import difflib
import inspect
import sys
from typing import Any, cast

import gymnasium
import numpy as np
from gymnasium.envs.registration import EnvSpec, load_env_creator
from gymnasium.spaces import Box
from gymnasium.vector import AutoresetMode, SyncVectorEnv, VectorEnv
from gymnasium.wrappers import TransformObservation
from gymnasium.wrappers.vector import RecordEpisodeStatistics
from numpy.typing import NDArray

from upgd_ppo.envs.batched_mujoco import BatchedMujocoEnv
from upgd_ppo.envs.containment import ContainedEnv
from upgd_ppo.envs.gymnasium_task import check_arguments
from upgd_ppo.envs.tasks import TASKS


def make(
    env_id: str,
    num_members: int = 1,
    envs_per_member: int = 1,
    threads: int = 1,
    env_kwargs: dict[str, Any] | None = None,
    max_episode_steps: int | None = None,
    task_infos: bool = True,
) -> VectorEnv:
    """A vector environment of num_members * envs_per_member sub-environments, member-major.

    Gymnasium's MuJoCo tasks are built natively (`BatchedMujocoEnv`), any other registered
    environment by Gymnasium's `SyncVectorEnv`. Either way sub-environments reset within the step
    (SAME_STEP), observations are float64 vectors (others are flattened), `infos["episode"]` has
    the returns `r` and lengths `l` of the episodes that ended, `infos["simulation_error"]` tells
    what has failed, while the others go on, and nothing is normalised.

    Args:
        env_id: an id registered with Gymnasium, or "module:Id-v0" of a module that is imported:
            nothing is imported here, because ids are read from files too.
        num_members: number of independent learners.
        envs_per_member: sub-environments of each.
        threads: native threads (MuJoCo tasks only).
        env_kwargs: keyword arguments of the environment's constructor.
        max_episode_steps: time limit; None is the registered one, -1 is none.
        task_infos: False spares the time for what tasks report themselves in `infos`, such as
            "x_position".

    Raises:
        ValueError: an unknown id or argument, an environment that refuses to be built, or one
            whose observations or actions the agents cannot handle; the message says which.
    """
    env_kwargs = env_kwargs or {}
    num_envs = num_members * envs_per_member
    if num_members < 1 or envs_per_member < 1:
        raise ValueError(
            f"num_members and envs_per_member must be at least 1, "
            f"not {num_members} and {envs_per_member}."
        )
    spec = find_spec(env_id)
    if spec.id in TASKS and str(spec.entry_point).startswith("gymnasium.envs.mujoco."):
        try:
            return BatchedMujocoEnv(
                spec.id, num_envs, threads, max_episode_steps, task_infos=task_infos, **env_kwargs
            )
        except (OSError, TypeError) as error:
            raise ValueError(f"{spec.id} cannot be built: {error}") from error
    env = GymnasiumVectorEnv(spec, num_envs, max_episode_steps, env_kwargs, task_infos)
    return RecordEpisodeStatistics(env)


class GymnasiumVectorEnv(SyncVectorEnv):
    """Any other Gymnasium environment, through Gymnasium's own `SyncVectorEnv`.

    A sub-environment that fails says so in its infos, and the others go on (`ContainedEnv`).

    Attributes:
        exact_state: False: such environments cannot be saved and go on exactly; after a resume
            their episodes start anew.
    """

    exact_state = False

    def __init__(
        self,
        spec: EnvSpec,
        num_envs: int,
        max_episode_steps: int | None,
        env_kwargs: dict[str, Any],
        task_infos: bool,
    ) -> None:
        check_constructor(spec, env_kwargs)

        def build() -> gymnasium.Env:
            env = gymnasium.make(spec, max_episode_steps=max_episode_steps, **env_kwargs)
            box = check_spaces(spec.id, env)
            low, high = box.low.ravel().astype(np.float64), box.high.ravel().astype(np.float64)
            flat = Box(low, high, dtype=np.float64)
            vectors = TransformObservation(env, lambda one: np.ravel(one).astype(np.float64), flat)
            return ContainedEnv(vectors, task_infos)

        try:
            super().__init__([build] * num_envs, autoreset_mode=AutoresetMode.SAME_STEP)
        except (ImportError, OSError, TypeError, gymnasium.error.Error) as error:
            raise ValueError(f"{spec.id} cannot be built: {error}") from error

    def set_active(self, active: NDArray[np.bool_]) -> None:
        """Choose the sub-environments that `step` advances, [num_envs] bool.

        The others keep their observation, with reward 0 and neither flag.
        """
        for env, is_active in zip(cast(list[ContainedEnv], self.envs), active, strict=True):
            env.active = bool(is_active)


def find_spec(env_id: str) -> EnvSpec:
    """The registered spec of an id; that of "module:Id-v0" only where the module is imported."""
    module, colon, name = env_id.rpartition(":")
    if colon and module not in sys.modules:
        raise ValueError(
            f"The environment {env_id!r} needs the module {module!r}, and a name that is read from"
            f" a file is never imported. If you trust it, name it yourself: --env {env_id} on the"
            f" command line, or 'import {module}' in Python."
        )
    spec = gymnasium.registry.get(name)
    if spec is None:
        near = difflib.get_close_matches(name, gymnasium.registry, n=2, cutoff=0.5)
        suggestion = f"; did you mean {' or '.join(near)}?" if near else "."
        raise ValueError(f"There is no environment {name!r} in Gymnasium's registry{suggestion}")
    return spec


def check_constructor(spec: EnvSpec, env_kwargs: dict[str, Any]) -> None:
    """Raise a ValueError if the constructor has no such arguments, where it says what it has."""
    creator: Any = spec.entry_point
    if creator is None:
        raise ValueError(f"{spec.id} has no entry point to build it with.")
    if isinstance(creator, str):
        try:
            creator = load_env_creator(creator)
        except (ImportError, AttributeError) as error:
            raise ValueError(f"{spec.id} cannot be built: {error}") from error
    parameters = inspect.signature(creator).parameters.values()
    if not any(parameter.kind is parameter.VAR_KEYWORD for parameter in parameters):
        check_arguments(spec.id, env_kwargs, [parameter.name for parameter in parameters])


def check_spaces(env_id: str, env: gymnasium.Env) -> Box:
    """The observation space; a ValueError if the agents cannot handle it or the actions."""
    actions, observations = env.action_space, env.observation_space
    if not isinstance(actions, Box):
        raise ValueError(
            f"{env_id} has {type(actions).__name__} actions; only continuous (Box) actions "
            "can be trained."
        )
    if not np.issubdtype(actions.dtype, np.floating) or len(actions.shape) != 1:
        raise ValueError(
            f"{env_id} has {actions.dtype} actions of shape {actions.shape}; only vectors of "
            "real numbers can be trained."
        )
    if not isinstance(observations, Box):
        raise ValueError(
            f"{env_id} has {type(observations).__name__} observations; only Box observations "
            "can be trained on."
        )
    if observations.dtype == np.uint8 and len(observations.shape) > 1:
        raise ValueError(
            f"{env_id} has images of shape {observations.shape} as observations; only vectors "
            "can be trained on."
        )
    return observations
