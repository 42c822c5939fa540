"""Reading what Stable-Baselines3 pickles without running code from the file."""

from __future__ import annotations

import io
import pickle
from typing import Any

from gymnasium.spaces import Space
from stable_baselines3.common.policies import BaseModel
from stable_baselines3.common.running_mean_std import RunningMeanStd
from stable_baselines3.common.torch_layers import BaseFeaturesExtractor
from stable_baselines3.common.vec_env import VecNormalize
from torch import nn
from torch.optim import Optimizer

_CLASSES: dict[str, tuple[type, ...]] = {
    "stable_baselines3": (
        BaseModel,
        BaseFeaturesExtractor,
        Optimizer,
        RunningMeanStd,
        VecNormalize,
    ),
    "sb3_contrib": (BaseModel, BaseFeaturesExtractor, Optimizer),
    "upgd_ppo.agents.sb3": (BaseModel,),
    "upgd_ppo.agents.optimizers": (Optimizer,),
    "gymnasium.spaces": (Space,),
    "torch.nn.modules": (nn.Module,),
    "torch.optim": (Optimizer,),
}
"""Where a class may come from, and what it must be."""

_NAMES = {
    *(("builtins", name) for name in ("set", "frozenset", "slice", "complex", "bytearray")),
    *(("collections", name) for name in ("OrderedDict", "deque")),
    *(
        (f"numpy.{core}.{module}", name)
        for core in ("core", "_core")
        for module, name in (
            ("multiarray", "_reconstruct"),
            ("multiarray", "scalar"),
            ("numeric", "_frombuffer"),
        )
    ),
    *(("numpy", name) for name in ("ndarray", "dtype")),
    *(("numpy.random._pickle", f"__{kind}_ctor") for kind in ("generator", "bit_generator")),
    *(
        ("numpy.random.bit_generator", name)
        for name in ("SeedSequence", "__pyx_unpickle_SeedSequence")
    ),
    *((f"numpy.random._{name.lower()}", name) for name in ("PCG64", "MT19937", "Philox", "SFC64")),
}
"""What else spaces and running statistics are made of."""


_FORMER = ("agents.sb3.", "agents.optimizers.")
"""Where our classes were before the package had a name; models saved then name them so."""


class _Unpickler(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        if f"{module}.".startswith(_FORMER):
            module = f"upgd_ppo.{module}"
        if (module, name) in _NAMES:
            return super().find_class(module, name)
        for package, kinds in _CLASSES.items():
            if module == package or module.startswith(f"{package}."):
                found = super().find_class(module, name)
                if isinstance(found, type) and issubclass(found, kinds):
                    return found
        raise pickle.UnpicklingError(f"{module}.{name}")


def safe_loads(content: bytes) -> Any:
    """Unpickle spaces, running statistics and references to known classes, and nothing else.

    Raises:
        pickle.UnpicklingError: names the first thing beyond these.
    """
    return _Unpickler(io.BytesIO(content)).load()
