"""InvertedPendulum and InvertedDoublePendulum, v4 and v5: balance poles on a cart."""

from types import SimpleNamespace
from typing import Any

import numpy as np
from gymnasium.envs.mujoco import MujocoEnv
from numpy.typing import NDArray

from upgd_ppo.envs.simulation import FloatArray, Simulation
from upgd_ppo.envs.tasks.base import Infos, Outcome, Task


class InvertedPendulumV4(Task):
    def __init__(self, env: MujocoEnv, parameters: SimpleNamespace, simulation: Simulation) -> None:
        super().__init__(env, parameters, simulation)
        self._observed = simulation.position_and_velocity()

    def observe(self) -> FloatArray:
        return self._observed.copy()

    def fallen(self) -> NDArray[np.bool_]:
        return ~np.isfinite(self._observed).all(axis=1) | (np.abs(self._observed[:, 1]) > 0.2)

    def evaluate(self, actions: NDArray[Any], before: FloatArray, after: FloatArray) -> Outcome:
        return np.ones(self.simulation.num_envs), self.fallen(), dict

    def initial_state(self, generator: np.random.Generator) -> tuple[FloatArray, FloatArray]:
        return self.uniform_state(generator, 0.01)


class InvertedPendulumV5(InvertedPendulumV4):
    def evaluate(self, actions: NDArray[Any], before: FloatArray, after: FloatArray) -> Outcome:
        fallen = self.fallen()

        def infos() -> Infos:
            return {"reward_survive": (~fallen).astype(int)}

        return (~fallen).astype(np.float64), fallen, infos

    def initial_state(self, generator: np.random.Generator) -> tuple[FloatArray, FloatArray]:
        return self.uniform_state(generator, self.parameters.reset_noise_scale)


class DoublePendulum(Task):
    def __init__(self, env: MujocoEnv, parameters: SimpleNamespace, simulation: Simulation) -> None:
        super().__init__(env, parameters, simulation)
        self._tip = simulation.batch.bind("site_xpos")[:, 0]
        self._constraint_forces = simulation.batch.bind("qfrc_constraint")
        self._observed_forces = slice(None)

    def observe(self) -> FloatArray:
        qpos, qvel = self.simulation.qpos, self.simulation.qvel
        angles = qpos[:, 1:].copy()
        forces = np.clip(self._constraint_forces, -10, 10)[:, self._observed_forces]
        parts = (qpos[:, :1], np.sin(angles), np.cos(angles), np.clip(qvel, -10, 10), forces)
        return np.concatenate(parts, axis=1)

    def penalties(self) -> tuple[FloatArray, FloatArray]:
        """[num_envs] each: for the tip's distance from upright, and for the poles' speed."""
        x, y = self._tip[:, 0], self._tip[:, 2]
        v1, v2 = self.simulation.qvel[:, 1], self.simulation.qvel[:, 2]
        distance = 0.01 * scalar_squares(x) + scalar_squares(y - 2)
        speed = 1e-3 * scalar_squares(v1) + 5e-3 * scalar_squares(v2)
        return distance, speed

    def fallen(self) -> NDArray[np.bool_]:
        return self._tip[:, 2] <= 1


class InvertedDoublePendulumV4(DoublePendulum):
    def evaluate(self, actions: NDArray[Any], before: FloatArray, after: FloatArray) -> Outcome:
        distance, speed = self.penalties()
        return 10 - distance - speed, self.fallen(), dict

    def initial_state(self, generator: np.random.Generator) -> tuple[FloatArray, FloatArray]:
        return self.gaussian_velocity_state(generator, 0.1)


class InvertedDoublePendulumV5(DoublePendulum):
    def __init__(self, env: MujocoEnv, parameters: SimpleNamespace, simulation: Simulation) -> None:
        super().__init__(env, parameters, simulation)
        self._observed_forces = slice(0, 1)

    def evaluate(self, actions: NDArray[Any], before: FloatArray, after: FloatArray) -> Outcome:
        distance, speed = self.penalties()
        fallen = self.fallen()
        alive = self.parameters.healthy_reward * (~fallen).astype(int)

        def infos() -> Infos:
            return {
                "reward_survive": alive,
                "distance_penalty": -distance,
                "velocity_penalty": -speed,
            }

        return alive - distance - speed, fallen, infos

    def initial_state(self, generator: np.random.Generator) -> tuple[FloatArray, FloatArray]:
        return self.gaussian_velocity_state(generator, self.parameters.reset_noise_scale)


def scalar_squares(values: FloatArray) -> FloatArray:
    """Squares by the C library's `pow`, as NumPy scalars' `x**2`; arrays' `x**2` is `x * x`.

    The two differ in the last bit for one value in a thousand.
    """
    return np.array([value**2 for value in values.tolist()])
