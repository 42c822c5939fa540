"""Humanoid and HumanoidStandup, v4 and v5: walk forward; get up from the ground."""

from types import SimpleNamespace
from typing import Any

import numpy as np
from gymnasium.envs.mujoco import MujocoEnv
from numpy.typing import NDArray

from upgd_ppo.envs.simulation import FloatArray, Simulation
from upgd_ppo.envs.tasks.base import Infos, Outcome, Task, healthy_reward_v4, length, sum_of_squares


class HumanoidBody(Task):
    """The observation that all four share.

    v5 can leave parts out, and leaves out the world's rows and the root joint's forces, which are
    always zero.
    """

    def __init__(self, env: MujocoEnv, parameters: SimpleNamespace, simulation: Simulation) -> None:
        super().__init__(env, parameters, simulation)
        self._parts = self.observed_parts()

    @staticmethod
    def needs_contact_forces(parameters: SimpleNamespace) -> bool:
        return True

    def observed_parts(self) -> list[FloatArray]:
        """Live [num_envs, ...] arrays that make up the observation, in order."""
        bind = self.simulation.batch.bind
        bodies = [bind("cinert"), bind("cvel"), bind("qfrc_actuator"), self.simulation.cfrc_ext]
        excluded = getattr(self.parameters, "exclude_current_positions_from_observation", True)
        return [self.simulation.position_and_velocity(skip=2 if excluded else 0), *bodies]

    def observe(self) -> FloatArray:
        rows = self.simulation.num_envs
        return np.concatenate([part.reshape(rows, -1) for part in self._parts], axis=1)

    def control_cost(self, weight: float) -> FloatArray:
        return weight * sum_of_squares(self.simulation.ctrl)


class HumanoidBodyV5(HumanoidBody):
    def __init__(self, env: MujocoEnv, parameters: SimpleNamespace, simulation: Simulation) -> None:
        super().__init__(env, parameters, simulation)
        self._tendon_lengths = simulation.batch.bind("ten_length")
        self._tendon_velocities = simulation.batch.bind("ten_velocity")

    def observed_parts(self) -> list[FloatArray]:
        state, cinert, cvel, qfrc_actuator, cfrc_ext = super().observed_parts()
        optional = {
            "include_cinert_in_observation": cinert[:, 1:],
            "include_cvel_in_observation": cvel[:, 1:],
            "include_qfrc_actuator_in_observation": qfrc_actuator[:, 6:],
            "include_cfrc_ext_in_observation": cfrc_ext[:, 1:],
        }
        # Gymnasium tests for the object True itself.
        included = [
            part for name, part in optional.items() if getattr(self.parameters, name) is True
        ]
        return [state, *included]

    def tendon_infos(self) -> Infos:
        return {
            "tendon_length": self._tendon_lengths.copy(),
            "tendon_velocity": self._tendon_velocities.copy(),
        }


class Humanoid(HumanoidBody):
    """Walking: what both generations share."""

    def __init__(self, env: MujocoEnv, parameters: SimpleNamespace, simulation: Simulation) -> None:
        super().__init__(env, parameters, simulation)
        self._body_centers = simulation.batch.bind("xipos")
        self._masses = env.model.body_mass.copy()
        self._total_mass = self._masses.sum()

    def locate(self) -> FloatArray:
        """[num_envs, 2] the centre of mass over the ground."""
        weighted = np.einsum("b,nbj->nj", self._masses, self._body_centers)
        return (weighted / self._total_mass)[:, :2].copy()

    def is_healthy(self) -> NDArray[np.bool_]:
        low, high = self.parameters.healthy_z_range
        height = self.simulation.qpos[:, 2]
        return (low < height) & (height < high)

    def terminations(self, healthy: NDArray[np.bool_]) -> NDArray[np.bool_] | None:
        return ~healthy if self.parameters.terminate_when_unhealthy else None

    def initial_state(self, generator: np.random.Generator) -> tuple[FloatArray, FloatArray]:
        return self.uniform_state(generator, self.parameters.reset_noise_scale)


class HumanoidV4(Humanoid):
    def evaluate(self, actions: NDArray[Any], before: FloatArray, after: FloatArray) -> Outcome:
        velocity = (after - before) / self.dt
        healthy = self.is_healthy()
        healthy_reward = healthy_reward_v4(healthy, self.parameters)
        control_cost = self.control_cost(self.parameters.ctrl_cost_weight)
        forward_reward = self.parameters.forward_reward_weight * velocity[:, 0]

        def infos() -> Infos:
            return {
                "reward_linvel": forward_reward,
                "reward_quadctrl": -control_cost,
                "reward_alive": np.full(len(forward_reward), healthy_reward),
                "x_position": after[:, 0].copy(),
                "y_position": after[:, 1].copy(),
                "distance_from_origin": length(after),
                "x_velocity": velocity[:, 0],
                "y_velocity": velocity[:, 1],
                "forward_reward": forward_reward.copy(),
            }

        rewards = forward_reward + healthy_reward - control_cost
        return rewards, self.terminations(healthy), infos


class HumanoidV5(HumanoidBodyV5, Humanoid):
    def contact_cost(self) -> FloatArray:
        low, high = self.parameters.contact_cost_range
        cost = self.parameters.contact_cost_weight * sum_of_squares(self.simulation.cfrc_ext)
        return np.clip(cost, low, high)

    def evaluate(self, actions: NDArray[Any], before: FloatArray, after: FloatArray) -> Outcome:
        velocity = (after - before) / self.dt
        healthy = self.is_healthy()
        forward_reward = self.parameters.forward_reward_weight * velocity[:, 0]
        healthy_reward = healthy * self.parameters.healthy_reward
        control_cost = self.control_cost(self.parameters.ctrl_cost_weight)
        contact_cost = self.contact_cost()

        def infos() -> Infos:
            return self.reset_infos() | {
                "x_velocity": velocity[:, 0],
                "y_velocity": velocity[:, 1],
                "reward_survive": healthy_reward,
                "reward_forward": forward_reward,
                "reward_ctrl": -control_cost,
                "reward_contact": -contact_cost,
            }

        rewards = forward_reward + healthy_reward - (control_cost + contact_cost)
        return rewards, self.terminations(healthy), infos

    def reset_infos(self) -> Infos:
        position = self.simulation.qpos[:, :2]
        return self.tendon_infos() | {
            "x_position": position[:, 0].copy(),
            "y_position": position[:, 1].copy(),
            "distance_from_origin": length(position),
        }


class HumanoidStandupV4(HumanoidBody):
    def evaluate(self, actions: NDArray[Any], before: FloatArray, after: FloatArray) -> Outcome:
        control_cost = self.control_cost(0.1)
        impact_cost = np.minimum(0.5e-6 * sum_of_squares(self.simulation.cfrc_ext), 10)
        return self.stand_up(control_cost, impact_cost)

    def stand_up(self, control_cost: FloatArray, impact_cost: FloatArray) -> Outcome:
        """The reward of getting up: height over the simulation's (not the task's) time step."""
        height_reward = self.simulation.qpos[:, 2] / self.model.opt.timestep

        def infos() -> Infos:
            return {
                "reward_linup": height_reward,
                "reward_quadctrl": -control_cost,
                "reward_impact": -impact_cost,
            }

        return height_reward - control_cost - impact_cost + 1, None, infos

    def initial_state(self, generator: np.random.Generator) -> tuple[FloatArray, FloatArray]:
        return self.uniform_state(generator, 0.01)


class HumanoidStandupV5(HumanoidBodyV5, HumanoidStandupV4):
    def evaluate(self, actions: NDArray[Any], before: FloatArray, after: FloatArray) -> Outcome:
        parameters = self.parameters
        control_cost = self.control_cost(parameters.ctrl_cost_weight)
        impact = parameters.impact_cost_weight * sum_of_squares(self.simulation.cfrc_ext)
        impact_cost = np.clip(impact, *parameters.impact_cost_range)
        rewards, terminations, infos = self.stand_up(control_cost, impact_cost)
        return rewards, terminations, lambda: self.reset_infos() | infos()

    def reset_infos(self) -> Infos:
        qpos = self.simulation.qpos
        return self.tendon_infos() | {
            "x_position": qpos[:, 0].copy(),
            "y_position": qpos[:, 1].copy(),
            "z_distance_from_origin": qpos[:, 2] - self.init_qpos[2],
        }

    def initial_state(self, generator: np.random.Generator) -> tuple[FloatArray, FloatArray]:
        return self.uniform_state(generator, self.parameters.reset_noise_scale)
