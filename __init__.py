"""PPO that keeps learning: populations of seeds on MuJoCo, UPGD and other optimizers, and
per-layer plasticity statistics.

    from upgd_ppo import AdaptiveUPGD       # a drop-in for torch.optim.Adam
    from upgd_ppo.sb3 import UPGDPolicy     # the Stable-Baselines3 plug-in
"""

from importlib import import_module
from typing import Any

_HOMES = {
    "PGD": "upgd_ppo.agents.optimizers",
    "UPGD": "upgd_ppo.agents.optimizers",
    "AdaptiveUPGD": "upgd_ppo.agents.optimizers",
    "FeatureUPGD": "upgd_ppo.agents.optimizers",
    "L2Init": "upgd_ppo.agents.optimizers",
    "ShrinkAndPerturb": "upgd_ppo.agents.optimizers",
    "hesscale": "upgd_ppo.agents.optimizers",
    "measure": "upgd_ppo.agents.plasticity",
}

__all__ = list(_HOMES)


def __getattr__(name: str) -> Any:
    """Import what is asked for when it is asked for: a command needs no optimizer to say --help."""
    if name not in _HOMES:
        raise AttributeError(f"module 'upgd_ppo' has no attribute {name!r}")
    return getattr(import_module(_HOMES[name]), name)


def __dir__() -> list[str]:
    return [*globals(), *_HOMES]
