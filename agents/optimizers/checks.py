"""Checks of settings, with the value in the message."""

from __future__ import annotations

import math
from collections.abc import Iterable
from numbers import Real
from typing import Any


def check_number(
    name: str,
    value: Any,
    low: float = 0.0,
    high: float = math.inf,
    *,
    low_excluded: bool = False,
) -> None:
    """Raise ValueError unless `value` is a real number with low ≤ value < high.

    Args:
        low_excluded: `low` itself is refused too.
    """
    is_number = isinstance(value, Real) and not isinstance(value, bool)
    if not is_number or not (low < value if low_excluded else low <= value) or not value < high:
        left = "(" if low_excluded else "["
        raise ValueError(f"{name} must be a number in {left}{low:g}, {high:g}), got {value!r}.")


def check_choice(name: str, value: Any, choices: Iterable[Any]) -> None:
    """Raise ValueError unless `value` is one of `choices`."""
    choices = list(choices)
    if not any(value is choice or value == choice for choice in choices):
        raise ValueError(
            f"{name} must be one of {', '.join(repr(c) for c in choices)}, got {value!r}."
        )


def check_betas(value: Any) -> None:
    """Raise ValueError unless `value` is a pair of numbers in [0, 1)."""
    if not isinstance(value, tuple | list) or len(value) != 2:
        raise ValueError(f"betas must be a pair of numbers in [0, 1), got {value!r}.")
    for i, beta in enumerate(value):
        check_number(f"betas[{i}]", beta, high=1.0)


def check_learning_rate(value: Any) -> None:
    """Raise ValueError unless `value` is a non-negative number (or a tensor holding one)."""
    check_number("lr", float(value) if hasattr(value, "item") else value)
