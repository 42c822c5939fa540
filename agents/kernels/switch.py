"""The one place that chooses between compiled kernels and plain operations.

Operations on a whole population touch far more memory than a core keeps near, and each costs a
call. The kernels finish one member after the other instead: its weights, gradients and activations
stay in the cache, and it cannot know how many others there are. In single precision, up to
rounding, they compute what `learners.ppo_loss` and `optimizers` compute by operations. They are
used where numba is installed and where they know what is asked; `why_not` says what they know.
"""

from __future__ import annotations

import functools
import importlib.metadata
import importlib.util
import os
from collections.abc import Callable
from typing import Any

SWITCH = "UPGD_PPO_COMPILED"
"""The environment variable that, set to 0, has everything computed without the kernels."""

KERNELS = {
    "ppo_gradient": "ppo",
    "scale_to_norm": "ppo",
    "adaptive_upgd": "upgd",
    "fill_with_normals": "noise",
}
"""Every kernel, by the module that it is in."""


# ── What each kernel knows ──────────────────────────────────────────────────────────────────────


def _why_not_ppo_gradient(
    activation: str, known: bool, layer_norm: bool, features: bool
) -> str | None:
    if features:
        return "a method wants features"
    if layer_norm:
        return "layer normalisation"
    return None if known else f"activation {activation}"


def _why_not_adaptive_upgd(
    order: str, scope: str, protecting: bool, whole_rows: bool, replaced: list[str]
) -> str | None:
    if order != "first":
        return f"order {order}"
    if scope != "global":
        return f"scope {scope}"
    if not protecting:
        return "not protecting"
    if not whole_rows:
        return "weights that are no whole rows of one group"
    return f"another {' and '.join(replaced)}" if replaced else None


def _why_not_fill_with_normals(kind: str, contiguous: bool) -> str | None:
    if kind != "normal":
        return f"{kind} noise"
    return None if contiguous else "rows that are not contiguous"


_WHY_NOT: dict[str, Callable[..., str | None]] = {
    "ppo_gradient": _why_not_ppo_gradient,
    "adaptive_upgd": _why_not_adaptive_upgd,
    "fill_with_normals": _why_not_fill_with_normals,
}


# ── The choice ──────────────────────────────────────────────────────────────────────────────────


def why_not(kernel: str, data: Any, **asked: Any) -> str | None:
    """What keeps a kernel from being used, in a few words; None if nothing.

    Args:
        kernel: a key of `KERNELS`.
        data: the tensor that it would write.
        asked: what it would have to know, as the kernel's function above takes it.
    """
    if str(data.dtype) != "torch.float32":
        return f"{str(data.dtype).removeprefix('torch.')} parameters"
    if data.device.type != "cpu":
        return f"the device is {data.device}"
    unknown = _WHY_NOT[kernel](**asked)
    if unknown is not None:
        return unknown
    return why_none() if kernels() is None else None


def choose(kernel: str, data: Any, **asked: Any) -> Callable[..., None] | None:
    """The kernel, or None where plain operations are to be used. Arguments are `why_not`'s."""
    loaded = kernels() if why_not(kernel, data, **asked) is None else None
    return None if loaded is None else loaded[kernel]


def announcement(why_no_kernels: str | None) -> str:
    """What is said of the choice when a run starts.

    Args:
        why_no_kernels: what `why_not` said of the gradient.
    """
    if why_no_kernels is None:
        return f"Compiled kernels: {version()}."
    return f"Compiled kernels: not used: {why_no_kernels}."


# ── Whether there are any ───────────────────────────────────────────────────────────────────────


@functools.cache
def kernels() -> dict[str, Callable[..., None]] | None:
    """The kernels by name, or None where they cannot or are not to be used.

    Importing them takes a second, and compiling them, once on a machine, about twenty.

    Raises:
        ImportError: numba is installed but does not work.
    """
    if version() is None:
        return None
    try:
        return {
            name: getattr(importlib.import_module(f"upgd_ppo.agents.kernels.{module}"), name)
            for name, module in KERNELS.items()
        }
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
