"""What a task is: observation, reward, termination and reset noise over all sub-environments."""

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import numpy as np
from gymnasium.envs.mujoco import MujocoEnv
from numpy.typing import NDArray

from upgd_ppo.envs.simulation import FloatArray, Simulation

Infos = dict[str, NDArray[Any]]
Outcome = tuple[NDArray[Any], NDArray[np.bool_] | None, Callable[[], Infos]]


class Task:
    """A Gymnasium MuJoCo task, vectorised; every result equals Gymnasium's bit for bit.

    Results are bit-identical only if floating-point operations happen in Gymnasium's order and
    precision, so formulas here are Gymnasium's own, term by term (for example, the control cost
    of float32 actions is a float32 sum).

    Args:
        env: one environment of Gymnasium's, for its model, spaces and initial state.
        parameters: the keyword arguments of Gymnasium's constructor, defaults filled in.
        simulation: the physics of all sub-environments.
    """

    def __init__(self, env: MujocoEnv, parameters: SimpleNamespace, simulation: Simulation) -> None:
        self.parameters = parameters
        self.simulation = simulation
        self.model = env.model
        self.dt = env.dt
        self.init_qpos: FloatArray = env.init_qpos.copy()
        self.init_qvel: FloatArray = env.init_qvel.copy()

    @staticmethod
    def needs_contact_forces(parameters: SimpleNamespace) -> bool:
        """Whether the task reads `cfrc_ext`."""
        return False

    def locate(self) -> FloatArray:
        """[num_envs, ...] what the reward compares before and after a step; a new array."""
        return np.zeros((self.simulation.num_envs, 0))

    def observe(self) -> FloatArray:
        """[num_envs, size] the observations, a new array."""
        raise NotImplementedError

    def evaluate(self, actions: NDArray[Any], before: FloatArray, after: FloatArray) -> Outcome:
        """Rewards [num_envs], terminations [num_envs] (None: never) and infos of a step.

        `before` and `after` are what `locate` returned before and after it. All are new arrays.
        Infos come as a function to call before the next step or reset, for whom they are of use.
        """
        raise NotImplementedError

    def reset_infos(self) -> Infos:
        """Infos of a reset, each [num_envs, ...] and a new array."""
        return {}

    def initial_state(self, generator: np.random.Generator) -> tuple[FloatArray, FloatArray]:
        """Positions [nq] and velocities [nv] of one sub-environment at its reset."""
        raise NotImplementedError

    def uniform_state(
        self, generator: np.random.Generator, scale: float
    ) -> tuple[FloatArray, FloatArray]:
        """Uniform noise on positions and velocities."""
        qpos = self.init_qpos + generator.uniform(low=-scale, high=scale, size=self.model.nq)
        qvel = self.init_qvel + generator.uniform(low=-scale, high=scale, size=self.model.nv)
        return qpos, qvel

    def gaussian_velocity_state(
        self, generator: np.random.Generator, scale: float
    ) -> tuple[FloatArray, FloatArray]:
        """Uniform noise on positions, Gaussian noise on velocities."""
        qpos = self.init_qpos + generator.uniform(low=-scale, high=scale, size=self.model.nq)
        qvel = self.init_qvel + scale * generator.standard_normal(self.model.nv)
        return qpos, qvel


def healthy_reward_v4(
    healthy: NDArray[np.bool_], parameters: SimpleNamespace
) -> NDArray[np.float64] | float:
    """Generation 4 rewards a fallen robot too, [num_envs] or for all alike, when falling ends
    the episode."""
    survives = 1.0 if parameters.terminate_when_unhealthy else healthy.astype(np.float64)
    return survives * parameters.healthy_reward


def sum_of_squares(values: NDArray[Any]) -> NDArray[Any]:
    """[num_envs] the sum of squares over all other axes, in the precision of `values`."""
    squares = np.square(values)
    return np.add.reduce(squares.reshape(len(squares), -1), axis=1)


def length(vectors: FloatArray) -> FloatArray:
    """[num_envs] Euclidean norm of each row, by the same BLAS product as `np.linalg.norm`."""
    return np.sqrt(np.vecdot(vectors, vectors))
