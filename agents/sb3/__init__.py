"""The Stable-Baselines3 plug-in: UPGD policies, plasticity statistics, native environments.

Importing it makes the policies known by name: `PPO("UPGDPolicy", "Ant-v4")`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from upgd_ppo.agents.optimizers import UPGD, AdaptiveUPGD
from upgd_ppo.agents.sb3.method_callback import MethodCallback
from upgd_ppo.agents.sb3.plasticity_callback import PlasticityCallback, PlasticityWarning
from upgd_ppo.agents.sb3.policies import (
    UPGDCnnPolicy,
    UPGDMultiInputPolicy,
    UPGDPolicy,
    register_aliases,
)
from upgd_ppo.agents.sb3.saved_policy import SavedPolicy, load_policy
from upgd_ppo.agents.sb3.vec_env import BatchedMujocoVecEnv

if TYPE_CHECKING:
    from upgd_ppo.agents.sb3.export import export_sb3

__all__ = [
    "UPGD",
    "AdaptiveUPGD",
    "BatchedMujocoVecEnv",
    "MethodCallback",
    "PlasticityCallback",
    "PlasticityWarning",
    "SavedPolicy",
    "UPGDCnnPolicy",
    "UPGDMultiInputPolicy",
    "UPGDPolicy",
    "export_sb3",
    "load_policy",
]


def __getattr__(name: str) -> Any:
    if name == "export_sb3":  # on demand: it reads run directories, which the rest does not need
        from upgd_ppo.agents.sb3.export import export_sb3

        return export_sb3
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


register_aliases()
