"""Before the tests: the kernels are compiled once, and not in the middle of what is timed."""

import os

# Before any BLAS is loaded, as train.py does.
os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")

import pytest

import checkout  # noqa: F401  # isort: split
from upgd_ppo.agents.kernels import switch as compiled


def pytest_configure(config):
    if not config.option.collectonly and not hasattr(config, "workerinput"):
        compiled.kernels()


@pytest.fixture(params=["kernels", "operations"])
def computed_by(request, monkeypatch):
    """What holds with the compiled kernels holds without them."""
    if request.param == "operations":
        monkeypatch.setattr(compiled, "kernels", lambda: None)
    else:
        assert compiled.kernels()
