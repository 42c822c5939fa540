"""What numba compiles: see `agents.compiled`, which says whether to use it.

Nothing here allocates per element or calls back into Python. `contract` and `reassoc` let sums be
vectorised; infinities and NaN keep their meaning.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numba
import numpy as np
from numpy.typing import NDArray

from agents import distribution

Array = NDArray[np.float32]
ACTIVATIONS = ("tanh", "relu")
"""The activations that `ppo_gradient` knows; it takes their index."""

_f32 = np.float32
_ZERO, _HALF, _ONE = _f32(0), _f32(0.5), _f32(1)
_TINY = np.finfo(np.float32).tiny
_LOG_2, _LOG_SQRT_2PI = _f32(math.log(2)), _f32(distribution.LOG_SQRT_2PI)
_STD_SHIFT, _STD_FLOOR = _f32(distribution.STD_SHIFT), _f32(distribution.STD_FLOOR)


# Rows are contiguous; samples and vectors, parts of something longer, need not be.
_number, _bits = numba.float32, numba.uint32[:, ::1]
_rows, _sizes = numba.float32[:, ::1], numba.int64[::1]
_samples, _vectors = numba.float32[:, :], numba.float32[:, :, :]


def _compile(*arguments: Any) -> Callable[[Any], Any]:
    """Has a function compiled for these types of arguments, here and now and nothing else later;
    one that only others call is compiled as they need it."""
    signature = numba.void(*arguments) if arguments else None
    options: dict[str, Any] = {"error_model": "numpy", "fastmath": {"contract", "reassoc"}}

    def compiled(function: Any) -> Any:
        try:
            return numba.njit(signature, cache=True, **options)(function)
        except (RuntimeError, OSError):  # what was compiled cannot be kept
            return numba.njit(signature, **options)(function)

    return compiled


@_compile()
def tanh(x: np.float32) -> np.float32:
    """tanh to 3e-7, as a quotient of polynomials, which is vectorised where a call is not.

    The coefficients are those of Eigen (`ptanh_float`), a minimax fit on [−7.9, 7.9].
    """
    limit = _f32(7.90531110763549805)
    x = limit if x > limit else x
    x = -limit if x < -limit else x
    s = x * x
    p = _f32(-2.76076847742355e-16)
    p = p * s + _f32(2.00018790482477e-13)
    p = p * s + _f32(-8.60467152213735e-11)
    p = p * s + _f32(5.12229709037114e-08)
    p = p * s + _f32(1.48572235717979e-05)
    p = p * s + _f32(6.37261928875436e-04)
    p = p * s + _f32(4.89352455891786e-03)
    q = _f32(1.19825839466702e-06)
    q = q * s + _f32(1.18534705686654e-04)
    q = q * s + _f32(2.26843463243900e-03)
    q = q * s + _f32(4.89352518554385e-03)
    return x * p / q


# ── AdaptiveUPGD ────────────────────────────────────────────────────────────────────────────────


@_compile()
def _trace_utilities(
    traces: Array, gradients: Array, weights: Array, beta: np.float32, rest: np.float32
) -> np.float32:
    """ū ← β·ū − (1 − β)·g·w; returns max ū, NaN if one of them is NaN."""
    largest, broken = _f32(-np.inf), 0
    for i in range(len(traces)):
        utility = beta * traces[i] - rest * gradients[i] * weights[i]
        traces[i] = utility
        largest = utility if utility > largest else largest
        broken += utility != utility
    return _f32(np.nan) if broken else largest


@_compile()
def _move_adaptively(
    weights: Array,
    gradients: Array,
    traces: Array,
    exp_avg: Array,
    exp_avg_sq: Array,
    noise: Array,
    inverse_denominator: np.float32,
    beta1: np.float32,
    rest1: np.float32,
    beta2: np.float32,
    rest2: np.float32,
    inverse_correction1: np.float32,
    inverse_root_correction2: np.float32,
    eps: np.float32,
    shrink: np.float32,
    rate: np.float32,
) -> None:
    """w ← shrink·w − rate·(m̂/(√v̂ + eps) + σ·ξ)·(1 − s); s is ½ where the inverse is 0."""
    half = _HALF * inverse_denominator
    for i in range(len(weights)):
        gradient = gradients[i]
        first = beta1 * exp_avg[i] + rest1 * gradient
        second = beta2 * exp_avg_sq[i] + rest2 * gradient * gradient
        exp_avg[i], exp_avg_sq[i] = first, second
        root = np.sqrt(second) * inverse_root_correction2
        direction = first * inverse_correction1 / (root + eps) + noise[i]
        # 1 − sigmoid(x) = ½ − ½·tanh(x/2)
        gate = _HALF - _HALF * tanh(traces[i] * half) if half > _ZERO else _HALF
        weights[i] = weights[i] * shrink - rate * direction * gate


@_compile(*[_rows] * 6, *[_number] * 12)
def adaptive_upgd(
    weights: Array,
    gradients: Array,
    traces: Array,
    exp_avg: Array,
    exp_avg_sq: Array,
    noise: Array,
    beta_utility: np.float32,
    rest_utility: np.float32,
    beta1: np.float32,
    rest1: np.float32,
    beta2: np.float32,
    rest2: np.float32,
    eps: np.float32,
    correction_utility: np.float32,
    correction1: np.float32,
    correction2: np.float32,
    shrink: np.float32,
    rate: np.float32,
) -> None:
    """One step of `agents.optimizers.AdaptiveUPGD`, in place: first order, global, protecting.

    Args:
        weights, gradients, traces, exp_avg, exp_avg_sq: [S, D]; the traces are those of utility.
        noise: [S, D], σ·ξ.
        rest_utility, rest1, rest2: 1 − β, which single precision would not give exactly.
        correction_utility: 1 − β_uᵗ, or 1 for the corrected denominator.
        correction1, correction2: 1 − β₁ᵗ and 1 − β₂ᵗ.
        shrink: 1 − α·λ.
        rate: c·α.
    """
    for member in range(len(weights)):
        largest = _trace_utilities(
            traces[member], gradients[member], weights[member], beta_utility, rest_utility
        )
        denominator = largest * correction_utility
        usable = _TINY <= denominator < _f32(np.inf)
        _move_adaptively(
            weights[member],
            gradients[member],
            traces[member],
            exp_avg[member],
            exp_avg_sq[member],
            noise[member],
            _ONE / denominator if usable else _ZERO,
            beta1,
            rest1,
            beta2,
            rest2,
            _ONE / correction1,
            _ONE / np.sqrt(correction2),
            eps,
            shrink,
            rate,
        )


# ── Noise ───────────────────────────────────────────────────────────────────────────────────────


@_compile()
def philox(words: NDArray[np.uint32], counter: NDArray[np.uint32], key: NDArray[np.uint32]) -> None:
    """Fill `words` [4, n] with Philox4x32-10 (Salmon et al., 2011) of n counters from `counter`
    [4] on, its first word counting, under `key` [2]."""
    # Arrays of their own, and no call within the loop: so it is vectorised.
    words0, words1, words2, words3 = words[0], words[1], words[2], words[3]
    for i in range(len(words0)):
        c0, c1, c2, c3 = np.uint32(counter[0] + np.uint32(i)), counter[1], counter[2], counter[3]
        k0, k1 = key[0], key[1]
        for _ in range(10):
            product0 = np.uint64(c0) * np.uint64(0xD2511F53)
            product1 = np.uint64(c2) * np.uint64(0xCD9E8D57)
            c0 = np.uint32(product1 >> np.uint64(32)) ^ c1 ^ k0
            c1 = np.uint32(product1)
            c2 = np.uint32(product0 >> np.uint64(32)) ^ c3 ^ k1
            c3 = np.uint32(product0)
            k0 = np.uint32(k0 + np.uint32(0x9E3779B9))
            k1 = np.uint32(k1 + np.uint32(0xBB67AE85))
        words0[i], words1[i], words2[i], words3[i] = c0, c1, c2, c3


@_compile()
def _box_muller(
    radii: NDArray[np.uint32],
    angles: NDArray[np.uint32],
    first: Array,
    second: Array,
    scale: np.float32,
) -> None:
    """Box and Muller (1958): two normal numbers from two uniform ones, here of 24 bits."""
    unit = _f32(2.0**-24)
    for i in range(len(radii)):
        first[i] = _f32((radii[i] >> np.uint32(8)) + np.uint32(1)) * unit
    bits = first.view(np.int32)
    for i in range(len(radii)):
        # x = m · 2ᵉ with m in [√½, √2); ln m by the polynomial of Cephes' logf
        exponent = (bits[i] - np.int32(0x3F3504F3)) >> np.int32(23)
        second[i] = _f32(exponent)
        bits[i] -= exponent << np.int32(23)
    for i in range(len(radii)):
        x = first[i] - _ONE
        p = _f32(7.0376836292e-2)
        p = p * x - _f32(1.1514610310e-1)
        p = p * x + _f32(1.1676998740e-1)
        p = p * x - _f32(1.2420140846e-1)
        p = p * x + _f32(1.4249322787e-1)
        p = p * x - _f32(1.6668057665e-1)
        p = p * x + _f32(2.0000714765e-1)
        p = p * x - _f32(2.4999993993e-1)
        p = p * x + _f32(3.3333331174e-1)
        logarithm = x - _HALF * x * x + p * x * x * x + second[i] * _f32(math.log(2))
        radius = np.sqrt(max(_f32(-2) * logarithm, _ZERO)) * scale
        # Half the angle, in [−½π, ½π): Taylor's series of its sine and cosine.
        half = _f32(np.int32(angles[i]) >> np.int32(8)) * _f32(math.pi * 2.0**-24)
        s = half * half
        sine = _f32(1 / 6227020800)
        sine = sine * s - _f32(1 / 39916800)
        sine = sine * s + _f32(1 / 362880)
        sine = sine * s - _f32(1 / 5040)
        sine = sine * s + _f32(1 / 120)
        sine = sine * s - _f32(1 / 6)
        sine = half + half * s * sine
        cosine = _f32(1 / 479001600)
        cosine = cosine * s - _f32(1 / 3628800)
        cosine = cosine * s + _f32(1 / 40320)
        cosine = cosine * s - _f32(1 / 720)
        cosine = cosine * s + _f32(1 / 24)
        cosine = cosine * s - _HALF
        cosine = _ONE + s * cosine
        first[i] = radius * (cosine * cosine - sine * sine)
        second[i] = radius * _f32(2) * sine * cosine


@_compile(_rows, _bits, _number)
def fill_with_normals(out: Array, keys: NDArray[np.uint32], scale: np.float32) -> None:
    """Fill `out` [S, D] with normal numbers of standard deviation `scale`.

    Args:
        keys: [S, 2]; row s depends on keys[s] alone.
    """
    num_blocks = (out.shape[1] + 3) // 4
    counter = np.zeros(4, np.uint32)
    words = np.empty((4, num_blocks), np.uint32)
    normals = np.empty((4, num_blocks), _f32)
    for row in range(len(out)):
        philox(words, counter, keys[row])
        _box_muller(words[0], words[1], normals[0], normals[1], scale)
        _box_muller(words[2], words[3], normals[2], normals[3], scale)
        out[row] = normals.reshape(-1)[: out.shape[1]]


# ── PPO ─────────────────────────────────────────────────────────────────────────────────────────


@_compile(_rows, _sizes, _number, _rows)
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
            total = _ZERO
            for i in range(len(gradient)):
                total += gradient[i] * gradient[i]
            norms[member, part] = np.sqrt(total)
            factor = max_norm / (norms[member, part] + _f32(1e-6))
            if max_norm > _ZERO and not factor >= _ONE:
                for i in range(len(gradient)):
                    gradient[i] *= factor
            start = ends[part]


@_compile()
def _num_parameters(sizes: NDArray[np.int64]) -> int:
    total = 0
    for i in range(len(sizes) - 1):
        total += (sizes[i] + 1) * sizes[i + 1]
    return total


@_compile()
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
            elif activation == 0:
                for j in range(num_outputs):
                    z[i, j] = tanh(z[i, j] + biases[j])
            else:
                for j in range(num_outputs):
                    x = z[i, j] + biases[j]
                    z[i, j] = _ZERO if x < _ZERO else x
        h, weight_at, start = z, bias_at + num_outputs, stop
    return h


@_compile()
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
        bias_gradient[:] = _ZERO
        last = layer == len(sizes) - 2
        for i in range(size):
            if last:
                for j in range(num_outputs):
                    bias_gradient[j] += gradient[i, j]
            elif activation == 0:
                for j in range(num_outputs):
                    gradient[i, j] *= _ONE - outputs[i, j] * outputs[i, j]
                    bias_gradient[j] += gradient[i, j]
            else:
                for j in range(num_outputs):
                    gradient[i, j] = _ZERO if outputs[i, j] <= _ZERO else gradient[i, j]
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


@_compile()
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
    per_sample = _ONE / _f32(size)
    inverse_std = np.empty(num_actions, _f32)
    log_std_gradient[:] = -entropy_coef
    normalizer = _ZERO
    for a in range(num_actions):
        inverse_std[a] = np.exp(-log_std[a])
        normalizer += log_std[a] + _LOG_SQRT_2PI
    for i in range(size):
        squares = _ZERO
        for a in range(num_actions):
            z = (actions[i, a] - means[i, a]) * inverse_std[a]
            means[i, a] = z
            squares += z * z
        log_ratio = -_HALF * squares - normalizer - old_log_probs[i]
        ratio = np.exp(log_ratio)
        clipped = min(max(ratio, _ONE - clip), _ONE + clip)
        surrogate = advantages[i] * ratio
        clipped_surrogate = advantages[i] * clipped
        log_prob_gradient = -surrogate * _f32(surrogate <= clipped_surrogate) * per_sample
        for a in range(num_actions):
            z = means[i, a]
            mean_gradient[i, a] = log_prob_gradient * z * inverse_std[a]
            log_std_gradient[a] += log_prob_gradient * (z * z - _ONE)
        log_ratios[i] = log_ratio
        surrogates[i] = clipped_surrogate if clipped_surrogate < surrogate else surrogate


@_compile()
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
    per_sample = _ONE / _f32(size)
    depends = len(log_std) == 0
    std, slope = np.empty(num_actions, _f32), np.zeros(num_actions, _f32)
    z = np.empty(num_actions, _f32)
    log_std_gradient[:] = _ZERO
    entropy = _ZERO
    if not depends:
        std[:] = np.exp(log_std)
    for i in range(size):
        squares, normalizer = _ZERO, _ZERO
        for a in range(num_actions):
            if depends:
                shifted = outputs[i, num_actions + a] + _STD_SHIFT
                rest = np.exp(-abs(shifted))
                std[a] = max(shifted, _ZERO) + np.log1p(rest) + _STD_FLOOR
                slope[a] = (_ONE if shifted > _ZERO else rest) / (_ONE + rest)
                normalizer += np.log(std[a]) + _LOG_SQRT_2PI
            else:
                normalizer += log_std[a] + _LOG_SQRT_2PI
            z[a] = (actions[i, a] - outputs[i, a]) / std[a]
            squares += z[a] * z[a]
        raw = -_HALF * squares - normalizer - old_log_probs[i]
        log_ratio = min(max(raw, -max_log_ratio), max_log_ratio)
        ratio = np.exp(log_ratio)
        clipped = min(max(ratio, _ONE - clip), _ONE + clip)
        surrogate = advantages[i] * ratio
        clipped_surrogate = advantages[i] * clipped
        counts = surrogate <= clipped_surrogate and abs(raw) <= max_log_ratio
        log_prob_gradient = -surrogate * _f32(counts) * per_sample
        entropy += normalizer
        for a in range(num_actions):
            mean_gradient = log_prob_gradient * z[a] / std[a]
            gradient = log_prob_gradient * (z[a] * z[a] - _ONE) - entropy_coef * per_sample
            if squashes:
                distance = abs(actions[i, a])
                entropy += _f32(2) * (_LOG_2 - distance - np.log1p(np.exp(_f32(-2) * distance)))
                pull = _f32(2) * entropy_coef * per_sample * np.tanh(actions[i, a])
                mean_gradient += pull
                gradient += pull * z[a] * std[a]
            output_gradient[i, a] = mean_gradient
            if depends:
                output_gradient[i, num_actions + a] = gradient / std[a] * slope[a]
            else:
                log_std_gradient[a] += gradient
        log_ratios[i] = log_ratio
        surrogates[i] = clipped_surrogate if clipped_surrogate < surrogate else surrogate
    return entropy * per_sample + _HALF * _f32(num_actions)


@_compile(
    *[_rows] * 2,
    *[_sizes] * 2,
    numba.int64,
    *[_vectors] * 2,
    *[_samples] * 4,
    *[_number] * 3,
    *[numba.boolean] * 3,
    _number,
    *[_rows] * 3,
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
    """The gradient of every member's PPO loss: see `agents.ppo_gradient.compute_gradient`.

    Args:
        parameters, gradients: [S, D], laid out as actor, log_std (if it does not depend on the
            state), critic; each layer's weights [out, in] before its biases.
        actor, critic: sizes of their layers, inputs first.
        activation: an index into `ACTIVATIONS`.
        observations, actions, old_log_probs, old_values, advantages, returns: [S, M, …].
        max_log_ratio: infinite where the ratio is not clamped.
        surrogates, value_losses, log_ratios: [S, M], written.
        entropies: [S], written where the Gaussian is not plain.
    """
    size, num_actions = len(advantages[0]), len(actions[0, 0])
    plain = not (state_dependent_std or squashes or max_log_ratio < _f32(np.inf))
    widest = max(actor.max(), critic.max())
    inputs = np.empty((size, actor[0]), _f32)
    activations = np.empty(size * max(actor[1:].sum(), critic[1:].sum()), _f32)
    upstream, downstream = np.empty(size * widest, _f32), np.empty(size * widest, _f32)
    log_std_at = _num_parameters(actor)
    critic_at = log_std_at + (0 if state_dependent_std else num_actions)
    per_sample = _ONE / _f32(size)

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
                upstream[i] *= _f32(loss >= clipped_loss or change == difference)
                loss = clipped_loss if clipped_loss > loss else loss
            value_losses[member, i] = loss
        _backward(weights, gradient, critic, activation, inputs, activations, upstream, downstream)
