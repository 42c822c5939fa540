"""What numba compiles: see `upgd_ppo.agents.kernels.switch`, which says whether to use it.

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

from upgd_ppo.agents.kernels import constants

Array = NDArray[np.float32]

f32 = np.float32
ZERO, HALF, ONE = f32(0), f32(0.5), f32(1)
TINY = np.finfo(np.float32).tiny
LOG_2, LOG_SQRT_2PI = f32(math.log(2)), f32(constants.LOG_SQRT_2PI)
STD_SHIFT, STD_FLOOR = f32(constants.STD_SHIFT), f32(constants.STD_FLOOR)


# Rows are contiguous; samples and vectors, parts of something longer, need not be.
NUMBER, BITS = numba.float32, numba.uint32[:, ::1]
ROWS, SIZES = numba.float32[:, ::1], numba.int64[::1]
SAMPLES, VECTORS = numba.float32[:, :], numba.float32[:, :, :]


def compiled(*arguments: Any) -> Callable[[Any], Any]:
    """Has a function compiled for these types of arguments, here and now and nothing else later;
    one that only others call is compiled as they need it."""
    signature = numba.void(*arguments) if arguments else None
    options: dict[str, Any] = {"error_model": "numpy", "fastmath": {"contract", "reassoc"}}

    def compile_now(function: Any) -> Any:
        try:
            return numba.njit(signature, cache=True, **options)(function)
        except (RuntimeError, OSError):  # what was compiled cannot be kept
            return numba.njit(signature, **options)(function)

    return compile_now


@compiled()
def tanh(x: np.float32) -> np.float32:
    """tanh to 3e-7, as a quotient of polynomials, which is vectorised where a call is not.

    The coefficients are those of Eigen (`ptanh_float`), a minimax fit on [−7.9, 7.9].
    """
    limit = f32(7.90531110763549805)
    x = limit if x > limit else x
    x = -limit if x < -limit else x
    s = x * x
    p = f32(-2.76076847742355e-16)
    p = p * s + f32(2.00018790482477e-13)
    p = p * s + f32(-8.60467152213735e-11)
    p = p * s + f32(5.12229709037114e-08)
    p = p * s + f32(1.48572235717979e-05)
    p = p * s + f32(6.37261928875436e-04)
    p = p * s + f32(4.89352455891786e-03)
    q = f32(1.19825839466702e-06)
    q = q * s + f32(1.18534705686654e-04)
    q = q * s + f32(2.26843463243900e-03)
    q = q * s + f32(4.89352518554385e-03)
    return x * p / q
