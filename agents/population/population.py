"""A population: S members split into blocks that learn side by side, one process a block.

Because a member does not know how many others there are, how the members are divided among
them changes nothing but the time it takes.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
import torch

from upgd_ppo.agents.command_line.imports import make_after_importing
from upgd_ppo.agents.learners.iteration_report import IterationReport
from upgd_ppo.agents.learners.learner import Learner
from upgd_ppo.agents.learners.make import make_learner
from upgd_ppo.agents.members import join, part
from upgd_ppo.agents.plasticity.inspection import Inspection
from upgd_ppo.agents.population.workers import BlockProcess
from upgd_ppo.agents.settings.config import TrainConfig

LOOKAHEAD = 1
"""Iterations that a block may be further than the first one: none waits for another at the end of
each iteration, where sometimes one and sometimes the other is late."""


class Population:
    """The S members of an arm: itself a `Learner`, of learners of some members each.

    Args:
        config: the arm.

    Attributes:
        learner: the first block, which learns in this process; the others have their own.
        healthy: [S] bool, the members that still learn.

    Raises:
        ValueError: if the environment, the optimizer or one of their settings will not do.
    """

    def __init__(self, config: TrainConfig) -> None:
        self.config = config
        self.seeds = config.member_seeds
        self.healthy = np.ones(len(self.seeds), dtype=bool)
        # Operations are never split across threads: that would make a member's bits depend on
        # how many there are. Members are.
        torch.set_num_threads(1)
        os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")  # of the compiled kernels
        num_blocks = 1 if config.run.device != "cpu" else min(config.threads, len(self.seeds))
        sizes = [len(part) for part in np.array_split(self.seeds, num_blocks)]
        ends = np.cumsum(sizes)
        self._bounds = [(int(end - size), int(end)) for size, end in zip(sizes, ends, strict=True)]
        threads = max(1, config.threads // num_blocks)
        makers = [
            partial(make_learner, config, self.seeds[start:end], threads)
            for start, end in self._bounds
        ]
        self.learner = makers[0]()
        self.name, self.scalars = self.learner.name, self.learner.scalars
        self.performance = self.learner.performance
        self.total_iterations = self.learner.total_iterations
        self.total_steps = self.learner.total_steps
        self.exact_state = self.learner.exact_state
        self._others: list[BlockProcess] = []
        for make in makers[1:]:
            make_there = partial(
                make_after_importing, config.run.env, config.run.opt, partial(_ready, make)
            )
            self._others.append(BlockProcess(make_there, self._others))
        # Asking loads the kernels; the other processes load theirs meanwhile.
        self.why_no_kernels = self.learner.why_no_kernels
        self._begun = self.iteration

    def advance(self) -> IterationReport:
        """One iteration of every member."""
        ahead = min(self.iteration + 1 + LOOKAHEAD, self.total_iterations)
        while self._begun < max(ahead, self.iteration + 1):
            for other in self._others:
                other.begin_iteration()
            self._begun += 1
        reports = [self.learner.advance(), *(other.report() for other in self._others)]
        report = _merge_reports(reports, [start for start, _ in self._bounds])
        self.healthy[[member for member, _ in report.halted]] = False
        return report

    @property
    def iteration(self) -> int:
        """Iterations done."""
        return self.learner.iteration

    @property
    def steps(self) -> int:
        """Steps of each member."""
        return self.learner.steps

    def state_dict(self) -> dict[str, Any]:
        """Everything the members are, member axis first, however they are split into blocks."""
        return join([self.learner.state_dict(), *(other.state_dict() for other in self._others)])

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue from a state that `state_dict` gave, on any number of threads."""
        parts = [part(state, start, end, len(self.seeds)) for start, end in self._bounds]
        self.learner.load_state_dict(parts[0])
        for other, own in zip(self._others, parts[1:], strict=True):
            other.load_state_dict(own)
        self._begun = self.iteration
        self.healthy = state["healthy"].copy()

    def close(self) -> None:
        """End the processes and close the environments."""
        for other in self._others:
            other.close()
        self.learner.close()


def _ready(make: Callable[[], Learner]) -> Learner:
    """A learner whose kernels are loaded."""
    learner = make()
    _ = learner.why_no_kernels
    return learner


def _merge_reports(reports: list[IterationReport], offsets: list[int]) -> IterationReport:
    return IterationReport(
        scalars={
            name: np.concatenate([report.scalars[name] for report in reports])
            for name in reports[0].scalars
        },
        episodes=sorted(
            (
                episode._replace(member=episode.member + offset)
                for report, offset in zip(reports, offsets, strict=True)
                for episode in report.episodes
            ),
            key=lambda episode: (episode.step, episode.member),
        ),
        halted=[
            (member + offset, cause)
            for report, offset in zip(reports, offsets, strict=True)
            for member, cause in report.halted
        ],
        inspection=Inspection.concatenate([report.inspection for report in reports]),
    )
