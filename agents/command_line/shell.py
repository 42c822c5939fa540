"""Commands as the person at the terminal can type them."""

from __future__ import annotations

import shutil
import sys
from pathlib import Path


def typed(program: str) -> str:
    """What to type for a program of this Python's environment: its name where the shell finds it
    under that, as in an activated environment, else its path.

    Args:
        program: such as "python" or "tensorboard".
    """
    beside = Path(sys.executable).with_name(program)
    found = shutil.which(program)
    if not beside.exists() or (found and Path(found).parent == beside.parent):
        return program
    here = Path.cwd()
    return str(beside.relative_to(here) if beside.is_relative_to(here) else beside)
