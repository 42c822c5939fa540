"""Which members have become non-finite, and where it shows first."""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from upgd_ppo.agents.learners.rollout import Rollout


def find_sick_members(
    parameters: Tensor, rollout: Rollout, log: NDArray, may_skip_minibatches: bool
) -> dict[int, str]:
    """Members that are not to go on, each with the first cause in the order of computation.

    Args:
        parameters: [S, D], after the update.
        rollout: what they were updated on.
        log: [updates, S, n], statistics of their minibatches, the two losses first.
        may_skip_minibatches: a minibatch whose statistics are all NaN was skipped, not failed.
    """
    failed = ~np.isfinite(log[..., :2]).all(-1)
    if may_skip_minibatches:
        failed &= ~np.isnan(log).all(-1)
    signs = {
        "a non-finite observation": ~np.isfinite(rollout.observations).all((1, 2, 3)),
        "a non-finite reward": ~np.isfinite(rollout.rewards).all((1, 2)),
        "a non-finite loss": failed.any(0),
        "non-finite weights": ~torch.isfinite(parameters).all(1).cpu().numpy(),
    }
    return first_signs(signs)


def first_signs(signs: dict[str, NDArray]) -> dict[int, str]:
    """Each member that shows a sign, with the first that it shows.

    Args:
        signs: cause → [S] bool.
    """
    sick: dict[int, str] = {}
    for cause, members in signs.items():
        for member in np.flatnonzero(members).tolist():
            sick.setdefault(member, cause)
    return sick
