"""Exactly so many episodes of every policy, all played at once.

Every episode has a sub-environment of its own, which plays no other. Where sub-environments play
on until enough episodes have ended, short ones are over-represented, and bad policies, whose
episodes are the short ones, look worse than they are.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import gymnasium as gym
import numpy as np
from gymnasium.vector import VectorEnv
from numpy.typing import NDArray

from upgd_ppo import envs
from upgd_ppo.agents.playing.trained_policies import Policies
from upgd_ppo.envs import wrapped as saving

EVALUATION = 0x5C03E
"""Sets the seeds of evaluation apart from those that a run with the same seed trains on."""


@dataclass
class Episodes:
    """E episodes of each of S policies, arrays [S, E], while they are played and after.

    Attributes:
        seeds: what each episode's environment was reset with.
        returns: sums of rewards so far, undiscounted and not normalised.
        lengths: steps so far.
        playing: which have not ended.
        terminated: which ended in a terminal state, rather than by a time limit.
        errors: (policy, episode) → what the simulator said; the return is then NaN.
    """

    seeds: NDArray[np.int64]
    returns: NDArray[np.float64]
    lengths: NDArray[np.int64]
    playing: NDArray[np.bool_]
    terminated: NDArray[np.bool_]
    errors: dict[tuple[int, int], str]


def evaluation_seeds(seed: int, members: int, episodes: int) -> NDArray[np.int64]:
    """[S, E] environment seeds, the same for every policy, and for any longer evaluation."""
    sequence = np.random.SeedSequence(seed, spawn_key=(EVALUATION,))
    return np.tile(sequence.generate_state(episodes).astype(np.int64), (members, 1))


def make_env(
    policies: Policies,
    episodes: int,
    threads: int = 1,
    env_id: str | None = None,
    env_kwargs: dict[str, Any] | None = None,
    max_episode_steps: int | None = None,
) -> VectorEnv:
    """The environment of S·E sub-environments, member-major, as the policies see it.

    Args:
        env_id: another variant of the task; None is what the policies were trained on.
        env_kwargs: added to those of training, or with another `env_id` the only ones.
        max_episode_steps: time limit; None is the registered one.

    Raises:
        ValueError: if it cannot be built, or its spaces are not those of the policies.
    """
    kwargs = constructor_arguments(policies, env_id, env_kwargs)
    env_id = env_id or policies.env_id
    if env_id is None:
        raise ValueError(f"{policies.path} does not say what it was trained on; add --env.")
    env = envs.make(
        env_id,
        num_members=len(policies.seeds),
        envs_per_member=episodes,
        threads=threads,
        env_kwargs=kwargs,
        max_episode_steps=max_episode_steps,
    )
    shape = env.single_observation_space.shape
    if shape != (policies.observation_size,) or env.single_action_space != policies.action_space:
        theirs = f"{policies.observation_size} observations and the actions {policies.action_space}"
        raise ValueError(
            f"{policies.path} cannot be played on {env_id}: it was trained on {theirs}, and"
            f" {env_id} has {gym.spaces.flatdim(env.single_observation_space)} observations and"
            f" the actions {env.single_action_space}."
        )
    return policies.wrap(env)


def constructor_arguments(
    policies: Policies, env_id: str | None, env_kwargs: dict[str, Any] | None
) -> dict[str, Any]:
    """Those of training, unless another task is played, and over them those asked for."""
    trained_on = env_id is None or env_id == policies.env_id
    return {**(policies.env_kwargs if trained_on else {}), **(env_kwargs or {})}


def play(
    policies: Policies,
    env: VectorEnv,
    seeds: NDArray[np.int64],
    stochastic: bool = False,
) -> Iterator[Episodes]:
    """Play every episode to its end, actions clipped to the box if they were in training.

    Args:
        policies: S of them.
        env: of `make_env`, S·E sub-environments.
        seeds: [S, E] environment seeds.
        stochastic: sample actions, rather than play the mean.

    Yields:
        The episodes as they stand before each step, and once more when all have ended; it is the
        same object every time.
    """
    shape = seeds.shape
    space = env.single_action_space
    assert isinstance(space, gym.spaces.Box)
    episodes = Episodes(
        seeds=seeds,
        returns=np.zeros(shape),
        lengths=np.zeros(shape, np.int64),
        playing=np.ones(shape, bool),
        terminated=np.zeros(shape, bool),
        errors={},
    )
    policies.start(_noise_seeds(policies, seeds) if stochastic else None)
    observations, infos = env.reset(seed=seeds.ravel().tolist())  # type: ignore[arg-type]
    _end_failed(episodes, infos)
    starting = np.ones(shape, bool)
    while episodes.playing.any():
        yield episodes
        saving.exclude(env, ~episodes.playing.ravel())
        with np.errstate(invalid="ignore", over="ignore"):
            actions = policies.act(observations.reshape(*shape, -1), starting)
            actions = actions.reshape(-1, *space.shape)
            if policies.clips_actions:
                actions = np.clip(actions, space.low, space.high)
            observations, rewards, terminations, truncations, infos = env.step(actions)
        starting[:] = False
        playing = episodes.playing
        episodes.returns[playing] += rewards.reshape(shape)[playing]
        episodes.lengths[playing] += 1
        terminations = terminations.reshape(shape)
        episodes.terminated[playing] = terminations[playing]
        playing &= ~(terminations | truncations.reshape(shape))
        _end_failed(episodes, infos)
    yield episodes


def _end_failed(episodes: Episodes, infos: dict[str, Any]) -> None:
    if "simulation_error" not in infos:
        return
    for index in np.flatnonzero(infos["_simulation_error"]):
        member, episode = divmod(int(index), episodes.seeds.shape[1])
        if (member, episode) in episodes.errors:
            continue
        if episodes.playing[member, episode] or np.isnan(episodes.returns[member, episode]):
            episodes.errors[member, episode] = str(infos["simulation_error"][index])
            episodes.returns[member, episode] = np.nan
            episodes.playing[member, episode] = False


def _noise_seeds(policies: Policies, seeds: NDArray[np.int64]) -> NDArray[np.int64]:
    """[S, E] seeds that depend on the episode's and the policy's own alone."""
    return np.array(
        [
            [
                np.random.SeedSequence([episode, EVALUATION, policy or 0]).generate_state(1)[0]
                for episode in row
            ]
            for row, policy in zip(seeds.tolist(), policies.seeds, strict=True)
        ],
        np.int64,
    )
