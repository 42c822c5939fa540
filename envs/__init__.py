"""Environments: Gymnasium's, bit for bit, many at a time."""

from envs.batched_mujoco import BatchedMujocoEnv
from envs.entry_points import fill_vector_entry_points
from envs.factory import make
from envs.normalization import NormalizeObservation, NormalizeReward

__all__ = ["BatchedMujocoEnv", "NormalizeObservation", "NormalizeReward", "make"]

fill_vector_entry_points()
