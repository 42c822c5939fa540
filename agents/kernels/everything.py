"""All kernels by name, for the switch."""

from upgd_ppo.agents.kernels.compile import tanh
from upgd_ppo.agents.kernels.noise import fill_with_normals, philox
from upgd_ppo.agents.kernels.ppo import ppo_gradient, scale_to_norm
from upgd_ppo.agents.kernels.upgd import adaptive_upgd

__all__ = [
    "adaptive_upgd",
    "fill_with_normals",
    "philox",
    "ppo_gradient",
    "scale_to_norm",
    "tanh",
]
