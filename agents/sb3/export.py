"""A member of a run as a Stable-Baselines3 model."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import gymnasium
import numpy as np
import torch
from stable_baselines3 import PPO
from stable_baselines3.common.running_mean_std import RunningMeanStd
from stable_baselines3.common.vec_env import DummyVecEnv, VecNormalize

from upgd_ppo.agents.networks.activations import activation_named
from upgd_ppo.agents.networks.actor_critic import ActorCritic
from upgd_ppo.agents.runs.checkpoint import checkpoints, load_checkpoint
from upgd_ppo.agents.runs.run_directory import RunDirectory
from upgd_ppo.agents.settings.config import TrainConfig
from upgd_ppo.envs.factory import find_spec


def export_sb3(run: str | Path, member: int, path: str | Path) -> tuple[Path, Path | None]:
    """Write a trained member as a PPO model that `PPO.load` plays with the same actions.

    The model is SB3's own (`MlpPolicy`, Adam), so that it loads where this package is not
    installed; the optimizer's traces are not in it. Its `env_id` and `env_kwargs` say what it was
    trained on. Beside it, if the run normalised anything, lie the statistics for
    `VecNormalize.load`, as `NAME_vecnormalize.pkl`, with `training` off.

    Args:
        run: run directory of `train.py`; its newest checkpoint is exported.
        member: which of its seeds, from 0.
        path: the model's file; ".zip" is added if it has no suffix.

    Returns:
        The model's file, and that of the statistics or None.

    Raises:
        ValueError: if there is no such run or member, its newest checkpoint is damaged, or SB3 has
            no such network.
    """
    directory, config = RunDirectory.open(Path(run))
    if not 0 <= member < config.run.seeds:
        raise ValueError(
            f"{run} has no member {member}: it has {config.run.seeds}, counted from 0."
        )
    if config.ppo.layer_norm:
        raise ValueError(
            f"{run} was trained with layer normalisation, which SB3's MlpPolicy does not have; "
            "score it with evaluate.py, or train without --layer-norm."
        )
    foreign = _without_equivalent(config)
    if foreign:
        raise ValueError(
            f"{run} was trained with {foreign}, which SB3's PPO does not have; score it with"
            " evaluate.py."
        )
    state = _newest_state(directory)
    spec = find_spec(config.run.env)  # never imports what the run's settings name
    path = Path(path) if Path(path).suffix else Path(path).with_suffix(".zip")
    path.parent.mkdir(parents=True, exist_ok=True)
    env = DummyVecEnv([lambda: gymnasium.make(spec, **config.run.env_kwargs)])
    try:
        model = _model(config, env)
        model.policy.load_state_dict(_policy_state(config, member, state["parameters"], env))
        model.num_timesteps = state["iteration"] * config.steps_per_iteration
        model.env_id, model.env_kwargs = config.run.env, config.run.env_kwargs  # type: ignore[attr-defined]
        model.save(path)
        statistics = _statistics(config, member, state["environment"], env)
    finally:
        env.close()
    if statistics is None:
        return path, None
    statistics_path = path.with_name(f"{path.stem}_vecnormalize.pkl")
    statistics.save(str(statistics_path))
    return path, statistics_path


def _without_equivalent(config: TrainConfig) -> str | None:
    """The flag of a setting that changes what is played, and that SB3 cannot express."""
    settings = {
        "--stream": config.stream.stream is not None,
        "--state-dependent-std": config.ppo.state_dependent_std,
        "--squash-actions": config.ppo.squash_actions,
        "--no-clip-actions": not config.environment.clip_actions,
        "--time-in-observation": config.environment.time_in_observation,
        "--fixed-normalization-steps": config.environment.fixed_normalization_steps > 0,
    }
    return next((flag for flag, used in settings.items() if used), None)


def _newest_state(directory: RunDirectory) -> dict[str, Any]:
    """The newest checkpoint's. An older one is another policy: it never takes its place."""
    for path in checkpoints(directory.checkpoints):
        return load_checkpoint(path)["agent"]
    raise ValueError(f"{directory.path} has no checkpoint to export; train it first.")


def _model(config: TrainConfig, env: DummyVecEnv) -> PPO:
    ppo = config.ppo
    sizes = list(ppo.hidden_sizes)
    return PPO(
        "MlpPolicy",
        env,
        learning_rate=ppo.learning_rate,
        n_steps=ppo.rollout_steps,
        batch_size=config.steps_per_iteration // ppo.minibatches,
        n_epochs=ppo.epochs,
        gamma=ppo.gamma,
        gae_lambda=ppo.gae_lambda,
        clip_range=ppo.clip_coef,
        clip_range_vf=ppo.clip_coef if ppo.clip_value_loss else None,
        normalize_advantage=ppo.normalize_advantages != "off",
        ent_coef=ppo.entropy_coef,
        vf_coef=ppo.value_coef / 2,  # SB3's value loss is without our factor ½
        max_grad_norm=ppo.max_grad_norm or np.inf,
        target_kl=ppo.target_kl,
        policy_kwargs={
            "net_arch": {"pi": sizes, "vf": sizes},
            "activation_fn": activation_named(ppo.activation).module,
        },
        device="cpu",
    )


def _policy_state(
    config: TrainConfig, member: int, parameters: torch.Tensor, env: DummyVecEnv
) -> dict[str, torch.Tensor]:
    """One member's parameters [S, D] under SB3's names."""
    ppo = config.ppo
    networks = ActorCritic(
        [config.member_seeds[member]],
        gymnasium.spaces.flatdim(env.observation_space),
        gymnasium.spaces.flatdim(env.action_space),
        ppo.hidden_sizes,
        ppo.activation,
    )
    networks.parameters.data.copy_(parameters[member : member + 1])
    views = networks.parameters.views
    state = {"log_std": views["actor.log_std"][0].clone()}
    for mlp, part, head in (
        (networks.actor, "policy_net", "action_net"),
        (networks.critic, "value_net", "value_net"),
    ):
        # In SB3's containers every second module is an activation.
        paths = [f"mlp_extractor.{part}.{2 * i}" for i in range(len(mlp.hidden_layers))]
        for layer, path in zip(mlp.all_layers, [*paths, head], strict=True):
            [bias] = layer.own
            state[f"{path}.weight"] = views[layer.incoming][0].clone()
            state[f"{path}.bias"] = views[bias][0].clone()
    return state


def _statistics(
    config: TrainConfig, member: int, environment: dict[str, Any], env: DummyVecEnv
) -> VecNormalize | None:
    spec = config.environment
    if not (spec.normalize_observations or spec.normalize_rewards):
        return None
    normalizer = VecNormalize(
        env,
        training=False,
        norm_obs=spec.normalize_observations,
        norm_reward=spec.normalize_rewards,
        gamma=config.ppo.gamma,
    )
    if spec.normalize_observations:
        _take_over(environment["NormalizeObservation"], member, normalizer.obs_rms)
    if spec.normalize_rewards:
        _take_over(environment["NormalizeReward"], member, normalizer.ret_rms)
    return normalizer


def _take_over(moments: dict[str, np.ndarray], member: int, statistics: Any) -> None:
    assert isinstance(statistics, RunningMeanStd)
    shape = np.shape(statistics.mean)
    statistics.mean = np.reshape(moments["mean"][member], shape)
    statistics.var = np.reshape(moments["var"][member], shape)
    statistics.count = np.asarray(moments["count"][member]).item()
