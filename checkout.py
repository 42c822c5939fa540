"""Importing this makes `upgd_ppo` the package in this folder, whatever else is installed.

`python train.py` and the tests import it, so that a checkout runs its own code.
"""

import importlib.util
import sys
from pathlib import Path

_ROOT = Path(__file__).resolve().parent

if "upgd_ppo" not in sys.modules:
    _spec = importlib.util.spec_from_file_location(
        "upgd_ppo", _ROOT / "__init__.py", submodule_search_locations=[str(_ROOT)]
    )
    assert _spec
    assert _spec.loader
    _package = importlib.util.module_from_spec(_spec)
    sys.modules["upgd_ppo"] = _package
    _spec.loader.exec_module(_package)
