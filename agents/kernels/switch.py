"""Loops in which training spends most of its own time, compiled where numba is installed.

Operations on whole populations touch far more memory than a core keeps near, and each costs a
call. These kernels finish one member after the other instead, whose weights, gradients and
activations stay in the cache, and which so cannot know how many others there are. In single
precision, up to rounding, they compute what the operations in `learners.ppo_loss` and
`optimizers` compute; noise they draw from a generator of their own.
"""

from __future__ import annotations

import functools
import importlib.metadata
import importlib.util
import os
from types import ModuleType

SWITCH = "UPGD_PPO_COMPILED"
"""The environment variable that, set to 0, has everything computed without the kernels."""


@functools.cache
def kernels() -> ModuleType | None:
    """`upgd_ppo.agents.kernels.everything`, or None where it cannot or is not to be used.

    Importing it takes a second, and compiling it, once on a machine, about twenty.

    Raises:
        ImportError: numba is installed but does not work.
    """
    if version() is None:
        return None
    try:
        return importlib.import_module("upgd_ppo.agents.kernels.everything")
    except (ImportError, OSError) as error:
        raise ImportError(
            f"numba is installed but cannot be used ({error}); mend or uninstall it, or set"
            f" {SWITCH}=0 to do without."
        ) from error


def why_none() -> str:
    """What keeps `kernels` from being there, in a few words."""
    if os.environ.get(SWITCH) == "0":
        return f"{SWITCH} is 0"
    return "numba is not installed"


def version() -> str | None:
    """What the kernels are compiled with and call, or None if they are not to be used: "numba
    0.68.1, llvmlite 0.50.0, scipy 1.17.1"."""
    needed = ("numba", "llvmlite", "scipy")
    if os.environ.get(SWITCH) == "0" or not all(map(importlib.util.find_spec, needed)):
        return None
    try:
        return ", ".join(f"{name} {importlib.metadata.version(name)}" for name in needed)
    except importlib.metadata.PackageNotFoundError:
        return None
