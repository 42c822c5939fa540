"""Optimizers: the UPGD family, and the registry that `train.py --opt` looks names up in."""

from agents.optimizers.adaptive_upgd import AdaptiveUPGD
from agents.optimizers.registry import OptimizerSpec, get, names
from agents.optimizers.upgd import UPGD

__all__ = ["UPGD", "AdaptiveUPGD", "OptimizerSpec", "get", "names"]
