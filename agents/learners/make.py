"""Which learner an arm has, and everything that it needs."""

from __future__ import annotations

import math

from gymnasium.spaces import Box

from upgd_ppo import envs
from upgd_ppo.agents.learners import observation
from upgd_ppo.agents.learners.learner import Learner
from upgd_ppo.agents.learners.ppo import PPO
from upgd_ppo.agents.learners.supervised import NETWORK, Supervised
from upgd_ppo.agents.methods import Networks, make_methods
from upgd_ppo.agents.methods.acting import Methods
from upgd_ppo.agents.networks.actor_critic import ActorCritic
from upgd_ppo.agents.networks.flat_parameters import FlatParameters
from upgd_ppo.agents.networks.initialization import initialise
from upgd_ppo.agents.networks.layers import Layer
from upgd_ppo.agents.networks.stacked_mlp import StackedMLP, mlp_shapes
from upgd_ppo.agents.optimizers import hyper_parameters_of
from upgd_ppo.agents.optimizers.population_optimizer import PopulationOptimizer
from upgd_ppo.agents.optimizers.separate import SeparateOptimizers, make_optimizer
from upgd_ppo.agents.plasticity.inspector import Inspector
from upgd_ppo.agents.random_streams import RandomStreams, environment_seeds, generators
from upgd_ppo.agents.settings.config import TrainConfig
from upgd_ppo.envs.normalization import FixedNormalizeObservation, NormalizeReward
from upgd_ppo.streams import STREAMS


def make_learner(config: TrainConfig, seeds: list[int], threads: int = 1) -> Learner:
    """A learner of the members with these seeds: of a stream if there is one, else PPO.

    Raises:
        ValueError: if the environment, the optimizer or one of their settings is unknown.
    """
    make = make_supervised if config.stream.stream else make_ppo
    return make(config, seeds, threads)


def make_ppo(config: TrainConfig, seeds: list[int], threads: int = 1) -> PPO:
    """See `make_learner`."""
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
        seeds,
        config.ppo,
        env,
        environment_seeds(seeds, spec.envs_per_seed),
        networks,
        optimizer,
        streams,
        config.num_iterations,
        Inspector(config.plasticity, seeds),
        spec.clip_actions,
        _methods(config, seeds, networks.hidden_layers, networks.parameters, optimizer),
    )


def make_supervised(config: TrainConfig, seeds: list[int], threads: int = 1) -> Supervised:
    """See `make_learner`."""
    assert config.stream.stream
    settings, device = config.ppo, config.run.device
    kind = STREAMS[config.stream.stream]
    sizes = (kind.input_size, *settings.hidden_sizes, kind.output_size)
    shapes = mlp_shapes(NETWORK, sizes, settings.layer_norm)
    parameters = FlatParameters(shapes, len(seeds), device=device)
    initialise(parameters, seeds, settings.initialization)
    optimizer_noise = generators(seeds, "optimizer_noise", device)
    optimizer = make_optimizer(
        config.run.opt,
        parameters,
        settings.learning_rate,
        optimizer_noise,
        hyper_parameters_of(config.run.opt, config.run.opt_defaults, config.run.opt_kwargs),
    )
    network = StackedMLP(parameters, NETWORK, sizes, settings.activation, settings.layer_norm)
    return Supervised(
        seeds,
        kind(generators(seeds, "stream"), config.stream.change_every),
        network,
        optimizer,
        optimizer_noise,
        settings.rollout_steps,
        settings.minibatches,
        settings.learning_rate,
        settings.anneal,
        config.num_iterations,
        Inspector(config.plasticity, seeds),
        _methods(config, seeds, network.hidden_layers, parameters, optimizer),
    )


def _methods(
    config: TrainConfig,
    seeds: list[int],
    layers: list[Layer],
    parameters: FlatParameters,
    optimizer: PopulationOptimizer | SeparateOptimizers,
) -> Methods | None:
    """What acts on the networks after the optimizer's steps, if anything does."""
    if not config.run.methods:
        return None
    acted_on = Networks(layers, parameters.views, optimizer.memory, config.ppo.initialization)
    return make_methods(config.run.methods, acted_on, seeds)
