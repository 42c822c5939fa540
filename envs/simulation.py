"""The physics under the vectorised tasks: one MuJoCo simulation per sub-environment."""

from collections.abc import Callable

import mujoco
import numpy as np
from mujoco.batch import Batch, SimulationError
from numpy.typing import NDArray

FloatArray = NDArray[np.float64]
Ids = NDArray[np.int32]
Failures = dict[int, str]


class Simulation:
    """Live arrays over a `mujoco.batch.Batch`, stepped and reset as Gymnasium does it.

    Args:
        model: the MuJoCo model, shared by all simulations.
        num_envs: how many simulations.
        threads: native threads that step them; results do not depend on it.
        contact_forces: compute `cfrc_ext` after each step. MuJoCo's step leaves it out, so each
            simulation then needs a pass of its own (about 10 microseconds).

    Attributes:
        state: [num_envs, n] the whole integration state; a row is one simulation.
        qpos, qvel, ctrl: [num_envs, n] views of `state`.
        cfrc_ext: [num_envs, bodies, 6] external forces on the bodies, zero after a reset.
    """

    def __init__(
        self, model: mujoco.MjModel, num_envs: int, threads: int, contact_forces: bool
    ) -> None:
        self.batch = Batch(model, num_envs, threads, persistent=contact_forces)
        self.model = model
        self.num_envs = num_envs
        self.state: FloatArray = self.batch.state
        self.qpos: FloatArray = self.batch.bind("qpos")
        self.qvel: FloatArray = self.batch.bind("qvel")
        self.ctrl: FloatArray = self.batch.bind("ctrl")
        self.cfrc_ext: FloatArray = np.zeros((num_envs, model.nbody, 6))
        self._contact_forces = contact_forces
        self._scratch = mujoco.MjData(model)
        self._scratch_forces = self._scratch.cfrc_ext

    def position_and_velocity(self, skip: int = 0) -> FloatArray:
        """[num_envs, nq - skip + nv] live view of qpos without its first entries, then qvel."""
        # A state row starts with time, qpos, qvel.
        start = mujoco.mj_stateSize(self.model, mujoco.mjtState.mjSTATE_TIME)
        return self.state[:, start + skip : start + self.model.nq + self.model.nv]

    def step(self, substeps: int, ids: Ids | None) -> Failures:
        """Advance the simulations `ids` (None: all); returns the messages of those that failed.

        A simulation in which MuJoCo raises keeps the state it had; the others are not affected.
        """
        failures = self._attempt(lambda: self.batch.step(ids, substeps))
        if self._contact_forces:
            for i in range(self.num_envs) if ids is None else ids:
                self.batch.get_data(i, self._scratch)
                mujoco.mj_rnePostConstraint(self.model, self._scratch)
                self.cfrc_ext[i] = self._scratch_forces
        return failures

    def reset(self, ids: Ids, qpos: FloatArray, qvel: FloatArray) -> Failures:
        """Put the simulations `ids` into the given positions and velocities, all else default."""
        self.batch.reset(ids, stage=mujoco.mjtStage.mjSTAGE_NONE.value)
        self.qpos[ids] = qpos
        self.qvel[ids] = qvel
        self.cfrc_ext[ids] = 0.0
        return self._attempt(lambda: self.batch.forward(ids))

    def _attempt(self, call: Callable[[], None]) -> Failures:
        try:
            call()
        except SimulationError as error:
            return {int(i): self.batch.error(int(i)) for i in error.ids}
        return {}
