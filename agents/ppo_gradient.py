"""The gradient of PPO's loss on a minibatch, written out."""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from agents import compiled
from agents.config import PPOConfig
from agents.networks import ActorCritic

LOG_SQRT_2PI = 0.5 * math.log(2 * math.pi)

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
        log_std: [S, A], of the policy.
        gradient_norms: [S], before clipping.
    """

    surrogates: Tensor
    value_losses: Tensor
    log_ratios: Tensor
    log_std: Tensor
    gradient_norms: Tensor


def compute_gradient(
    networks: ActorCritic, minibatch: dict[str, Tensor], config: PPOConfig
) -> MinibatchTerms:
    """Write the gradient of each member's PPO loss into the networks' gradient buffer, scaled
    down to a norm of `max_grad_norm` as `torch.nn.utils.clip_grad_norm_` does.

    The loss is that of Schulman et al. (2017), eq. 9, with the clipped value loss of the published
    implementation.

    Args:
        networks: of S members.
        minibatch: "observations" [S, M, O], "actions" [S, M, A], and "log_probs", "values",
            "advantages" (as they are to count: see `normalize_minibatches`), "returns" [S, M].
        config: the coefficients.
    """
    if networks.uses_kernels:
        return _compiled_gradient(networks, minibatch, config)
    terms = _gradient(networks, minibatch, config)
    if config.max_grad_norm > 0:
        factors = (config.max_grad_norm / (terms.gradient_norms + 1e-6)).clamp(max=1.0)
        networks.parameters.gradient.mul_(factors.unsqueeze(1))
    return terms


def _gradient(
    networks: ActorCritic, minibatch: dict[str, Tensor], config: PPOConfig
) -> MinibatchTerms:
    """Operations on all members at once, one network after the other, so that what its backward
    pass needs of the forward pass is still near."""
    size = minibatch["values"].shape[1]
    clip = config.clip_coef
    gradients = networks.parameters.gradient_views

    means = networks.actor.forward(minibatch["observations"])
    log_std = networks.log_std.clone()
    inverse_std = torch.exp(-log_std).unsqueeze(1)
    z = (minibatch["actions"] - means) * inverse_std
    log_ratios = gaussian_log_probs(z, log_std) - minibatch["log_probs"]
    ratios = log_ratios.exp()
    surrogates = minibatch["advantages"] * ratios
    clipped_surrogates = minibatch["advantages"] * ratios.clamp(1 - clip, 1 + clip)
    counts = surrogates <= clipped_surrogates
    log_prob_gradient = (surrogates * counts).mul_(-1 / size).unsqueeze(-1)
    z_gradient = log_prob_gradient * z
    gradients["actor.log_std"].copy_(
        (z_gradient * z - log_prob_gradient).sum(1) - config.entropy_coef
    )
    networks.actor.backward(z_gradient * inverse_std)

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
        log_std,
        torch.linalg.vector_norm(networks.parameters.gradient, dim=1),
    )


def _compiled_gradient(
    networks: ActorCritic, minibatch: dict[str, Tensor], config: PPOConfig
) -> MinibatchTerms:
    """The same by a compiled kernel, one member after the other."""
    kernels = compiled.kernels()
    assert kernels
    parameters = networks.parameters
    names = ("observations", "actions", "log_probs", "values", "advantages", "returns")
    shape = minibatch["values"].shape
    surrogates, value_losses, log_ratios = np.empty((3, *shape), np.float32)
    norms = np.empty(shape[0], np.float32)
    log_std = networks.log_std.clone()
    kernels.ppo_gradient(
        parameters.data.numpy(),
        parameters.gradient.numpy(),
        np.array(networks.actor.sizes),
        np.array(networks.critic.sizes),
        kernels.ACTIVATIONS.index(networks.activation_name),
        *(minibatch[name].numpy() for name in names),
        np.float32(config.clip_coef),
        np.float32(config.value_coef),
        np.float32(config.entropy_coef),
        config.clip_value_loss,
        surrogates,
        value_losses,
        log_ratios,
    )
    kernels.scale_to_norm(parameters.gradient.numpy(), np.float32(config.max_grad_norm), norms)
    return MinibatchTerms(
        torch.from_numpy(surrogates),
        torch.from_numpy(value_losses),
        torch.from_numpy(log_ratios),
        log_std,
        torch.from_numpy(norms),
    )


def minibatch_statistics(minibatches: list[MinibatchTerms], clip_coef: float) -> Tensor:
    """What is logged of each minibatch: [minibatches, S, len(MINIBATCH_STATISTICS)]."""
    surrogates, value_losses, log_ratios, log_std, gradient_norms = (
        torch.stack(terms) for terms in zip(*minibatches, strict=True)
    )
    ratios = log_ratios.exp()
    changes = ratios - 1
    return torch.stack(
        [
            -surrogates.mean(2),
            0.5 * value_losses.mean(2),
            (log_std + (0.5 + LOG_SQRT_2PI)).sum(2),
            approx_kl(log_ratios),
            gradient_norms,
            (changes.abs() > clip_coef).to(ratios.dtype).mean(2),
            ratios.amax(2),
        ],
        dim=2,
    )


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


def gaussian_log_probs(z: Tensor, log_std: Tensor) -> Tensor:
    """Log-densities [S, B] of a diagonal Gaussian at z = (action − mean) / std, [S, B, A].

    Args:
        z: [S, B, A].
        log_std: [S, A].
    """
    normalizers = (log_std + LOG_SQRT_2PI).sum(1, keepdim=True)
    return torch.square(z).sum(-1).mul_(-0.5).sub_(normalizers)
