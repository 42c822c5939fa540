"""Modules that a person names: `--env module:Id` and `--opt module.Class`.

Importing a module runs its code, and files name modules too: a run's settings, a preset, a saved
model. So nothing here or elsewhere imports what a file names. What was typed on the command line
is imported, by these functions; every name is then looked up among the modules that are imported
already.
"""

from __future__ import annotations

import importlib
import os
import sys
import traceback
from collections.abc import Callable
from typing import TypeVar

from upgd_ppo.agents.optimizers import registry

Made = TypeVar("Made")


def import_environment(env_id: str) -> None:
    """Import the module of "module:Id-v0"; any other id names none.

    Raises:
        ValueError: here and below, if there is no such module, or it fails.
    """
    _import(_environment_module(env_id), f"--env {env_id}")


def import_optimizer(name: str) -> None:
    """Import the module of "module.Class"; a registered name names none."""
    _import(_optimizer_module(name), f"--opt {name}")


def make_after_importing(env_id: str, optimizer: str, make: Callable[[], Made]) -> Made:
    """In a process that begins without them, import what its parent has imported, and make."""
    for module in (_environment_module(env_id), _optimizer_module(optimizer)):
        if module:
            importlib.import_module(module)
    return make()


def _environment_module(env_id: str) -> str:
    return env_id.rpartition(":")[0]


def _optimizer_module(name: str) -> str:
    return "" if name in registry.REGISTRY else name.rpartition(".")[0]


def _import(module: str, flag: str) -> None:
    if not module:
        return
    if os.getcwd() not in sys.path:
        sys.path.append(os.getcwd())  # last, so that nothing there hides what is installed
    try:
        importlib.import_module(module)
    except Exception as error:
        raise ValueError(f"{flag}: cannot import {module!r}: {_reason(error)}.") from error


def _reason(error: Exception) -> str:
    """What went wrong, and where if that is in the module rather than in finding it."""
    frames = traceback.extract_tb(error.__traceback__)
    where = next((f for f in reversed(frames) if not f.filename.startswith("<frozen")), None)
    inside = where is not None and where.filename not in (__file__, importlib.__file__)
    place = f" ({where.filename}, line {where.lineno})" if where and inside else ""
    kind = "" if isinstance(error, ImportError) else f"{type(error).__name__}: "
    return f"{kind}{error}{place}"
