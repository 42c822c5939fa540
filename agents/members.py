"""The member axis of a state: what is of each member, and what is common to all.

In a state, tensors, arrays and lists have the member axis first: with S members their length is a
multiple of S, member-major. What is common to all members is a number, a word, or wrapped in
`Common`. A checkpoint keeps the mark.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch


@dataclass(frozen=True)
class Common:
    """Something without a member axis: the same for all members, however they are split."""

    value: Any


def join(states: list[Any]) -> Any:
    """One state of all members from those of some members each, in their order."""
    first = states[0]
    if isinstance(first, dict):
        return {key: join([state[key] for state in states]) for key in first}
    if isinstance(first, torch.Tensor):
        return torch.cat([state.cpu() for state in states])
    if isinstance(first, np.ndarray):
        return np.concatenate(states)
    if isinstance(first, list):
        return [item for state in states for item in state]
    return first


def part(state: Any, start: int, end: int, num_members: int) -> Any:
    """The state of members start … end − 1, from that of all `num_members`.

    Raises:
        ValueError: something has no member axis and is not marked as common.
    """
    if isinstance(state, dict):
        return {key: part(value, start, end, num_members) for key, value in state.items()}
    if isinstance(state, torch.Tensor | np.ndarray | list):
        each, rest = divmod(len(state), num_members)
        if rest:
            raise ValueError(
                f"A state of length {len(state)} cannot be split among {num_members} members; what"
                " is common to all of them must be marked as Common."
            )
        return state[start * each : end * each]
    return state
