"""Numbers that the compiled and the plain computation share."""

import math

LOG_SQRT_2PI = 0.5 * math.log(2 * math.pi)

STD_FLOOR = 0.01
"""The smallest standard deviation that the network can give."""

STD_SHIFT = math.log(math.expm1(1 - STD_FLOOR))
"""Added to the network's output, so that an output of 0 is a standard deviation of 1."""

TANH, RELU = 0, 1
"""The numbers of the activations that the kernels know."""
