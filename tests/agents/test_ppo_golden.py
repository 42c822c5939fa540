"""One whole PPO update against numbers recorded from the published implementation."""

import json
from pathlib import Path

import gymnasium as gym
import numpy as np
import pytest
import torch

from upgd_ppo.agents.learners.ppo import PPO
from upgd_ppo.agents.learners.ppo_loss import MINIBATCH_STATISTICS
from upgd_ppo.agents.networks.actor_critic import ActorCritic
from upgd_ppo.agents.optimizers import hyper_parameters_of
from upgd_ppo.agents.optimizers.population_optimizer import PopulationOptimizer
from upgd_ppo.agents.random_streams import RandomStreams
from upgd_ppo.agents.settings.config import PPOConfig, TrainConfig
from upgd_ppo.agents.settings.presets import load_preset

ROOT = Path(__file__).parent.parent.parent
FIXTURES = ROOT / "tests/fixtures"
TOLERANCE = {"rtol": 1e-9, "atol": 1e-9}
LAYERS = {"0": "layer_1", "2": "layer_2", "4": "output"}


class RecordedEnv(gym.vector.VectorEnv):
    """Spaces alone: the rollout is a recorded one."""

    def __init__(self, num_envs, observation_size, action_size):
        self.num_envs = num_envs
        self.single_observation_space = gym.spaces.Box(-np.inf, np.inf, (observation_size,))
        self.single_action_space = gym.spaces.Box(-1, 1, (action_size,))

    def reset(self, *, seed=None, options=None):
        return np.zeros((self.num_envs, *self.single_observation_space.shape)), {}


def our_name(name):
    """`actor_mean.0.weight` → `actor.layer_1.weight`."""
    if name in ("actor_logstd", "log_std"):
        return "actor.log_std"
    network, layer, tensor = name.split(".")
    return f"{network.removesuffix('_mean')}.{LAYERS[layer]}.{tensor}"


@pytest.mark.parametrize("num_members", [1, 3])
@pytest.mark.parametrize("optimizer", ["adam", "upgd"])
def test_a_recorded_update_is_reproduced(optimizer, num_members):
    file = {"adam": "ppo_update_adam", "upgd": "ppo_update_adaptive_upgd"}[optimizer]
    golden = np.load(FIXTURES / f"{file}.npz", allow_pickle=False)
    settings = json.loads(str(golden["settings"]))
    hyper_parameters = settings["optimizer_hyperparameters"]
    learning_rate = hyper_parameters.pop("lr")
    steps, envs, observation_size = golden["obs"].shape
    config = PPOConfig(
        rollout_steps=steps,
        minibatches=8,
        epochs=4,
        gamma=settings["gamma"],
        gae_lambda=settings["gae_lambda"],
        clip_coef=settings["clip_coef"],
        anneal=False,
        learning_rate=learning_rate,
        hidden_sizes=(16, 16),
    )
    seeds = list(range(num_members))
    networks = ActorCritic(
        seeds, observation_size, golden["actions"].shape[-1], (16, 16), dtype=torch.float64
    )
    for name in golden.files:
        if name.startswith("init/"):
            networks.parameters.views[our_name(name.removeprefix("init/"))][:] = torch.from_numpy(
                golden[name]
            ).reshape(networks.parameters.shapes[our_name(name.removeprefix("init/"))])
    streams = RandomStreams.from_seeds(seeds)
    ppo = PPO(
        seeds,
        config,
        RecordedEnv(num_members * envs, observation_size, golden["actions"].shape[-1]),
        [0] * num_members * envs,
        networks,
        PopulationOptimizer(
            optimizer,
            networks.parameters,
            config.learning_rate,
            streams.optimizer_noise,
            hyper_parameters,
        ),
        streams,
        total_iterations=1,
    )
    for ours, theirs in {
        "observations": "obs",
        "actions": "actions",
        "rewards": "rewards",
        "dones": "dones",
        "log_probs": "logprobs",
        "values": "values",
        "next_observations": "next_obs",
        "next_dones": "next_done",
    }.items():
        getattr(ppo.rollout, ours)[:] = golden[theirs]

    advantages, returns = ppo.estimate_advantages()
    permutations = torch.from_numpy(golden["permutations"]).unsqueeze(1)
    log = ppo.update(advantages, returns, permutations.expand(-1, num_members, -1))

    names = ("policy_loss", "value_loss", "entropy", "approx_kl", "gradient_norm")
    columns = [MINIBATCH_STATISTICS.index(name) for name in names]
    for member in range(num_members):
        np.testing.assert_allclose(advantages[member], golden["advantages"], **TOLERANCE)
        np.testing.assert_allclose(returns[member], golden["returns"], **TOLERANCE)
        np.testing.assert_allclose(log[:, member, columns], golden["minibatch_log"], **TOLERANCE)
        for name in golden.files:
            if name.startswith("final/"):
                ours = networks.parameters.views[our_name(name.removeprefix("final/"))][member]
                np.testing.assert_allclose(
                    ours.numpy().reshape(golden[name].shape), golden[name], **TOLERANCE
                )


@pytest.mark.parametrize("num_members", [1, 3])
def test_a_recorded_update_of_the_nature_paper_is_reproduced(num_members):
    golden = np.load(FIXTURES / "nature_ppo_update.npz", allow_pickle=False)
    settings = json.loads(str(golden["settings"]))
    protocol = load_preset(ROOT / "configs/protocols/nature.yaml", TrainConfig())
    assert protocol.ppo.value_coef == 2 * settings["value_coef_on_mse"]
    assert protocol.ppo.learning_rate == settings["lr"]
    steps, action_size = golden["actions"].shape
    observation_size = golden["obs"].shape[1]
    config = protocol.with_flat(
        {
            "rollout_steps": steps,
            "minibatches": settings["minibatches"],
            "epochs": settings["epochs"],
            "hidden_sizes": (16, 16),
        }
    )
    hyper_parameters = hyper_parameters_of("adam", config.run.opt_defaults, {})
    seeds = list(range(num_members))
    networks = ActorCritic(
        seeds,
        observation_size,
        action_size,
        config.ppo.hidden_sizes,
        config.ppo.activation,
        dtype=torch.float64,
    )
    for name in golden.files:
        if name.startswith("init/"):
            networks.parameters.views[our_name(name.removeprefix("init/"))][:] = torch.from_numpy(
                golden[name]
            )
    streams = RandomStreams.from_seeds(seeds)
    ppo = PPO(
        seeds,
        config.ppo,
        RecordedEnv(num_members, observation_size, action_size),
        [0] * num_members,
        networks,
        PopulationOptimizer(
            "adam",
            networks.parameters,
            config.ppo.learning_rate,
            streams.optimizer_noise,
            hyper_parameters,
        ),
        streams,
        total_iterations=1,
    )
    rollout = ppo.rollout
    rollout.observations[:, :, 0] = golden["obs"][:-1]
    rollout.next_observations[:, 0] = golden["obs"][-1]
    rollout.actions[:, :, 0] = golden["actions"]
    rollout.rewards[:, :, 0] = golden["rewards"]
    rollout.log_probs[:, :, 0] = golden["log_probs"]
    rollout.values[:, :, 0] = golden["values"][:-1]
    rollout.dones[:, 1:, 0] = golden["dones"][:-1]  # theirs: the step ended the episode
    rollout.next_dones[:, 0] = golden["dones"][-1]

    advantages, returns = ppo.estimate_advantages()
    np.testing.assert_allclose(returns[0, :, 0], golden["returns"], rtol=1e-6, atol=1e-6)
    permutations = torch.from_numpy(golden["permutations"]).unsqueeze(1)
    ppo.update(advantages, returns, permutations.expand(-1, num_members, -1))
    for member in range(num_members):
        for name in golden.files:
            if name.startswith("final/"):
                ours = networks.parameters.views[our_name(name.removeprefix("final/"))][member]
                np.testing.assert_allclose(ours.numpy(), golden[name], **TOLERANCE, err_msg=name)
