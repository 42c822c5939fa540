"""Makes the native environments known to `gymnasium.make_vec`.

Gymnasium has a slot for a task's own vectorised version, `vector_entry_point`, empty for its
MuJoCo tasks. Importing `envs` fills it, so `gymnasium.make_vec("Ant-v4", 64)` builds the native
one; `gymnasium.make` does not look at it.
"""

from collections.abc import Callable
from functools import partial

import gymnasium

from upgd_ppo.envs.batched_mujoco import BatchedMujocoEnv
from upgd_ppo.envs.tasks import TASKS


def fill_vector_entry_points() -> None:
    """Set the entry points as text, so that Gymnasium's specs can still be written as JSON."""
    for task in TASKS:
        spec = gymnasium.registry.get(task)
        if spec is not None and spec.vector_entry_point is None:
            spec.vector_entry_point = f"{__name__}:{task}"


def __getattr__(task: str) -> Callable[..., BatchedMujocoEnv]:
    """Gymnasium looks up the text after the colon, a task's id, as an attribute of this module."""
    if task not in TASKS:
        raise AttributeError(f"module {__name__!r} has no attribute {task!r}")
    return partial(BatchedMujocoEnv, task)
