"""HalfCheetah-v4 and HalfCheetah-v5: run forward on a plane."""

from types import SimpleNamespace
from typing import Any

import numpy as np
from gymnasium.envs.mujoco import MujocoEnv
from numpy.typing import NDArray

from upgd_ppo.envs.simulation import FloatArray, Simulation
from upgd_ppo.envs.tasks.base import Infos, Outcome, Task, sum_of_squares


class HalfCheetahV4(Task):
    forward_info = "reward_run"

    def __init__(self, env: MujocoEnv, parameters: SimpleNamespace, simulation: Simulation) -> None:
        super().__init__(env, parameters, simulation)
        skip = 1 if parameters.exclude_current_positions_from_observation else 0
        self._observed = simulation.position_and_velocity(skip)

    def locate(self) -> FloatArray:
        return self.simulation.qpos[:, 0].copy()

    def observe(self) -> FloatArray:
        return self._observed.copy()

    def evaluate(self, actions: NDArray[Any], before: FloatArray, after: FloatArray) -> Outcome:
        x_velocity = (after - before) / self.dt
        forward_reward = self.parameters.forward_reward_weight * x_velocity
        control_cost = self.parameters.ctrl_cost_weight * sum_of_squares(actions)

        def infos() -> Infos:
            return {
                "x_position": after.copy(),
                "x_velocity": x_velocity,
                self.forward_info: forward_reward,
                "reward_ctrl": -control_cost,
            }

        return forward_reward - control_cost, None, infos

    def initial_state(self, generator: np.random.Generator) -> tuple[FloatArray, FloatArray]:
        return self.gaussian_velocity_state(generator, self.parameters.reset_noise_scale)


class HalfCheetahV5(HalfCheetahV4):
    forward_info = "reward_forward"

    def reset_infos(self) -> Infos:
        return {"x_position": self.simulation.qpos[:, 0].copy()}
