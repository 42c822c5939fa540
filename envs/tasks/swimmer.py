"""Swimmer-v4 and Swimmer-v5: swim forward in a plane."""

from types import SimpleNamespace
from typing import Any

import numpy as np
from gymnasium.envs.mujoco import MujocoEnv
from numpy.typing import NDArray

from upgd_ppo.envs.simulation import FloatArray, Simulation
from upgd_ppo.envs.tasks.base import Infos, Outcome, Task, length, sum_of_squares


class SwimmerV4(Task):
    def __init__(self, env: MujocoEnv, parameters: SimpleNamespace, simulation: Simulation) -> None:
        super().__init__(env, parameters, simulation)
        skip = 2 if parameters.exclude_current_positions_from_observation else 0
        self._observed = simulation.position_and_velocity(skip)

    def locate(self) -> FloatArray:
        return self.simulation.qpos[:, :2].copy()

    def observe(self) -> FloatArray:
        return self._observed.copy()

    def evaluate(self, actions: NDArray[Any], before: FloatArray, after: FloatArray) -> Outcome:
        velocity = (after - before) / self.dt
        forward_reward = self.parameters.forward_reward_weight * velocity[:, 0]
        control_cost = self.parameters.ctrl_cost_weight * sum_of_squares(actions)

        def infos() -> Infos:
            return {
                "x_position": after[:, 0].copy(),
                "y_position": after[:, 1].copy(),
                "distance_from_origin": length(after),
                "x_velocity": velocity[:, 0],
                "y_velocity": velocity[:, 1],
                "reward_ctrl": -control_cost,
                **self.forward_infos(forward_reward),
            }

        return forward_reward - control_cost, None, infos

    def forward_infos(self, forward_reward: FloatArray) -> Infos:
        return {"reward_fwd": forward_reward, "forward_reward": forward_reward.copy()}

    def initial_state(self, generator: np.random.Generator) -> tuple[FloatArray, FloatArray]:
        return self.uniform_state(generator, self.parameters.reset_noise_scale)


class SwimmerV5(SwimmerV4):
    def forward_infos(self, forward_reward: FloatArray) -> Infos:
        return {"reward_forward": forward_reward}

    def reset_infos(self) -> Infos:
        position = self.locate()
        return {
            "x_position": position[:, 0],
            "y_position": position[:, 1],
            "distance_from_origin": length(position),
        }
