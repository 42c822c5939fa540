"""Hopper and Walker2d, v4 and v5: planar legged robots that must not fall."""

from types import SimpleNamespace
from typing import Any

import numpy as np
from gymnasium.envs.mujoco import MujocoEnv
from numpy.typing import NDArray

from upgd_ppo.envs.simulation import FloatArray, Simulation
from upgd_ppo.envs.tasks.base import Infos, Outcome, Task, healthy_reward_v4, sum_of_squares


class PlanarWalker(Task):
    """What Hopper and Walker2d share; they differ in `is_healthy`."""

    def __init__(self, env: MujocoEnv, parameters: SimpleNamespace, simulation: Simulation) -> None:
        super().__init__(env, parameters, simulation)
        self._state = simulation.position_and_velocity()
        skip = 1 if parameters.exclude_current_positions_from_observation else 0
        self._observed = simulation.position_and_velocity(skip)
        self._velocities = slice(self.model.nq - skip, None)

    def is_healthy(self) -> NDArray[np.bool_]:
        raise NotImplementedError

    def healthy_reward(self, healthy: NDArray[np.bool_]) -> NDArray[Any] | float:
        raise NotImplementedError

    def step_infos(self, infos: dict[str, Any]) -> Infos:
        raise NotImplementedError

    def locate(self) -> FloatArray:
        return self.simulation.qpos[:, 0].copy()

    def observe(self) -> FloatArray:
        observations = self._observed.copy()
        velocities = observations[:, self._velocities]
        np.minimum(np.maximum(velocities, -10.0, out=velocities), 10.0, out=velocities)
        return observations

    def evaluate(self, actions: NDArray[Any], before: FloatArray, after: FloatArray) -> Outcome:
        x_velocity = (after - before) / self.dt
        healthy = self.is_healthy()
        forward_reward = self.parameters.forward_reward_weight * x_velocity
        healthy_reward = self.healthy_reward(healthy)
        control_cost = self.parameters.ctrl_cost_weight * sum_of_squares(actions)
        rewards = forward_reward + healthy_reward - control_cost
        terminations = ~healthy if self.parameters.terminate_when_unhealthy else None

        def infos() -> Infos:
            return self.step_infos(
                {
                    "x_position": after.copy(),
                    "x_velocity": x_velocity,
                    "reward_forward": forward_reward,
                    "reward_ctrl": -control_cost,
                    "reward_survive": healthy_reward,
                }
            )

        return rewards, terminations, infos

    def initial_state(self, generator: np.random.Generator) -> tuple[FloatArray, FloatArray]:
        return self.uniform_state(generator, self.parameters.reset_noise_scale)

    def within(self, values: FloatArray, bounds: tuple[float, float]) -> NDArray[np.bool_]:
        low, high = bounds
        return (low < values) & (values < high)


class GenerationV4(PlanarWalker):
    """v4 reports little."""

    def healthy_reward(self, healthy: NDArray[np.bool_]) -> NDArray[Any] | float:
        return healthy_reward_v4(healthy, self.parameters)

    def step_infos(self, infos: dict[str, Any]) -> Infos:
        return {key: infos[key] for key in ("x_position", "x_velocity")}


class GenerationV5(PlanarWalker):
    """v5 rewards healthy robots only, and reports more."""

    def healthy_reward(self, healthy: NDArray[np.bool_]) -> NDArray[Any]:
        return healthy * self.parameters.healthy_reward

    def step_infos(self, infos: dict[str, Any]) -> Infos:
        height = self.simulation.qpos[:, 1] - self.init_qpos[1]
        return infos | {"z_distance_from_origin": height}

    def reset_infos(self) -> Infos:
        return {
            "x_position": self.simulation.qpos[:, 0].copy(),
            "z_distance_from_origin": self.simulation.qpos[:, 1] - self.init_qpos[1],
        }


class Hopper(PlanarWalker):
    def is_healthy(self) -> NDArray[np.bool_]:
        qpos = self.simulation.qpos
        return (
            self.within(self._state[:, 2:], self.parameters.healthy_state_range).all(axis=1)
            & self.within(qpos[:, 1], self.parameters.healthy_z_range)
            & self.within(qpos[:, 2], self.parameters.healthy_angle_range)
        )


class Walker2d(PlanarWalker):
    def is_healthy(self) -> NDArray[np.bool_]:
        qpos = self.simulation.qpos
        return self.within(qpos[:, 1], self.parameters.healthy_z_range) & self.within(
            qpos[:, 2], self.parameters.healthy_angle_range
        )


class HopperV4(GenerationV4, Hopper):
    pass


class HopperV5(GenerationV5, Hopper):
    pass


class Walker2dV4(GenerationV4, Walker2d):
    pass


class Walker2dV5(GenerationV5, Walker2d):
    pass
