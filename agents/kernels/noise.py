"""Normal noise: Philox's bits, Box and Muller's normals."""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

from upgd_ppo.agents.kernels.compile import (
    BITS,
    HALF,
    NUMBER,
    ONE,
    ROWS,
    ZERO,
    Array,
    compiled,
    f32,
)


@compiled()
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


@compiled()
def _box_muller(
    radii: NDArray[np.uint32],
    angles: NDArray[np.uint32],
    first: Array,
    second: Array,
    scale: np.float32,
) -> None:
    """Box and Muller (1958): two normal numbers from two uniform ones, here of 24 bits."""
    unit = f32(2.0**-24)
    for i in range(len(radii)):
        first[i] = f32((radii[i] >> np.uint32(8)) + np.uint32(1)) * unit
    bits = first.view(np.int32)
    for i in range(len(radii)):
        # x = m · 2ᵉ with m in [√½, √2); ln m by the polynomial of Cephes' logf
        exponent = (bits[i] - np.int32(0x3F3504F3)) >> np.int32(23)
        second[i] = f32(exponent)
        bits[i] -= exponent << np.int32(23)
    for i in range(len(radii)):
        x = first[i] - ONE
        p = f32(7.0376836292e-2)
        p = p * x - f32(1.1514610310e-1)
        p = p * x + f32(1.1676998740e-1)
        p = p * x - f32(1.2420140846e-1)
        p = p * x + f32(1.4249322787e-1)
        p = p * x - f32(1.6668057665e-1)
        p = p * x + f32(2.0000714765e-1)
        p = p * x - f32(2.4999993993e-1)
        p = p * x + f32(3.3333331174e-1)
        logarithm = x - HALF * x * x + p * x * x * x + second[i] * f32(math.log(2))
        radius = np.sqrt(max(f32(-2) * logarithm, ZERO)) * scale
        # Half the angle, in [−½π, ½π): Taylor's series of its sine and cosine.
        half = f32(np.int32(angles[i]) >> np.int32(8)) * f32(math.pi * 2.0**-24)
        s = half * half
        sine = f32(1 / 6227020800)
        sine = sine * s - f32(1 / 39916800)
        sine = sine * s + f32(1 / 362880)
        sine = sine * s - f32(1 / 5040)
        sine = sine * s + f32(1 / 120)
        sine = sine * s - f32(1 / 6)
        sine = half + half * s * sine
        cosine = f32(1 / 479001600)
        cosine = cosine * s - f32(1 / 3628800)
        cosine = cosine * s + f32(1 / 40320)
        cosine = cosine * s - f32(1 / 720)
        cosine = cosine * s + f32(1 / 24)
        cosine = cosine * s - HALF
        cosine = ONE + s * cosine
        first[i] = radius * (cosine * cosine - sine * sine)
        second[i] = radius * f32(2) * sine * cosine


@compiled(ROWS, BITS, NUMBER)
def fill_with_normals(out: Array, keys: NDArray[np.uint32], scale: np.float32) -> None:
    """Fill `out` [S, D] with normal numbers of standard deviation `scale`.

    Args:
        keys: [S, 2]; row s depends on keys[s] alone.
    """
    num_blocks = (out.shape[1] + 3) // 4
    counter = np.zeros(4, np.uint32)
    words = np.empty((4, num_blocks), np.uint32)
    normals = np.empty((4, num_blocks), f32)
    for row in range(len(out)):
        philox(words, counter, keys[row])
        _box_muller(words[0], words[1], normals[0], normals[1], scale)
        _box_muller(words[2], words[3], normals[2], normals[3], scale)
        out[row] = normals.reshape(-1)[: out.shape[1]]
