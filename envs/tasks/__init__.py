"""Gymnasium's MuJoCo tasks, vectorised, by the id under which Gymnasium registers them."""

from envs.tasks.ant import AntV4, AntV5
from envs.tasks.base import Task
from envs.tasks.half_cheetah import HalfCheetahV4, HalfCheetahV5
from envs.tasks.planar_walkers import HopperV4, HopperV5, Walker2dV4, Walker2dV5

TASKS: dict[str, type[Task]] = {
    "Ant-v4": AntV4,
    "Ant-v5": AntV5,
    "HalfCheetah-v4": HalfCheetahV4,
    "HalfCheetah-v5": HalfCheetahV5,
    "Hopper-v4": HopperV4,
    "Hopper-v5": HopperV5,
    "Walker2d-v4": Walker2dV4,
    "Walker2d-v5": Walker2dV5,
}
