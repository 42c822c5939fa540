"""Through what the policies see their environments: normalised, and with the time or without."""

from __future__ import annotations

import numpy as np
from gymnasium.vector import VectorEnv
from numpy.typing import NDArray

from upgd_ppo import envs
from upgd_ppo.agents.random_streams import seed_of
from upgd_ppo.agents.settings.config import TrainConfig
from upgd_ppo.envs.factory import find_spec
from upgd_ppo.envs.normalization import (
    AppendTime,
    FixedNormalizeObservation,
    NormalizeObservation,
    random_action_statistics,
)

Normalizer = NormalizeObservation | FixedNormalizeObservation


def normalizer_class(config: TrainConfig) -> type[Normalizer] | None:
    """What normalises the observations; its statistics are in checkpoints under its name."""
    if not config.environment.normalize_observations:
        return None
    if config.environment.fixed_normalization_steps:
        return FixedNormalizeObservation
    return NormalizeObservation


def normalize(env: VectorEnv, config: TrainConfig, num_members: int) -> VectorEnv:
    """The environment with its observations normalised, or as it is."""
    normalizer = normalizer_class(config)
    return normalizer(env, num_members=num_members) if normalizer else env


def append_time(env: VectorEnv, config: TrainConfig) -> VectorEnv:
    """The environment with the time in its observations, or as it is.

    Raises:
        ValueError: its episodes have no time limit.
    """
    if not config.environment.time_in_observation:
        return env
    limit = find_spec(config.run.env).max_episode_steps
    if limit is None:
        raise ValueError(
            f"{config.run.env} has no time limit, of which --time-in-observation tells how much"
            " has passed; leave it out."
        )
    return AppendTime(env, limit)


def random_statistics(
    config: TrainConfig, seeds: list[int], threads: int = 1
) -> dict[str, NDArray[np.float64]]:
    """What the fixed normalisers of members with these seeds know: from environments of their own
    and a stream of their own, so that training begins with or without them alike."""
    per_seed = config.environment.envs_per_seed
    sequences = [
        np.random.SeedSequence(seed_of(seed, "observation_statistics")).spawn(2) for seed in seeds
    ]
    env = envs.make(
        config.run.env,
        num_members=len(seeds),
        envs_per_member=per_seed,
        threads=threads,
        env_kwargs=config.run.env_kwargs,
        task_infos=False,
    )
    try:
        return random_action_statistics(
            env,
            [int(value) for first, _ in sequences for value in first.generate_state(per_seed)],
            [np.random.default_rng(second) for _, second in sequences],
            config.environment.fixed_normalization_steps,
        )
    finally:
        env.close()
