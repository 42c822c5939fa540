"""AdaptiveUPGD's step, member by member."""

from __future__ import annotations

import numpy as np

from upgd_ppo.agents.kernels.compile import (
    HALF,
    NUMBER,
    ONE,
    ROWS,
    TINY,
    ZERO,
    Array,
    compiled,
    f32,
    tanh,
)


@compiled()
def _trace_utilities(
    traces: Array, gradients: Array, weights: Array, beta: np.float32, rest: np.float32
) -> np.float32:
    """ū ← β·ū − (1 − β)·g·w; returns max ū, NaN if one of them is NaN."""
    largest, broken = f32(-np.inf), 0
    for i in range(len(traces)):
        utility = beta * traces[i] - rest * gradients[i] * weights[i]
        traces[i] = utility
        largest = utility if utility > largest else largest
        broken += utility != utility
    return f32(np.nan) if broken else largest


@compiled()
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
    half = HALF * inverse_denominator
    for i in range(len(weights)):
        gradient = gradients[i]
        first = beta1 * exp_avg[i] + rest1 * gradient
        second = beta2 * exp_avg_sq[i] + rest2 * gradient * gradient
        exp_avg[i], exp_avg_sq[i] = first, second
        root = np.sqrt(second) * inverse_root_correction2
        direction = first * inverse_correction1 / (root + eps) + noise[i]
        # 1 − sigmoid(x) = ½ − ½·tanh(x/2)
        gate = HALF - HALF * tanh(traces[i] * half) if half > ZERO else HALF
        weights[i] = weights[i] * shrink - rate * direction * gate


@compiled(*[ROWS] * 6, *[NUMBER] * 12)
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
    """One step of `optimizers.AdaptiveUPGD`, in place: first order, global, protecting.

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
        usable = TINY <= denominator < f32(np.inf)
        _move_adaptively(
            weights[member],
            gradients[member],
            traces[member],
            exp_avg[member],
            exp_avg_sq[member],
            noise[member],
            ONE / denominator if usable else ZERO,
            beta1,
            rest1,
            beta2,
            rest2,
            ONE / correction1,
            ONE / np.sqrt(correction2),
            eps,
            shrink,
            rate,
        )
