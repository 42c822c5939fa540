"""What is played: the policies of a run's members, or one that Stable-Baselines3 saved."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import gymnasium as gym
import numpy as np
import torch
from gymnasium.vector import VectorEnv
from numpy.typing import NDArray

from upgd_ppo import envs
from upgd_ppo.agents.learners import observation
from upgd_ppo.agents.networks.actor_critic import ActorCritic
from upgd_ppo.agents.networks.distribution import squash, std_of_output_numpy
from upgd_ppo.agents.runs.checkpoint import DamagedCheckpointError, checkpoints, load_checkpoint
from upgd_ppo.agents.runs.run_directory import CONFIG_FILE, RunDirectory
from upgd_ppo.agents.settings.config import TrainConfig
from upgd_ppo.envs.normalization import NormalizeObservation

if TYPE_CHECKING:
    from upgd_ppo.agents.sb3.saved_policy import SavedPolicy

ROWS = 8
"""Observations of a member that are evaluated in one product: always so many, because the last
bits of a product depend on its shape, and an episode must not depend on how many are played."""


class Policies(ABC):
    """S policies for one task.

    Attributes:
        path: the run directory or the model file they come from.
        env_id: Gymnasium id of what they were trained on, or None if that is not known.
        env_kwargs: keyword arguments of its constructor.
        observation_size: O.
        action_space: of one environment.
        seeds: the seed that each was trained with, None where that is not known.
        halted: policy → why and when its training was halted.
        clips_actions: whether actions are clipped to the box before the environment sees them.
        checkpoint: name of the file that holds them.
        step: environment steps that each was trained for, or None.
    """

    def __init__(
        self,
        path: Path,
        env_id: str | None,
        env_kwargs: dict[str, Any],
        observation_size: int,
        action_space: gym.Space,
        seeds: Sequence[int | None],
        checkpoint: str,
        step: int | None = None,
        halted: dict[int, str] | None = None,
    ) -> None:
        self.path = path
        self.env_id = env_id
        self.env_kwargs = env_kwargs
        self.observation_size = observation_size
        self.action_space = action_space
        self.seeds = list(seeds)
        self.checkpoint = checkpoint
        self.step = step
        self.halted = halted or {}
        self.clips_actions = True

    @abstractmethod
    def select(self, members: Sequence[int]) -> Policies:
        """Some of them, in that order."""

    @abstractmethod
    def wrap(self, env: VectorEnv) -> VectorEnv:
        """Put around an environment of S·E what they see it through, frozen."""

    @abstractmethod
    def start(self, noise_seeds: NDArray[np.int64] | None) -> None:
        """Begin new episodes.

        Args:
            noise_seeds: [S, E] seeds of what a sampled action draws; None plays the mean action.
        """

    @abstractmethod
    def act(self, observations: NDArray, starting: NDArray[np.bool_]) -> NDArray:
        """Actions [S, E, A] for what the wrapped environment shows [S, E, O].

        Args:
            starting: [S, E], where an episode begins.
        """


def load_policies(path: Path, checkpoint: str | None = None) -> Policies:
    """The policies of a run directory, or of a model that Stable-Baselines3 saved.

    Args:
        checkpoint: a run's: a file, or the step at which one was written; None is the newest.

    Raises:
        ValueError: if the path holds neither, or nothing that is whole.
        ModuleNotFoundError: for an SB3 model where Stable-Baselines3 is not installed.
    """
    if path.suffix == ".zip" and not path.is_dir():
        if checkpoint is not None:
            raise ValueError(f"{path} is a model by itself; leave out --checkpoint.")
        return SB3Policy.load(path)
    return RunPolicies.load(path, checkpoint)


class RunPolicies(Policies):
    """The members of a run, at one checkpoint.

    Args:
        config: the run's settings.
        parameters: [S, D].
        statistics: of the normaliser of each member's observations; None if it saw them raw.
        **details: see `Policies`.
    """

    def __init__(
        self,
        config: TrainConfig,
        parameters: torch.Tensor,
        statistics: dict[str, NDArray] | None,
        **details: Any,
    ) -> None:
        super().__init__(**details)
        self.config = config
        self.statistics = statistics
        self.clips_actions = config.environment.clip_actions
        self.networks = ActorCritic(
            config.member_seeds[: len(parameters)],  # only their number matters here
            self.observation_size + config.environment.time_in_observation,
            gym.spaces.flatdim(self.action_space),
            config.ppo.hidden_sizes,
            config.ppo.activation,
            config.ppo.layer_norm,
            state_dependent_std=config.ppo.state_dependent_std,
        )
        if parameters.shape != self.networks.parameters.data.shape:
            raise ValueError(
                f"The checkpoint {self.checkpoint} is not one of {self.path}: its parameters have"
                f" shape {[*parameters.shape]}, not {[*self.networks.parameters.data.shape]}."
            )
        self.networks.parameters.data.copy_(parameters)
        self._layers = self.networks.actor.numpy_layers()
        self._noise: list[np.random.Generator] | None = None

    @classmethod
    def load(cls, path: Path, checkpoint: str | None) -> RunPolicies:
        """See `load_policies`."""
        directory, config = RunDirectory.open(path)
        if config.stream.stream:
            raise ValueError(
                f"{path} learned the stream {config.stream.stream}: it has no policy to play. Look"
                f" at it with evaluate.py compare {path}."
            )
        file, state = _open_checkpoint(directory, checkpoint)
        env = envs.make(config.run.env, env_kwargs=config.run.env_kwargs)
        observation_size, action_space = env.single_observation_space.shape, env.single_action_space
        env.close()
        assert observation_size is not None
        try:
            agent = state["agent"]
            healthy, parameters = agent["healthy"], agent["parameters"]
            normalizer = observation.normalizer_class(config)
            statistics = agent["environment"][normalizer.__name__] if normalizer else None
            step = agent["iteration"] * config.steps_per_iteration
            causes = {event["seed"]: event for event in state.get("halted", [])}
        except (KeyError, TypeError, AttributeError):
            raise ValueError(
                f"The checkpoint {file} is not one of train.py: it holds no agent."
            ) from None
        halted = {
            int(member): _halt(causes.get(config.member_seeds[member]))
            for member in np.flatnonzero(~healthy)
        }
        return cls(
            config,
            parameters,
            statistics,
            path=path,
            env_id=config.run.env,
            env_kwargs=config.run.env_kwargs,
            observation_size=observation_size[0],
            action_space=action_space,
            seeds=config.member_seeds,
            checkpoint=file.name,
            step=step,
            halted=halted,
        )

    def select(self, members: Sequence[int]) -> RunPolicies:
        members = list(members)
        statistics = self.statistics
        return RunPolicies(
            self.config,
            self.networks.parameters.data[members],
            statistics and {name: values[members] for name, values in statistics.items()},
            path=self.path,
            env_id=self.env_id,
            env_kwargs=self.env_kwargs,
            observation_size=self.observation_size,
            action_space=self.action_space,
            seeds=[self.seeds[member] for member in members],
            checkpoint=self.checkpoint,
            step=self.step,
            halted={i: self.halted[m] for i, m in enumerate(members) if m in self.halted},
        )

    def wrap(self, env: VectorEnv) -> VectorEnv:
        normalizer = observation.normalizer_class(self.config)
        if normalizer:
            assert self.statistics
            normalized = normalizer(env, num_members=len(self.seeds))
            normalized.load_state_dict(self.statistics)
            if isinstance(normalized, NormalizeObservation):
                normalized.update_running_mean = False
            env = normalized
        return observation.append_time(env, self.config)

    def start(self, noise_seeds: NDArray[np.int64] | None) -> None:
        self._noise = (
            None if noise_seeds is None else [np.random.default_rng(s) for s in noise_seeds.ravel()]
        )

    def act(self, observations: NDArray, starting: NDArray[np.bool_]) -> NDArray:
        members, episodes, size = observations.shape
        chunks = -(-episodes // ROWS)
        padded = np.zeros((members, chunks * ROWS, size), np.float32)
        padded[:, :episodes] = observations
        rows = padded.reshape(members, chunks, ROWS, size).swapaxes(0, 1)
        outputs = self.networks.actor.infer(np.ascontiguousarray(rows), self._layers)
        outputs = outputs.swapaxes(0, 1).reshape(members, chunks * ROWS, -1)[:, :episodes]
        actions = outputs[..., : self.networks.action_size]
        if self._noise is not None:
            noise = np.stack([g.standard_normal(actions.shape[2]) for g in self._noise])
            if self.networks.state_dependent_std:
                std = std_of_output_numpy(outputs[..., self.networks.action_size :])
            else:
                std = self.networks.log_std.exp().cpu().numpy()[:, None]
            actions = actions + std * noise.reshape(actions.shape).astype(np.float32)
        if self.config.ppo.squash_actions:
            assert isinstance(self.action_space, gym.spaces.Box)
            return squash(actions, self.action_space.low.ravel(), self.action_space.high.ravel())
        return actions


class SB3Policy(Policies):
    """A policy that Stable-Baselines3 saved.

    Args:
        policy: as `upgd_ppo.agents.sb3.load_policy` gives it.
        path: its file.
    """

    def __init__(self, policy: SavedPolicy, path: Path) -> None:
        super().__init__(
            path,
            policy.env_id,
            policy.env_kwargs,
            gym.spaces.flatdim(policy.observation_space),
            policy.action_space,
            seeds=[None],
            checkpoint=path.name,
        )
        self.policy = policy
        self._deterministic = True

    @classmethod
    def load(cls, path: Path) -> SB3Policy:
        """See `load_policies`."""
        from upgd_ppo.agents.sb3.saved_policy import load_policy

        return cls(load_policy(path), path)

    def select(self, members: Sequence[int]) -> SB3Policy:
        return self

    def wrap(self, env: VectorEnv) -> VectorEnv:
        return env

    def start(self, noise_seeds: NDArray[np.int64] | None) -> None:
        self._deterministic = noise_seeds is None
        if noise_seeds is not None:
            torch.manual_seed(int(noise_seeds.ravel()[0]))

    def act(self, observations: NDArray, starting: NDArray[np.bool_]) -> NDArray:
        shape = self.policy.observation_space.shape or ()
        actions = self.policy.predict(
            observations.reshape(-1, *shape), starting.ravel(), self._deterministic
        )
        return actions.reshape(1, observations.shape[1], -1)


def _open_checkpoint(directory: RunDirectory, wanted: str | None) -> tuple[Path, dict[str, Any]]:
    files = {int(file.stem.split("-")[1]): file for file in checkpoints(directory.checkpoints)}
    if wanted is not None:
        file = Path(wanted)
        if not file.is_file():
            file = _at_step(wanted, files, directory.path)
        return file, load_checkpoint(file)
    if not files:
        raise ValueError(
            f"{directory.path} has no checkpoint yet: the run stopped before it wrote its first;"
            f" train it anew with train.py --config {directory.path / CONFIG_FILE}."
        )
    newest, *older = sorted(files, reverse=True)
    try:
        return files[newest], load_checkpoint(files[newest])
    except FileNotFoundError:  # the run goes on, and has just dropped it
        return _open_checkpoint(directory, None)
    except DamagedCheckpointError as error:
        # An older one is another policy, perhaps an untrained one: not what was asked for.
        there = " or ".join(map(str, older))
        hint = f" To score an older one, name its step: --checkpoint {there}." if older else ""
        raise ValueError(f"{error}{hint}") from None


def _at_step(wanted: str, files: dict[int, Path], run: Path) -> Path:
    try:
        step = round(float(wanted))
    except ValueError:
        raise ValueError(
            f"There is no checkpoint {wanted}; --checkpoint takes a file or a step."
        ) from None
    if step not in files:
        there = ", ".join(map(str, sorted(files))) or "none"
        raise ValueError(f"{run} has no checkpoint of step {step}; it has {there}.")
    return files[step]


def _halt(event: dict[str, Any] | None) -> str:
    return f"halted at step {event['step']:,}: {event['cause']}" if event else "halted"
