"""Optimizers: the UPGD family, and the registry that `train.py --opt` looks names up in."""

from agents.optimizers.adaptive_upgd import AdaptiveUPGD
from agents.optimizers.feature_upgd import FeatureUPGD
from agents.optimizers.hesscale import hesscale
from agents.optimizers.l2_init import L2Init
from agents.optimizers.perturbed import PGD, ShrinkAndPerturb
from agents.optimizers.registry import OptimizerSpec, get, hyper_parameters_of, names
from agents.optimizers.upgd import UPGD

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
