"""The gradient of PPO's loss on a minibatch, written out."""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from upgd_ppo.agents.kernels import switch
from upgd_ppo.agents.networks.actor_critic import ActorCritic
from upgd_ppo.agents.networks.distribution import (
    LOG_SQRT_2PI,
    gaussian_log_probs,
    log_slope,
    std_slope,
)
from upgd_ppo.agents.settings.config import PPOConfig

MINIBATCH_STATISTICS = (
    "policy_loss",
    "value_loss",
    "entropy",
    "approx_kl",
    "gradient_norm",
    "clip_fraction",
    "max_ratio",
)


class MinibatchTerms(NamedTuple):
    """What a minibatch's gradient was computed from.

    Attributes:
        surrogates: [S, M], the smaller of advantage · ratio and advantage · clipped ratio.
        value_losses: [S, M], squared errors of the critic.
        log_ratios: [S, M], of the new and the old probability of the actions.
        entropies: [S], of the policy, averaged over the minibatch; see `compute_gradient`.
        gradient_norms: [S, 1] of the whole gradient, or [S, 2] of the actor's and the critic's
            where they are clipped apart; before clipping.
    """

    surrogates: Tensor
    value_losses: Tensor
    log_ratios: Tensor
    entropies: Tensor
    gradient_norms: Tensor


def compute_gradient(
    networks: ActorCritic, minibatch: dict[str, Tensor], config: PPOConfig
) -> MinibatchTerms:
    """Write the gradient of each member's PPO loss into the networks' gradient buffer, scaled
    down to a norm of `max_grad_norm` as `torch.nn.utils.clip_grad_norm_` does: as a whole, or the
    actor's and the critic's apart.

    The loss is that of Schulman et al. (2017), eq. 9, with the clipped value loss of the published
    implementation, or the plain mean squared error; either counts by half.

    The entropy of squashed actions has no closed form. It is estimated from the actions that were
    taken, E[log-density] + E[log slope of tanh], with its gradient by reparameterisation: each
    draw moves as mean + std · z does at the z it now has. (Of actions scaled to ±1.)

    Args:
        networks: of S members.
        minibatch: "observations" [S, M, O], "actions" [S, M, A] as drawn, before tanh, and
            "log_probs", "values", "advantages" (as they are to count: normalised), "returns"
            [S, M].
        config: the coefficients.
    """
    if networks.why_no_kernels is None:
        return _compiled_gradient(networks, minibatch, config)
    terms = _gradient(networks, minibatch, config)
    if config.max_grad_norm > 0:
        factors = (config.max_grad_norm / (terms.gradient_norms + 1e-6)).clamp(max=1.0)
        for part, factor in zip(gradient_parts(networks, config), factors.T, strict=True):
            part.mul_(factor.unsqueeze(1))
    return terms


def gradient_parts(networks: ActorCritic, config: PPOConfig) -> list[Tensor]:
    """What is clipped to a norm of its own: the gradients [S, …], or the actor's and critic's."""
    gradient = networks.parameters.gradient
    if not config.separate_gradient_clipping:
        return [gradient]
    return [gradient[:, : networks.critic_at], gradient[:, networks.critic_at :]]


def _gradient(
    networks: ActorCritic, minibatch: dict[str, Tensor], config: PPOConfig
) -> MinibatchTerms:
    """Operations on all members at once, one network after the other, so that what its backward
    pass needs of the forward pass is still near."""
    size = minibatch["values"].shape[1]
    clip = config.clip_coef
    gradients = networks.parameters.gradient_views

    draws = minibatch["actions"]
    outputs = networks.actor.forward(minibatch["observations"])
    if networks.state_dependent_std:
        means, std = networks.means_and_stds(outputs)
        log_std, inverse_std = std.log(), std.reciprocal()
    else:
        means, log_std = outputs, networks.log_std.unsqueeze(1)
        inverse_std = torch.exp(-log_std)
    z = (draws - means) * inverse_std
    log_ratios = gaussian_log_probs(z, log_std) - minibatch["log_probs"]
    within = None
    if config.max_log_ratio is not None:
        within = log_ratios.abs() <= config.max_log_ratio
        log_ratios = log_ratios.clamp(-config.max_log_ratio, config.max_log_ratio)
    ratios = log_ratios.exp()
    surrogates = minibatch["advantages"] * ratios
    clipped_surrogates = minibatch["advantages"] * ratios.clamp(1 - clip, 1 + clip)
    counts = surrogates <= clipped_surrogates
    if within is not None:
        counts &= within
    log_prob_gradient = (surrogates * counts).mul_(-1 / size).unsqueeze(-1)
    z_gradient = log_prob_gradient * z
    mean_gradient = z_gradient * inverse_std
    log_std_gradient = z_gradient * z - log_prob_gradient
    entropies = (log_std + (0.5 + LOG_SQRT_2PI)).sum(2).mean(1)
    if config.squash_actions:
        entropies = entropies + log_slope(draws).sum(2).mean(1)
        slope = torch.tanh(draws).mul_(2 * config.entropy_coef / size)
        mean_gradient = mean_gradient + slope
        log_std_gradient = log_std_gradient + slope * z / inverse_std
    if networks.state_dependent_std:
        log_std_gradient = log_std_gradient - config.entropy_coef / size
        raw = outputs[..., networks.action_size :]
        raw_gradient = log_std_gradient * inverse_std * std_slope(raw)
        networks.actor.backward(torch.cat([mean_gradient, raw_gradient], -1))
    else:
        gradients["actor.log_std"].copy_(log_std_gradient.sum(1) - config.entropy_coef)
        networks.actor.backward(mean_gradient)

    values = networks.critic.forward(minibatch["observations"]).squeeze(-1)
    value_errors = values - minibatch["returns"]
    value_losses = value_errors.square()
    value_gradient = value_errors * (config.value_coef / size)
    if config.clip_value_loss:
        difference = values - minibatch["values"]
        change = difference.clamp(-clip, clip)
        clipped_losses = (minibatch["values"] + change - minibatch["returns"]).square()
        # What is not clipped may still come out larger, by rounding.
        counts = (value_losses >= clipped_losses) | (change == difference)
        value_gradient = value_gradient * counts
        value_losses = torch.maximum(value_losses, clipped_losses)
    networks.critic.backward(value_gradient.unsqueeze(-1))

    return MinibatchTerms(
        torch.minimum(surrogates, clipped_surrogates),
        value_losses,
        log_ratios,
        entropies,
        torch.stack(
            [torch.linalg.vector_norm(p, dim=1) for p in gradient_parts(networks, config)], 1
        ),
    )


def _compiled_gradient(
    networks: ActorCritic, minibatch: dict[str, Tensor], config: PPOConfig
) -> MinibatchTerms:
    """The same by a compiled kernel, one member after the other."""
    kernels = switch.kernels()
    assert kernels
    parameters = networks.parameters
    names = ("observations", "actions", "log_probs", "values", "advantages", "returns")
    shape = minibatch["values"].shape
    surrogates, value_losses, log_ratios = np.empty((3, *shape), np.float32)
    if networks.state_dependent_std:
        entropies = np.empty(shape[0], np.float32)
    else:
        entropies = (networks.log_std + (0.5 + LOG_SQRT_2PI)).sum(1).numpy()
    parts = [networks.critic_at] if config.separate_gradient_clipping else []
    ends = np.array([*parts, parameters.data.shape[1]])
    norms = np.empty((shape[0], len(ends)), np.float32)
    limit = math.inf if config.max_log_ratio is None else config.max_log_ratio
    kernels["ppo_gradient"](
        parameters.data.numpy(),
        parameters.gradient.numpy(),
        np.array(networks.actor.sizes),
        np.array(networks.critic.sizes),
        networks.actor.activation.kernel,
        *(minibatch[name].numpy() for name in names),
        np.float32(config.clip_coef),
        np.float32(config.value_coef),
        np.float32(config.entropy_coef),
        config.clip_value_loss,
        networks.state_dependent_std,
        config.squash_actions,
        np.float32(limit),
        surrogates,
        value_losses,
        log_ratios,
        entropies,
    )
    kernels["scale_to_norm"](
        parameters.gradient.numpy(), ends, np.float32(config.max_grad_norm), norms
    )
    return MinibatchTerms(
        torch.from_numpy(surrogates),
        torch.from_numpy(value_losses),
        torch.from_numpy(log_ratios),
        torch.from_numpy(entropies),
        torch.from_numpy(norms),
    )


def minibatch_statistics(minibatches: list[MinibatchTerms], clip_coef: float) -> Tensor:
    """What is logged of each minibatch: [minibatches, S, len(MINIBATCH_STATISTICS)]."""
    surrogates, value_losses, log_ratios, entropies, gradient_norms = (
        torch.stack(terms) for terms in zip(*minibatches, strict=True)
    )
    ratios = log_ratios.exp()
    changes = ratios - 1
    return torch.stack(
        [
            -surrogates.mean(2),
            0.5 * value_losses.mean(2),
            entropies,
            approx_kl(log_ratios),
            total_norms(gradient_norms),
            (changes.abs() > clip_coef).to(ratios.dtype).mean(2),
            ratios.amax(2),
        ],
        dim=2,
    )


def total_norms(norms: Tensor) -> Tensor:
    """The norms [...] of gradients whose parts have the norms [..., parts]."""
    if norms.shape[-1] == 1:
        return norms.squeeze(-1)
    return norms.square().sum(-1).sqrt()


def approx_kl(log_ratios: Tensor) -> Tensor:
    """Mean over the last axis of ratio − 1 − log ratio, which estimates KL(old || new)
    (Schulman, "Approximating KL divergence", 2020, k3)."""
    return (log_ratios.exp() - 1 - log_ratios).mean(-1)


def normalize_minibatches(advantages: Tensor, num_minibatches: int) -> Tensor:
    """Advantages with mean 0 and standard deviation 1 within each minibatch.

    Args:
        advantages: [S, samples]; a member's minibatches follow one another.
        num_minibatches: divides the number of samples, and leaves each minibatch at least two.

    Returns:
        [S, samples].
    """
    minibatches = advantages.unflatten(1, (num_minibatches, -1))
    centred = minibatches - minibatches.mean(2, keepdim=True)
    std = (centred.square().sum(2, keepdim=True) / (minibatches.shape[2] - 1)).sqrt()
    return (centred / (std + 1e-8)).flatten(1)


def normalize_rollout(advantages: Tensor) -> Tensor:
    """Advantages [S, samples] with mean 0 and standard deviation 1 over each member's rollout,
    nothing added to the standard deviation (Dohare et al., 2024)."""
    centred = advantages - advantages.mean(1, keepdim=True)
    std = (centred.square().sum(1, keepdim=True) / (advantages.shape[1] - 1)).sqrt()
    return centred / torch.where(std > 0, std, 1.0)
