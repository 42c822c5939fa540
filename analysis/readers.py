"""From a path that a person typed to an arm."""

import dataclasses
import difflib
from pathlib import Path

from upgd_ppo.analysis.arm import Arm, InputError
from upgd_ppo.analysis.foreign import event_folders, is_foreign, monitor_files, read_logs
from upgd_ppo.analysis.run_records import is_run_directory, is_whole_run, read_run, runs_below


def read_arm(text: str, environment: str | None = None) -> Arm:
    """Read `path` or `name=path`: a run directory, or a folder of others' logs.

    Args:
        environment: the task of logs that do not name theirs.

    Raises:
        InputError: there is no such folder, no records in it, or the runs of several arms.
    """
    name, path = _named(text)
    if is_run_directory(path):
        arm = read_run(path)
    elif runs := runs_below(path):
        raise InputError(
            f"{path} holds {len(runs)} runs, which are an arm each: name them, "
            f"{' '.join(map(str, runs))}."
        )
    elif run := next(filter(is_whole_run, path.resolve().parents), None):
        raise InputError(f"{path} is a part of the run {run}: name the run, {run}.")
    elif is_foreign(path):
        arm = read_logs(path, environment)
    else:
        raise InputError(
            f"{path} is not a run directory (no config.yaml), and holds no TensorBoard or "
            "monitor.csv logs either."
        )
    return dataclasses.replace(arm, name=name) if name else arm


def expand(text: str) -> list[str]:
    """The arms that a word names: a folder of runs of `train.py` stands for all of them.

    Raises:
        InputError: there is no such folder; or it holds runs, and others' logs or a name too.
    """
    name, path = _named(text)
    runs = [] if is_run_directory(path) else runs_below(path)
    if not runs:
        return [text]
    if name:
        raise InputError(
            f"{path} holds {len(runs)} runs, so it cannot be the arm {name}: name them one by one, "
            f"such as {name}={runs[0]}."
        )
    logs = [folder for folder in {*event_folders(path), *(f.parent for f in monitor_files(path))}]
    others = [log for log in logs if not any(log.is_relative_to(run) for run in runs)]
    if others:
        raise InputError(
            f"{path} holds {len(runs)} runs of train.py and other logs too ({min(others)}): name "
            "each arm by its folder."
        )
    return [str(run) for run in runs]


def read_arms(texts: list[str], environment: str | None = None) -> list[Arm]:
    """Read several arms and give those of one environment different names.

    A name that was given is kept; an arm that has its optimizer's takes its folder's instead where
    two would share it.

    Args:
        texts: as `read_arm` takes them; a folder of runs stands for all of them.
        environment: the task of logs that do not name theirs.

    Raises:
        InputError: as `read_arm`; nothing is named; one folder is given twice, or one name; or
            `environment` is not what any of the arms was trained on.
    """
    if not texts:
        raise InputError("Name at least one arm, such as runs/Ant-v4-adam runs/Ant-v4-upgd.")
    texts = [text for word in texts for text in expand(word)]
    arms = [read_arm(text, environment) for text in texts]
    named = [bool(_named(text)[0]) for text in texts]
    places = [arm.path.resolve() for arm in arms]
    for position, place in enumerate(places):
        if place in places[:position]:
            raise InputError(f"{arms[position].path} is given twice: an arm cannot face itself.")
    given = [(arm.environment, arm.name) for arm, own in zip(arms, named, strict=True) if own]
    for task, name in given:
        if given.count((task, name)) > 1:
            raise InputError(f"Two arms on {task} are named {name}: give them different names.")
    if environment is not None and all(arm.environment != environment for arm in arms):
        tasks = ", ".join(f"{arm.path} on {arm.environment}" for arm in arms)
        raise InputError(
            f"--env {environment} is for logs that do not name their task, but these do: {tasks}."
        )
    for rename in (lambda arm: arm.path.resolve().name, lambda arm: str(arm.path)):
        taken = [(arm.environment, arm.name) for arm in arms]
        arms = [
            dataclasses.replace(arm, name=rename(arm))
            if not own and taken.count((arm.environment, arm.name)) > 1
            else arm
            for arm, own in zip(arms, named, strict=True)
        ]
    return arms


def _named(text: str) -> tuple[str, Path]:
    """The name, empty where none is given, and the folder of `folder` or `name=folder`.

    Raises:
        InputError: there is no such folder.
    """
    name, _, rest = text.rpartition("=") if not Path(text).exists() else ("", "", text)
    path = Path(rest)
    if not rest:
        raise InputError(f"{text!r} names no folder: write NAME=FOLDER, or the folder alone.")
    if path.is_file():
        raise InputError(
            f"{path} is a file, but an arm is a folder: a run directory of train.py, or the logs "
            "of its seeds."
        )
    if not path.is_dir():
        raise InputError(_no_folder(path))
    return name, path


def _no_folder(path: Path) -> str:
    siblings = [entry.name for entry in path.parent.iterdir()] if path.parent.is_dir() else []
    near = difflib.get_close_matches(path.name, siblings, n=1, cutoff=0.75)
    hint = f" Did you mean {path.parent / near[0]}?" if near else ""
    return f"There is no folder {path}.{hint}"
