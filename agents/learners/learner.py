"""What a runner drives: the contract that every learner keeps, and how it names what it tells."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from numpy.typing import NDArray

from upgd_ppo.agents.learners.iteration_report import IterationReport


@dataclass(frozen=True)
class Scalar:
    """One number that a learner tells of every member after every iteration.

    Attributes:
        name: in `IterationReport.scalars` and in the records.
        tag: in TensorBoard.
        factor: TensorBoard shows the value times this.
        band: title of its band over seeds on the dashboard's first page; None for no band.
    """

    name: str
    tag: str
    factor: float = 1.0
    band: str | None = None


class WorkerDiedError(RuntimeError):
    """A process that some of the members learn in is gone: something outside of Python ended it."""


class Learner(Protocol):
    """S members that learn in lockstep, whatever they learn.

    Telemetry, dashboard, early warnings and progress iterate over `scalars` and know no learner by
    its name. Everything in a state has the member axis first, or is marked as common to all
    members: see `upgd_ppo.agents.members`.
    """

    @property
    def name(self) -> str:
        """What its scalars belong to in the records, such as "ppo"."""

    @property
    def scalars(self) -> Sequence[Scalar]:
        """What it tells after every iteration. Bands are shown in this order."""

    @property
    def performance(self) -> str:
        """What an episode's return is, in a word."""

    @property
    def seeds(self) -> list[int]:
        """The seed of each member."""

    @property
    def iteration(self) -> int:
        """Iterations done."""

    @property
    def total_iterations(self) -> int:
        """Iterations of the whole run."""

    @property
    def steps(self) -> int:
        """Steps of each member: of its environments, or samples of its stream."""

    @property
    def total_steps(self) -> int:
        """Steps of each member in the end."""

    @property
    def healthy(self) -> NDArray:
        """[S] bool, the members that still learn."""

    @property
    def exact_state(self) -> bool:
        """Whether a restored learner goes on exactly as it would have."""

    @property
    def why_no_kernels(self) -> str | None:
        """What keeps the compiled kernels from being used; None if nothing."""

    def advance(self) -> IterationReport:
        """One iteration, and what it gave."""

    def state_dict(self) -> dict[str, Any]:
        """State out, between two iterations."""

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """State in."""

    def close(self) -> None:
        """Let go of processes and environments."""
