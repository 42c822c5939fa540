"""From a path that a person typed to an arm."""

import dataclasses
import difflib
from pathlib import Path

from analysis.arm import Arm, InputError
from analysis.foreign import is_foreign, read_logs
from analysis.records import is_run_directory, read_run


def read_arm(text: str, environment: str | None = None) -> Arm:
    """Read `path` or `name=path`: a run directory, or a folder of others' logs.

    Args:
        environment: the task of logs that do not name theirs.

    Raises:
        InputError: there is no such folder, or no records in it.
    """
    name, _, rest = text.rpartition("=") if not Path(text).exists() else ("", "", text)
    path = Path(rest)
    if not path.is_dir():
        raise InputError(_no_folder(path))
    if is_run_directory(path):
        arm = read_run(path)
    elif is_foreign(path):
        arm = read_logs(path, environment)
    else:
        raise InputError(
            f"{path} is not a run directory (no config.yaml), and holds no TensorBoard or "
            "monitor.csv logs either."
        )
    return dataclasses.replace(arm, name=name) if name else arm


def read_arms(texts: list[str], environment: str | None = None) -> list[Arm]:
    """Read several arms and give those of one environment different names.

    Raises:
        InputError: as `read_arm`; or one folder is given twice.
    """
    arms = [read_arm(text, environment) for text in texts]
    places = [arm.path.resolve() for arm in arms]
    for position, place in enumerate(places):
        if place in places[:position]:
            raise InputError(f"{arms[position].path} is given twice: an arm cannot face itself.")
    for rename in (lambda arm: arm.path.resolve().name, lambda arm: str(arm.path)):
        taken = [(arm.environment, arm.name) for arm in arms]
        arms = [
            dataclasses.replace(arm, name=rename(arm))
            if taken.count((arm.environment, arm.name)) > 1
            else arm
            for arm in arms
        ]
    return arms


def _no_folder(path: Path) -> str:
    siblings = [entry.name for entry in path.parent.iterdir()] if path.parent.is_dir() else []
    near = difflib.get_close_matches(path.name, siblings, n=1, cutoff=0.75)
    hint = f" Did you mean {path.parent / near[0]}?" if near else ""
    return f"There is no folder {path}.{hint}"
