"""Optimizers: the UPGD family, and the registry that `train.py --opt` looks names up in."""

from upgd_ppo.agents.optimizers.adaptive_upgd import AdaptiveUPGD
from upgd_ppo.agents.optimizers.feature_upgd import FeatureUPGD
from upgd_ppo.agents.optimizers.hesscale import hesscale
from upgd_ppo.agents.optimizers.l2_init import L2Init
from upgd_ppo.agents.optimizers.perturbed import PGD, ShrinkAndPerturb
from upgd_ppo.agents.optimizers.registry import OptimizerSpec, get, hyper_parameters_of, names
from upgd_ppo.agents.optimizers.upgd import UPGD

__all__ = [
    "PGD",
    "UPGD",
    "AdaptiveUPGD",
    "FeatureUPGD",
    "L2Init",
    "OptimizerSpec",
    "ShrinkAndPerturb",
    "get",
    "hesscale",
    "hyper_parameters_of",
    "names",
]
