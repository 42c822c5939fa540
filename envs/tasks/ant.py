"""Ant-v4 and Ant-v5: a four-legged robot runs forward and must not jump or flip."""

import math
from types import SimpleNamespace
from typing import Any

import numpy as np
from gymnasium.envs.mujoco import MujocoEnv
from numpy.typing import NDArray

from upgd_ppo.envs.simulation import FloatArray, Simulation
from upgd_ppo.envs.tasks.base import Infos, Outcome, Task, healthy_reward_v4, length, sum_of_squares


class Ant(Task):
    """What both generations share."""

    def __init__(self, env: MujocoEnv, parameters: SimpleNamespace, simulation: Simulation) -> None:
        super().__init__(env, parameters, simulation)
        skip = 2 if parameters.exclude_current_positions_from_observation else 0
        self._observed = simulation.position_and_velocity(skip)
        self._state = simulation.position_and_velocity()
        self._body_positions = simulation.batch.bind("xpos")
        self._main_body = env.model.body(getattr(parameters, "main_body", "torso")).id

    def locate(self) -> FloatArray:
        return self._body_positions[:, self._main_body, :2].copy()

    def contact_forces(self) -> FloatArray:
        """[num_envs, bodies, 6] clipped external forces."""
        return np.clip(self.simulation.cfrc_ext, *self.parameters.contact_force_range)

    def is_healthy(self) -> NDArray[np.bool_]:
        low, high = self.parameters.healthy_z_range
        height = self._state[:, 2]
        healthy = (low <= height) & (height <= high)
        if not math.isfinite(np.add.reduce(self._state, axis=None)):
            healthy &= np.isfinite(self._state).all(axis=1)
        return healthy

    def terminations(self, healthy: NDArray[np.bool_]) -> NDArray[np.bool_] | None:
        return ~healthy if self.parameters.terminate_when_unhealthy else None

    def contact_cost(self) -> FloatArray:
        return self.parameters.contact_cost_weight * sum_of_squares(self.contact_forces())

    def initial_state(self, generator: np.random.Generator) -> tuple[FloatArray, FloatArray]:
        return self.gaussian_velocity_state(generator, self.parameters.reset_noise_scale)


class AntV4(Ant):
    @staticmethod
    def needs_contact_forces(parameters: SimpleNamespace) -> bool:
        return bool(parameters.use_contact_forces)

    def observe(self) -> FloatArray:
        if not self.parameters.use_contact_forces:
            return self._observed.copy()
        forces = self.contact_forces().reshape(self.simulation.num_envs, -1)
        return np.concatenate((self._observed, forces), axis=1)

    def evaluate(self, actions: NDArray[Any], before: FloatArray, after: FloatArray) -> Outcome:
        velocity = (after - before) / self.dt
        x_velocity, y_velocity = velocity[:, 0], velocity[:, 1]
        healthy = self.is_healthy()
        healthy_reward = healthy_reward_v4(healthy, self.parameters)
        costs = control_cost = self.parameters.ctrl_cost_weight * sum_of_squares(actions)
        reported_cost = control_cost
        if self.parameters.use_contact_forces:
            reported_cost = self.contact_cost()
            costs = control_cost + reported_cost

        def infos() -> Infos:
            return {
                "reward_forward": x_velocity,
                "reward_ctrl": -reported_cost,
                "reward_survive": np.full(len(x_velocity), healthy_reward),
                "x_position": after[:, 0].copy(),
                "y_position": after[:, 1].copy(),
                "distance_from_origin": length(after),
                "x_velocity": x_velocity.copy(),
                "y_velocity": y_velocity,
                "forward_reward": x_velocity.copy(),
            }

        return x_velocity + healthy_reward - costs, self.terminations(healthy), infos


class AntV5(Ant):
    @staticmethod
    def needs_contact_forces(parameters: SimpleNamespace) -> bool:
        return True

    def observe(self) -> FloatArray:
        if not self.parameters.include_cfrc_ext_in_observation:
            return self._observed.copy()
        forces = self.contact_forces()[:, 1:].reshape(self.simulation.num_envs, -1)
        return np.concatenate((self._observed, forces), axis=1)

    def evaluate(self, actions: NDArray[Any], before: FloatArray, after: FloatArray) -> Outcome:
        velocity = (after - before) / self.dt
        x_velocity, y_velocity = velocity[:, 0], velocity[:, 1]
        healthy = self.is_healthy()
        forward_reward = x_velocity * self.parameters.forward_reward_weight
        healthy_reward = healthy * self.parameters.healthy_reward
        control_cost = self.parameters.ctrl_cost_weight * sum_of_squares(actions)
        contact_cost = self.contact_cost()

        def infos() -> Infos:
            return self.reset_infos() | {
                "x_velocity": x_velocity,
                "y_velocity": y_velocity,
                "reward_forward": forward_reward,
                "reward_ctrl": -control_cost,
                "reward_contact": -contact_cost,
                "reward_survive": healthy_reward,
            }

        rewards = forward_reward + healthy_reward - (control_cost + contact_cost)
        return rewards, self.terminations(healthy), infos

    def reset_infos(self) -> Infos:
        position = self.simulation.qpos[:, :2]
        return {
            "x_position": position[:, 0].copy(),
            "y_position": position[:, 1].copy(),
            "distance_from_origin": length(position),
        }
