"""Gymnasium's MuJoCo tasks, vectorised, by the id under which Gymnasium registers them."""

from upgd_ppo.envs.tasks.ant import AntV4, AntV5
from upgd_ppo.envs.tasks.arms import PusherV5, ReacherV4, ReacherV5
from upgd_ppo.envs.tasks.base import Task
from upgd_ppo.envs.tasks.half_cheetah import HalfCheetahV4, HalfCheetahV5
from upgd_ppo.envs.tasks.humanoid import (
    HumanoidStandupV4,
    HumanoidStandupV5,
    HumanoidV4,
    HumanoidV5,
)
from upgd_ppo.envs.tasks.pendulums import (
    InvertedDoublePendulumV4,
    InvertedDoublePendulumV5,
    InvertedPendulumV4,
    InvertedPendulumV5,
)
from upgd_ppo.envs.tasks.planar_walkers import HopperV4, HopperV5, Walker2dV4, Walker2dV5
from upgd_ppo.envs.tasks.swimmer import SwimmerV4, SwimmerV5

# Pusher-v4 is missing: Gymnasium itself refuses it with MuJoCo 3 and later.
TASKS: dict[str, type[Task]] = {
    "Ant-v4": AntV4,
    "Ant-v5": AntV5,
    "HalfCheetah-v4": HalfCheetahV4,
    "HalfCheetah-v5": HalfCheetahV5,
    "Hopper-v4": HopperV4,
    "Hopper-v5": HopperV5,
    "Humanoid-v4": HumanoidV4,
    "Humanoid-v5": HumanoidV5,
    "HumanoidStandup-v4": HumanoidStandupV4,
    "HumanoidStandup-v5": HumanoidStandupV5,
    "InvertedDoublePendulum-v4": InvertedDoublePendulumV4,
    "InvertedDoublePendulum-v5": InvertedDoublePendulumV5,
    "InvertedPendulum-v4": InvertedPendulumV4,
    "InvertedPendulum-v5": InvertedPendulumV5,
    "Pusher-v5": PusherV5,
    "Reacher-v4": ReacherV4,
    "Reacher-v5": ReacherV5,
    "Swimmer-v4": SwimmerV4,
    "Swimmer-v5": SwimmerV5,
    "Walker2d-v4": Walker2dV4,
    "Walker2d-v5": Walker2dV5,
}
