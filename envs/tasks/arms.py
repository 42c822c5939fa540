"""Reacher-v4, Reacher-v5 and Pusher-v5: arms that reach a target or push an object to a goal."""

from types import SimpleNamespace
from typing import Any

import numpy as np
from gymnasium.envs.mujoco import MujocoEnv
from numpy.typing import NDArray

from upgd_ppo.envs.simulation import FloatArray, Simulation
from upgd_ppo.envs.tasks.base import Infos, Outcome, Task, length, sum_of_squares


class Arm(Task):
    """What they share: positions of named bodies."""

    def __init__(self, env: MujocoEnv, parameters: SimpleNamespace, simulation: Simulation) -> None:
        super().__init__(env, parameters, simulation)
        self._body_positions = simulation.batch.bind("xpos")

    def body(self, name: str) -> FloatArray:
        """[num_envs, 3] live positions of a body."""
        return self._body_positions[:, self.model.body(name).id]


class Reacher(Arm):
    def __init__(self, env: MujocoEnv, parameters: SimpleNamespace, simulation: Simulation) -> None:
        super().__init__(env, parameters, simulation)
        self._fingertip, self._target = self.body("fingertip"), self.body("target")

    def locate(self) -> FloatArray:
        """[num_envs, 3] from the target to the fingertip."""
        return self._fingertip - self._target

    def observe(self) -> FloatArray:
        qpos, qvel = self.simulation.qpos, self.simulation.qvel
        angles = qpos[:, :2].copy()
        parts = (np.cos(angles), np.sin(angles), qpos[:, 2:], qvel[:, :2], self.observed_offset())
        return np.concatenate(parts, axis=1)

    def observed_offset(self) -> FloatArray:
        raise NotImplementedError

    def initial_state(self, generator: np.random.Generator) -> tuple[FloatArray, FloatArray]:
        qpos = generator.uniform(low=-0.1, high=0.1, size=self.model.nq) + self.init_qpos
        while True:
            goal = generator.uniform(low=-0.2, high=0.2, size=2)
            if np.linalg.norm(goal) < 0.2:
                break
        qpos[-2:] = goal
        qvel = self.init_qvel + generator.uniform(low=-0.005, high=0.005, size=self.model.nv)
        qvel[-2:] = 0
        return qpos, qvel


class ReacherV4(Reacher):
    def observed_offset(self) -> FloatArray:
        return self.locate()

    def evaluate(self, actions: NDArray[Any], before: FloatArray, after: FloatArray) -> Outcome:
        distance_reward = -length(before)  # v4 rewards where the step began
        control_reward = -sum_of_squares(actions)

        def infos() -> Infos:
            return {"reward_dist": distance_reward, "reward_ctrl": control_reward}

        return distance_reward + control_reward, None, infos


class ReacherV5(Reacher):
    def observed_offset(self) -> FloatArray:
        return self.locate()[:, :2]

    def evaluate(self, actions: NDArray[Any], before: FloatArray, after: FloatArray) -> Outcome:
        distance_reward = -length(after) * self.parameters.reward_dist_weight
        control_reward = -sum_of_squares(actions) * self.parameters.reward_control_weight

        def infos() -> Infos:
            return {"reward_dist": distance_reward, "reward_ctrl": control_reward}

        return distance_reward + control_reward, None, infos


class PusherV5(Arm):
    def __init__(self, env: MujocoEnv, parameters: SimpleNamespace, simulation: Simulation) -> None:
        super().__init__(env, parameters, simulation)
        self._tip, self._object, self._goal = (
            self.body(name) for name in ("tips_arm", "object", "goal")
        )

    def observe(self) -> FloatArray:
        qpos, qvel = self.simulation.qpos, self.simulation.qvel
        parts = (qpos[:, :7], qvel[:, :7], self._tip, self._object, self._goal)
        return np.concatenate(parts, axis=1)

    def evaluate(self, actions: NDArray[Any], before: FloatArray, after: FloatArray) -> Outcome:
        parameters = self.parameters
        near_reward = -length(self._object - self._tip) * parameters.reward_near_weight
        distance_reward = -length(self._object - self._goal) * parameters.reward_dist_weight
        control_reward = -sum_of_squares(actions) * parameters.reward_control_weight

        def infos() -> Infos:
            return {
                "reward_dist": distance_reward,
                "reward_ctrl": control_reward,
                "reward_near": near_reward,
            }

        return distance_reward + control_reward + near_reward, None, infos

    def initial_state(self, generator: np.random.Generator) -> tuple[FloatArray, FloatArray]:
        qpos = self.init_qpos.copy()
        while True:
            x = generator.uniform(low=-0.3, high=0, size=1)
            y = generator.uniform(low=-0.2, high=0.2, size=1)
            cylinder = np.concatenate([x, y])
            if np.linalg.norm(cylinder) > 0.17:
                break
        qpos[-4:-2] = cylinder
        qpos[-2:] = 0
        qvel = self.init_qvel + generator.uniform(low=-0.005, high=0.005, size=self.model.nv)
        qvel[-4:] = 0
        return qpos, qvel
