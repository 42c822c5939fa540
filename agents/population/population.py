"""A population: S members split into blocks that learn side by side, one process a block.

Because a member does not know how many others there are, how the members are divided among
them changes nothing but the time it takes.
"""

from __future__ import annotations

import math
import os
from functools import partial
from typing import Any

import numpy as np
import torch
from gymnasium.spaces import Box

from upgd_ppo import envs
from upgd_ppo.agents.command_line.imports import make_after_importing
from upgd_ppo.agents.learners import observation
from upgd_ppo.agents.learners.iteration_report import IterationReport
from upgd_ppo.agents.learners.ppo import PPO
from upgd_ppo.agents.methods import Methods, Networks, make_methods
from upgd_ppo.agents.networks.actor_critic import ActorCritic
from upgd_ppo.agents.optimizers import hyper_parameters_of
from upgd_ppo.agents.optimizers.population_optimizer import PopulationOptimizer
from upgd_ppo.agents.optimizers.separate import SeparateOptimizers, make_optimizer
from upgd_ppo.agents.plasticity.inspector import Inspection, Inspector
from upgd_ppo.agents.population.workers import BlockProcess
from upgd_ppo.agents.random_streams import RandomStreams, environment_seeds
from upgd_ppo.agents.settings.config import TrainConfig
from upgd_ppo.envs.normalization import FixedNormalizeObservation, NormalizeReward

LOOKAHEAD = 1
"""Iterations that a block may be further than the first one: none waits for another at the end of
each iteration, where sometimes one and sometimes the other is late."""


class Population:
    """The S members of an arm. The runner knows it by four verbs: advance, report (what advance
    gives), state out, state in.

    Args:
        config: the arm.

    Attributes:
        learner: the first block, which learns in this process; the others have their own.
        healthy: [S] bool, the members that still learn.
        why_no_kernels: what keeps the compiled kernels from being used; None if nothing.
        exact_state: whether the environments can be saved and restored bit for bit.

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
        self.why_no_kernels = self.learner.networks.why_no_kernels
        self.exact_state = getattr(self.learner.collector.env.unwrapped, "exact_state", False)
        self._others: list[BlockProcess] = []
        for make in makers[1:]:
            make_there = partial(make_after_importing, config.run.env, config.run.opt, make)
            self._others.append(BlockProcess(make_there, self._others))
        self._begun = self.iteration

    def advance(self) -> IterationReport:
        """One iteration of every member."""
        ahead = min(self.iteration + 1 + LOOKAHEAD, self.config.num_iterations)
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
        """Environment steps of each member."""
        return self.learner.steps

    def state_dict(self) -> dict[str, Any]:
        """Everything the members are, member axis first, however they are split into blocks."""
        return _join([self.learner.state_dict(), *(other.state_dict() for other in self._others)])

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue from a state that `state_dict` gave, on any number of threads."""
        parts = [_part(state, start, end, len(self.seeds)) for start, end in self._bounds]
        self.learner.load_state_dict(parts[0])
        for other, part in zip(self._others, parts[1:], strict=True):
            other.load_state_dict(part)
        self._begun = self.iteration
        self.healthy = state["healthy"].copy()

    def close(self) -> None:
        """End the processes and close the environments."""
        for other in self._others:
            other.close()
        self.learner.collector.env.close()


def make_learner(config: TrainConfig, seeds: list[int], threads: int = 1) -> PPO:
    """A learner of the members with these seeds.

    Raises:
        ValueError: if the environment, the optimizer or one of their settings is unknown.
    """
    spec = config.environment
    env = envs.make(
        config.run.env,
        num_members=len(seeds),
        envs_per_member=spec.envs_per_seed,
        threads=threads,
        env_kwargs=config.run.env_kwargs,
        task_infos=False,
    )
    env = observation.normalize(env, config, len(seeds))
    if isinstance(env, FixedNormalizeObservation):
        env.load_state_dict(observation.random_statistics(config, seeds, threads))
    env = observation.append_time(env, config)
    if spec.normalize_rewards:
        env = NormalizeReward(env, num_members=len(seeds), gamma=config.ppo.gamma)
    box = env.single_action_space
    if config.ppo.squash_actions and not (isinstance(box, Box) and box.is_bounded()):
        raise ValueError(
            f"The actions of {config.run.env} are not bounded, so there is no box to squash them"
            " into; leave out --squash-actions."
        )
    networks = ActorCritic(
        seeds,
        math.prod(env.single_observation_space.shape or ()),
        math.prod(env.single_action_space.shape or ()),
        config.ppo.hidden_sizes,
        config.ppo.activation,
        config.ppo.layer_norm,
        device=config.run.device,
        initialization=config.ppo.initialization,
        state_dependent_std=config.ppo.state_dependent_std,
    )
    streams = RandomStreams.from_seeds(seeds, config.run.device)
    optimizer = make_optimizer(
        config.run.opt,
        networks.parameters,
        config.ppo.learning_rate,
        streams.optimizer_noise,
        hyper_parameters_of(config.run.opt, config.run.opt_defaults, config.run.opt_kwargs),
        one_per_member=config.ppo.target_kl is not None,
        separate=config.ppo.separate_optimizers,
    )
    return PPO(
        config.ppo,
        env,
        environment_seeds(seeds, spec.envs_per_seed),
        networks,
        optimizer,
        streams,
        config.num_iterations,
        Inspector(config.plasticity, seeds),
        spec.clip_actions,
        _methods(config, networks, optimizer, seeds),
    )


def _methods(
    config: TrainConfig,
    networks: ActorCritic,
    optimizer: PopulationOptimizer | SeparateOptimizers,
    seeds: list[int],
) -> Methods | None:
    """What acts on the networks after the optimizer; None if nothing."""
    if not config.run.methods:
        return None
    acted_on = Networks(
        networks.hidden_layers,
        networks.parameters.views,
        optimizer.memory,
        config.ppo.initialization,
    )
    return make_methods(config.run.methods, acted_on, seeds)


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


def _join(trees: list[Any]) -> Any:
    """One state from the blocks': arrays and lists are joined along the member axis."""
    first = trees[0]
    if isinstance(first, dict):
        return {key: _join([tree[key] for tree in trees]) for key in first}
    if isinstance(first, torch.Tensor):
        return torch.cat([tree.cpu() for tree in trees])
    if isinstance(first, np.ndarray):
        return np.concatenate(trees)
    if isinstance(first, list):
        return [item for tree in trees for item in tree]
    return first


def _part(tree: Any, start: int, end: int, num_members: int) -> Any:
    """The state of members start … end − 1, from that of all `num_members`."""
    if isinstance(tree, dict):
        return {key: _part(value, start, end, num_members) for key, value in tree.items()}
    if isinstance(tree, torch.Tensor | np.ndarray | list):
        return tree[start * len(tree) // num_members : end * len(tree) // num_members]
    return tree
