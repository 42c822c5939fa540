"""The Stable-Baselines3 plug-in: `from upgd_ppo.sb3 import UPGDPolicy, PlasticityCallback`."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from upgd_ppo.agents import sb3
from upgd_ppo.agents.sb3 import (
    UPGD,
    AdaptiveUPGD,
    BatchedMujocoVecEnv,
    MethodCallback,
    PlasticityCallback,
    PlasticityWarning,
    SavedPolicy,
    UPGDCnnPolicy,
    UPGDMultiInputPolicy,
    UPGDPolicy,
    load_policy,
)

if TYPE_CHECKING:
    from upgd_ppo.agents.sb3 import export_sb3

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
    return getattr(sb3, name)  # export_sb3, on demand
