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


def this_command(name: str) -> str:
    """What to type for a command of ours, "train" or "evaluate", by the road that was taken: a
    script of the checkout, or the program of an installed package."""
    if sys.argv[0].startswith("upgd-ppo "):  # as `upgd_ppo.__main__` leaves it
        return f"{typed('upgd-ppo')} {name}"
    return f"{typed('python')} {name}.py"
