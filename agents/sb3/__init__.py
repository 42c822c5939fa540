"""The Stable-Baselines3 plug-in: UPGD policies, plasticity statistics, native environments.

Importing it makes the policies known by name: `PPO("UPGDPolicy", "Ant-v4")`.
"""

from agents.optimizers import UPGD, AdaptiveUPGD
from agents.sb3.export import export_sb3
from agents.sb3.plasticity_callback import PlasticityCallback, PlasticityWarning
from agents.sb3.policies import UPGDCnnPolicy, UPGDMultiInputPolicy, UPGDPolicy, register_aliases
from agents.sb3.saved_policy import SavedPolicy, load_policy
from agents.sb3.vec_env import BatchedMujocoVecEnv

__all__ = [
    "UPGD",
    "AdaptiveUPGD",
    "BatchedMujocoVecEnv",
    "PlasticityCallback",
    "PlasticityWarning",
    "SavedPolicy",
    "UPGDCnnPolicy",
    "UPGDMultiInputPolicy",
    "UPGDPolicy",
    "export_sb3",
    "load_policy",
]

register_aliases()
