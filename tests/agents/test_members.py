"""The member axis of a state: what is split among members, and what is common to all."""

import numpy as np
import pytest
import torch
from test_laws import assert_equal

from upgd_ppo.agents.members import Common, join, part
from upgd_ppo.agents.runs.checkpoint import load_checkpoint, save_checkpoint


def state(first, last):
    """Of members first … last − 1, each with two environments."""
    own = range(first, last)
    return {
        "iteration": 7,
        "weights": torch.tensor([[float(member)] * 3 for member in own]),
        "healthy": np.array([True for _ in own]),
        "environments": [(member, env) for member in own for env in range(2)],
        "schedule": Common([0.5, 0.25]),
        "table": Common(torch.arange(5)),
    }


def test_a_state_is_split_and_joined_by_member_and_what_is_common_stays():
    whole = state(0, 5)
    parts = [part(whole, 0, 2, 5), part(whole, 2, 5, 5)]
    for ours, theirs in ((parts[0], state(0, 2)), (parts[1], state(2, 5)), (join(parts), whole)):
        assert ours.keys() == theirs.keys()
        for name in ("iteration", "weights", "healthy", "environments"):
            assert_equal(ours[name], theirs[name])
        assert ours["schedule"] == Common([0.5, 0.25])
        assert torch.equal(ours["table"].value, torch.arange(5))


def test_what_has_no_member_axis_and_is_not_marked_is_refused():
    with pytest.raises(ValueError, match="marked as Common"):
        part({"schedule": [0.5, 0.25]}, 0, 1, 3)


def test_a_checkpoint_keeps_the_mark_without_running_code(tmp_path):
    path = save_checkpoint(tmp_path, 1, state(0, 2), keep=1)
    torch.load(path, weights_only=True)
    loaded = load_checkpoint(path)
    assert loaded["schedule"] == Common([0.5, 0.25])
    assert torch.equal(loaded["table"].value, torch.arange(5))
    assert_equal(loaded["weights"], state(0, 2)["weights"])
