"""Before the tests: the kernels are compiled once, and not in the middle of what is timed."""

import os

# Before any BLAS is loaded, as train.py does.
os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")

from agents import compiled


def pytest_configure(config):
    if not config.option.collectonly and not hasattr(config, "workerinput"):
        compiled.kernels()
