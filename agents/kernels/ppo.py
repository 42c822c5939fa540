"""The gradient of PPO's loss, member by member."""

from __future__ import annotations

import numba
import numpy as np
from numpy.typing import NDArray

from upgd_ppo.agents.kernels.compile import (
    HALF,
    LOG_2,
    LOG_SQRT_2PI,
    NUMBER,
    ONE,
    ROWS,
    SAMPLES,
    SIZES,
    STD_FLOOR,
    STD_SHIFT,
    VECTORS,
    ZERO,
    Array,
    compiled,
    f32,
    tanh,
)
from upgd_ppo.agents.kernels.constants import TANH


@compiled(ROWS, SIZES, NUMBER, ROWS)
def scale_to_norm(
    gradients: Array, ends: NDArray[np.int64], max_norm: np.float32, norms: Array
) -> None:
    """Write the norms of each member's parts to `norms` [S, parts], and scale each part down to
    `max_norm` if that is positive.

    Args:
        gradients: [S, D].
        ends: where the parts end, the last at D.
    """
    for member in range(len(gradients)):
        start = 0
        for part in range(len(ends)):
            gradient = gradients[member, start : ends[part]]
            total = ZERO
            for i in range(len(gradient)):
                total += gradient[i] * gradient[i]
            norms[member, part] = np.sqrt(total)
            factor = max_norm / (norms[member, part] + f32(1e-6))
            if max_norm > ZERO and not factor >= ONE:
                for i in range(len(gradient)):
                    gradient[i] *= factor
            start = ends[part]


@compiled()
def _num_parameters(sizes: NDArray[np.int64]) -> int:
    total = 0
    for i in range(len(sizes) - 1):
        total += (sizes[i] + 1) * sizes[i + 1]
    return total


@compiled()
def _forward(
    parameters: Array,
    sizes: NDArray[np.int64],
    activation: int,
    inputs: Array,
    activations: Array,
) -> Array:
    """Fill `activations` with those of one layer after the other; returns the last, [M, out]."""
    h, weight_at, start = inputs, 0, 0
    for layer in range(len(sizes) - 1):
        num_inputs, num_outputs = sizes[layer], sizes[layer + 1]
        bias_at = weight_at + num_inputs * num_outputs
        weights = parameters[weight_at:bias_at].reshape(num_outputs, num_inputs)
        biases = parameters[bias_at : bias_at + num_outputs]
        stop = start + len(inputs) * num_outputs
        z = activations[start:stop].reshape(len(inputs), num_outputs)
        np.dot(h, weights.T, z)
        last = layer == len(sizes) - 2
        for i in range(len(z)):
            if last:
                for j in range(num_outputs):
                    z[i, j] += biases[j]
            elif activation == TANH:
                for j in range(num_outputs):
                    z[i, j] = tanh(z[i, j] + biases[j])
            else:
                for j in range(num_outputs):
                    x = z[i, j] + biases[j]
                    z[i, j] = ZERO if x < ZERO else x
        h, weight_at, start = z, bias_at + num_outputs, stop
    return h


@compiled()
def _backward(
    parameters: Array,
    gradients: Array,
    sizes: NDArray[np.int64],
    activation: int,
    inputs: Array,
    activations: Array,
    upstream: Array,
    downstream: Array,
) -> None:
    """Write the gradient of the parameters, given that of the outputs in `upstream`."""
    size = len(inputs)
    weight_at, start = _num_parameters(sizes), size * sizes[1:].sum()
    for layer in range(len(sizes) - 2, -1, -1):
        num_inputs, num_outputs = sizes[layer], sizes[layer + 1]
        bias_at = weight_at - num_outputs
        weight_at = bias_at - num_inputs * num_outputs
        start -= size * num_outputs
        outputs = activations[start : start + size * num_outputs].reshape(size, num_outputs)
        gradient = upstream[: size * num_outputs].reshape(size, num_outputs)
        bias_gradient = gradients[bias_at : bias_at + num_outputs]
        bias_gradient[:] = ZERO
        last = layer == len(sizes) - 2
        for i in range(size):
            if last:
                for j in range(num_outputs):
                    bias_gradient[j] += gradient[i, j]
            elif activation == TANH:
                for j in range(num_outputs):
                    gradient[i, j] *= ONE - outputs[i, j] * outputs[i, j]
                    bias_gradient[j] += gradient[i, j]
            else:
                for j in range(num_outputs):
                    gradient[i, j] = ZERO if outputs[i, j] <= ZERO else gradient[i, j]
                    bias_gradient[j] += gradient[i, j]
        h = inputs
        if layer:
            h = activations[start - size * num_inputs : start].reshape(size, num_inputs)
        weight_gradient = gradients[weight_at:bias_at].reshape(num_outputs, num_inputs)
        np.dot(gradient.T, h, weight_gradient)
        if layer:
            weights = parameters[weight_at:bias_at].reshape(num_outputs, num_inputs)
            np.dot(gradient, weights, downstream[: size * num_inputs].reshape(size, num_inputs))
            upstream, downstream = downstream, upstream


@compiled()
def _gaussian_gradient(
    means: Array,
    log_std: Array,
    actions: Array,
    old_log_probs: Array,
    advantages: Array,
    clip: np.float32,
    entropy_coef: np.float32,
    mean_gradient: Array,
    log_std_gradient: Array,
    surrogates: Array,
    log_ratios: Array,
) -> None:
    """The gradient of one member's policy loss in the outputs of its actor [M, A], overwritten,
    and in log_std [A]."""
    size, num_actions = means.shape
    per_sample = ONE / f32(size)
    inverse_std = np.empty(num_actions, f32)
    log_std_gradient[:] = -entropy_coef
    normalizer = ZERO
    for a in range(num_actions):
        inverse_std[a] = np.exp(-log_std[a])
        normalizer += log_std[a] + LOG_SQRT_2PI
    for i in range(size):
        squares = ZERO
        for a in range(num_actions):
            z = (actions[i, a] - means[i, a]) * inverse_std[a]
            means[i, a] = z
            squares += z * z
        log_ratio = -HALF * squares - normalizer - old_log_probs[i]
        ratio = np.exp(log_ratio)
        clipped = min(max(ratio, ONE - clip), ONE + clip)
        surrogate = advantages[i] * ratio
        clipped_surrogate = advantages[i] * clipped
        log_prob_gradient = -surrogate * f32(surrogate <= clipped_surrogate) * per_sample
        for a in range(num_actions):
            z = means[i, a]
            mean_gradient[i, a] = log_prob_gradient * z * inverse_std[a]
            log_std_gradient[a] += log_prob_gradient * (z * z - ONE)
        log_ratios[i] = log_ratio
        surrogates[i] = clipped_surrogate if clipped_surrogate < surrogate else surrogate


@compiled()
def _general_gradient(
    outputs: Array,
    log_std: Array,
    actions: Array,
    old_log_probs: Array,
    advantages: Array,
    clip: np.float32,
    entropy_coef: np.float32,
    squashes: bool,
    max_log_ratio: np.float32,
    output_gradient: Array,
    log_std_gradient: Array,
    surrogates: Array,
    log_ratios: Array,
) -> np.float32:
    """The same for any policy: log_std [A], or none of it and outputs [M, 2·A]. Returns the mean
    entropy."""
    size, num_actions = actions.shape
    per_sample = ONE / f32(size)
    depends = len(log_std) == 0
    std, slope = np.empty(num_actions, f32), np.zeros(num_actions, f32)
    z = np.empty(num_actions, f32)
    log_std_gradient[:] = ZERO
    entropy = ZERO
    if not depends:
        std[:] = np.exp(log_std)
    for i in range(size):
        squares, normalizer = ZERO, ZERO
        for a in range(num_actions):
            if depends:
                shifted = outputs[i, num_actions + a] + STD_SHIFT
                rest = np.exp(-abs(shifted))
                std[a] = max(shifted, ZERO) + np.log1p(rest) + STD_FLOOR
                slope[a] = (ONE if shifted > ZERO else rest) / (ONE + rest)
                normalizer += np.log(std[a]) + LOG_SQRT_2PI
            else:
                normalizer += log_std[a] + LOG_SQRT_2PI
            z[a] = (actions[i, a] - outputs[i, a]) / std[a]
            squares += z[a] * z[a]
        raw = -HALF * squares - normalizer - old_log_probs[i]
        log_ratio = min(max(raw, -max_log_ratio), max_log_ratio)
        ratio = np.exp(log_ratio)
        clipped = min(max(ratio, ONE - clip), ONE + clip)
        surrogate = advantages[i] * ratio
        clipped_surrogate = advantages[i] * clipped
        counts = surrogate <= clipped_surrogate and abs(raw) <= max_log_ratio
        log_prob_gradient = -surrogate * f32(counts) * per_sample
        entropy += normalizer
        for a in range(num_actions):
            mean_gradient = log_prob_gradient * z[a] / std[a]
            gradient = log_prob_gradient * (z[a] * z[a] - ONE) - entropy_coef * per_sample
            if squashes:
                distance = abs(actions[i, a])
                entropy += f32(2) * (LOG_2 - distance - np.log1p(np.exp(f32(-2) * distance)))
                pull = f32(2) * entropy_coef * per_sample * np.tanh(actions[i, a])
                mean_gradient += pull
                gradient += pull * z[a] * std[a]
            output_gradient[i, a] = mean_gradient
            if depends:
                output_gradient[i, num_actions + a] = gradient / std[a] * slope[a]
            else:
                log_std_gradient[a] += gradient
        log_ratios[i] = log_ratio
        surrogates[i] = clipped_surrogate if clipped_surrogate < surrogate else surrogate
    return entropy * per_sample + HALF * f32(num_actions)


@compiled(
    *[ROWS] * 2,
    *[SIZES] * 2,
    numba.int64,
    *[VECTORS] * 2,
    *[SAMPLES] * 4,
    *[NUMBER] * 3,
    *[numba.boolean] * 3,
    NUMBER,
    *[ROWS] * 3,
    numba.float32[::1],
)
def ppo_gradient(
    parameters: Array,
    gradients: Array,
    actor: NDArray[np.int64],
    critic: NDArray[np.int64],
    activation: int,
    observations: Array,
    actions: Array,
    old_log_probs: Array,
    old_values: Array,
    advantages: Array,
    returns: Array,
    clip: np.float32,
    value_coef: np.float32,
    entropy_coef: np.float32,
    clips_value_loss: bool,
    state_dependent_std: bool,
    squashes: bool,
    max_log_ratio: np.float32,
    surrogates: Array,
    value_losses: Array,
    log_ratios: Array,
    entropies: Array,
) -> None:
    """The gradient of every member's PPO loss: see `learners.ppo_loss.compute_gradient`.

    Args:
        parameters, gradients: [S, D], laid out as actor, log_std (if it does not depend on the
            state), critic; each layer's weights [out, in] before its biases.
        actor, critic: sizes of their layers, inputs first.
        activation: its number, `TANH` or `RELU`.
        observations, actions, old_log_probs, old_values, advantages, returns: [S, M, …].
        max_log_ratio: infinite where the ratio is not clamped.
        surrogates, value_losses, log_ratios: [S, M], written.
        entropies: [S], written where the Gaussian is not plain.
    """
    size, num_actions = len(advantages[0]), len(actions[0, 0])
    plain = not (state_dependent_std or squashes or max_log_ratio < f32(np.inf))
    widest = max(actor.max(), critic.max())
    inputs = np.empty((size, actor[0]), f32)
    activations = np.empty(size * max(actor[1:].sum(), critic[1:].sum()), f32)
    upstream, downstream = np.empty(size * widest, f32), np.empty(size * widest, f32)
    log_std_at = _num_parameters(actor)
    critic_at = log_std_at + (0 if state_dependent_std else num_actions)
    per_sample = ONE / f32(size)

    for member in range(len(parameters)):
        weights, gradient = parameters[member], gradients[member]
        inputs[:] = observations[member]

        outputs = _forward(weights, actor, activation, inputs, activations)
        log_std = weights[log_std_at:critic_at]
        log_std_gradient = gradient[log_std_at:critic_at]
        output_gradient = upstream[: outputs.size].reshape(outputs.shape)
        if plain:
            _gaussian_gradient(
                outputs,
                log_std,
                actions[member],
                old_log_probs[member],
                advantages[member],
                clip,
                entropy_coef,
                output_gradient,
                log_std_gradient,
                surrogates[member],
                log_ratios[member],
            )
        else:
            entropies[member] = _general_gradient(
                outputs,
                log_std,
                actions[member],
                old_log_probs[member],
                advantages[member],
                clip,
                entropy_coef,
                squashes,
                max_log_ratio,
                output_gradient,
                log_std_gradient,
                surrogates[member],
                log_ratios[member],
            )
        _backward(weights, gradient, actor, activation, inputs, activations, upstream, downstream)

        weights, gradient = weights[critic_at:], gradient[critic_at:]
        values = _forward(weights, critic, activation, inputs, activations)
        for i in range(size):
            target, before = returns[member, i], old_values[member, i]
            error = values[i, 0] - target
            loss = error * error
            upstream[i] = error * value_coef * per_sample
            if clips_value_loss:
                difference = values[i, 0] - before
                change = min(max(difference, -clip), clip)
                clipped_loss = (before + change - target) ** 2
                upstream[i] *= f32(loss >= clipped_loss or change == difference)
                loss = clipped_loss if clipped_loss > loss else loss
            value_losses[member, i] = loss
        _backward(weights, gradient, critic, activation, inputs, activations, upstream, downstream)
