"""The gradient of PPO's loss on a minibatch, written out."""

from __future__ import annotations

import math

import torch
from torch import Tensor

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


def compute_gradient(
    networks: ActorCritic, minibatch: dict[str, Tensor], config: PPOConfig
) -> Tensor:
    """Write the gradient of each member's PPO loss into the networks' gradient buffer.

    The loss is that of Schulman et al. (2017), eq. 9, with the clipped value loss of the published
    implementation.

    Args:
        networks: of S members.
        minibatch: "observations" [S, M, O], "actions" [S, M, A], and "log_probs", "values",
            "advantages" (as they are to count: see `normalize_minibatches`), "returns" [S, M].
        config: the coefficients.

    Returns:
        [S, len(MINIBATCH_STATISTICS)]; the gradient norm is that before clipping.
    """
    size = minibatch["values"].shape[1]
    clip = config.clip_coef

    means = networks.actor.forward(minibatch["observations"])
    values = networks.critic.forward(minibatch["observations"]).squeeze(-1)
    log_std = networks.log_std.unsqueeze(1)
    inverse_std = torch.exp(-log_std)
    z = (minibatch["actions"] - means) * inverse_std
    log_ratios = gaussian_log_probs(z, log_std) - minibatch["log_probs"]
    ratios = log_ratios.exp()

    negative_advantages = -minibatch["advantages"]
    policy_loss = negative_advantages * ratios
    clipped_policy_loss = negative_advantages * ratios.clamp(1 - clip, 1 + clip)
    log_prob_gradient = policy_loss * (policy_loss >= clipped_policy_loss) / size

    value_errors = values - minibatch["returns"]
    value_losses = value_errors.square()
    value_gradient = value_errors * (config.value_coef / size)
    if config.clip_value_loss:
        change = (values - minibatch["values"]).clamp(-clip, clip)
        clipped_losses = (minibatch["values"] + change - minibatch["returns"]).square()
        value_gradient = value_gradient * (value_losses >= clipped_losses)
        value_losses = torch.maximum(value_losses, clipped_losses)

    log_prob_gradient = log_prob_gradient.unsqueeze(-1)
    networks.actor.backward(log_prob_gradient * z * inverse_std)
    networks.critic.backward(value_gradient.unsqueeze(-1))
    log_std_gradient = (log_prob_gradient * (z * z - 1)).sum(1) - config.entropy_coef
    networks.parameters.gradient_views["actor.log_std"].copy_(log_std_gradient)

    changes = ratios - 1
    return torch.stack(
        [
            torch.maximum(policy_loss, clipped_policy_loss).mean(1),
            0.5 * value_losses.mean(1),
            (networks.log_std + (0.5 + LOG_SQRT_2PI)).sum(1),
            (changes - log_ratios).mean(1),
            torch.linalg.vector_norm(networks.parameters.gradient, dim=1),
            (changes.abs() > clip).to(ratios.dtype).mean(1),
            ratios.amax(1),
        ],
        dim=1,
    )


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


def clip_gradient(networks: ActorCritic, norms: Tensor, max_norm: float) -> None:
    """Scale each member's gradient down to a norm of at most `max_norm`.

    Args:
        networks: of S members.
        norms: [S], of the gradients.
        max_norm: as in `torch.nn.utils.clip_grad_norm_`.
    """
    factors = (max_norm / (norms + 1e-6)).clamp(max=1.0)
    networks.parameters.gradient.mul_(factors.unsqueeze(1))


def gaussian_log_probs(z: Tensor, log_std: Tensor) -> Tensor:
    """Log-densities [S, B] of a diagonal Gaussian at z = (action − mean) / std, [S, B, A]."""
    return (-0.5 * z * z - log_std - LOG_SQRT_2PI).sum(-1)
