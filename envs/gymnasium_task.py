"""Gymnasium's own environment behind a task: its model, spaces and constructor arguments."""

import difflib
import inspect
from collections.abc import Iterable
from types import SimpleNamespace
from typing import Any, cast

import gymnasium
from gymnasium.envs.mujoco import MujocoEnv
from gymnasium.envs.registration import load_env_creator

RENDERING = (
    "width",
    "height",
    "camera_id",
    "camera_name",
    "max_geom",
    "visual_options",
)


def construct(
    task: str, render_mode: str | None, kwargs: dict[str, Any]
) -> tuple[MujocoEnv, SimpleNamespace]:
    """One environment of Gymnasium's and its constructor's arguments, defaults filled in.

    Raises:
        ValueError: the task is none of Gymnasium's MuJoCo tasks, or has no such argument.
        ImportError: Gymnasium refuses the task with this MuJoCo; its message says what to do.
    """
    spec = gymnasium.registry.get(task)
    entry_point = None if spec is None else spec.entry_point
    if not isinstance(entry_point, str) or not entry_point.startswith("gymnasium.envs.mujoco."):
        raise ValueError(f"{task!r} is none of Gymnasium's MuJoCo tasks.")
    creator = load_env_creator(entry_point)
    signature = inspect.signature(creator)
    named = [
        name
        for name, parameter in signature.parameters.items()
        if parameter.kind is not inspect.Parameter.VAR_KEYWORD
    ]
    check_arguments(task, kwargs, [*named, *RENDERING])
    env = cast(MujocoEnv, creator(render_mode=render_mode, **kwargs))
    arguments = signature.bind(**kwargs)
    arguments.apply_defaults()
    return env, SimpleNamespace(**{name: arguments.arguments[name] for name in named})


def check_arguments(env_id: str, given: Iterable[str], valid: list[str]) -> None:
    """Raise a ValueError that names the nearest valid arguments if one is not valid."""
    for name in given:
        if name not in valid:
            near = difflib.get_close_matches(name, valid, n=1)
            suggestion = f" Perhaps you meant {near[0]!r}." if near else ""
            raise ValueError(
                f"{env_id} has no argument {name!r}; it takes {', '.join(valid)}.{suggestion}"
            )
