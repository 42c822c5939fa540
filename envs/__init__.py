"""Environments: Gymnasium's, bit for bit, many at a time."""

from upgd_ppo.envs.batched_mujoco import BatchedMujocoEnv
from upgd_ppo.envs.entry_points import fill_vector_entry_points
from upgd_ppo.envs.factory import make
from upgd_ppo.envs.normalization import NormalizeObservation, NormalizeReward

__all__ = ["BatchedMujocoEnv", "NormalizeObservation", "NormalizeReward", "make"]

fill_vector_entry_points()
