"""Every Python example of docs/optimizers.md runs."""

import re
from pathlib import Path

import pytest

from upgd_ppo.agents.optimizers import names

PAGE = Path(__file__).parents[2] / "docs" / "optimizers.md"
EXAMPLES = re.findall(r"```python\n(.*?)```", PAGE.read_text(), re.DOTALL)


@pytest.mark.parametrize("example", EXAMPLES, ids=range(len(EXAMPLES)))
def test_example_runs(example):
    exec(compile(example, str(PAGE), "exec"), {})


def test_every_registered_name_is_documented():
    assert [name for name in names() if f"`{name}`" not in PAGE.read_text()] == []
