"""The two loops in which training spends most of its own time, compiled where numba is installed.

Operations on whole populations touch far more memory than a core keeps near, and each costs a
call. These kernels finish one member after the other instead, whose weights, gradients and
activations stay in the cache, and which so cannot know how many others there are. They compute
what `agents.ppo_gradient` and `agents.optimizers` compute, in single precision, up to rounding.
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
    """`agents.kernels`, or None where it cannot or is not to be used.

    Importing it takes a second, and compiling, once for each machine, about twenty.
    """
    if version() is None:
        return None
    return importlib.import_module("agents.kernels")


def version() -> str | None:
    """What the kernels are compiled with, such as "numba 0.68.1", or None if they are not used."""
    needed = ("numba", "scipy")
    if os.environ.get(SWITCH) == "0" or not all(map(importlib.util.find_spec, needed)):
        return None
    return f"numba {importlib.metadata.version('numba')}"
