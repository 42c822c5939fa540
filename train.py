"""Train one arm: PPO on one environment with one optimizer, many seeds in one process."""

from __future__ import annotations

import dataclasses
import os
import sys
from pathlib import Path

# Before NumPy is imported: members are spread over threads here, never one product over several.
os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
os.environ.setdefault("OMP_NUM_THREADS", "1")

import torch
import tyro

from agents.config import TrainConfig
from agents.population import Population
from agents.presets import load_preset
from agents.run_directory import RunDirectory
from agents.runner import Outcome, Runner, newest_state
from agents.shell import typed

USAGE_ERROR = 2
UNSAVED = 74
"""The exit code of a run whose last checkpoint could not be written (sysexits' EX_IOERR)."""
INTERRUPTED = 75
"""The exit code of a run that was asked to stop and can be continued (sysexits' EX_TEMPFAIL)."""

DESCRIPTION = """Train PPO on a MuJoCo task (or any Gymnasium environment with a Box action space)
with a pluggable optimizer, many seeds in one process.

Examples:
  python train.py --env Ant-v4 --opt upgd
  python train.py --env Ant-v4 --opt adam --seeds 30 --steps 20e6
  python train.py --config configs/ant.yaml --opt adam --epochs 20
  python train.py --resume runs/Ant-v4-upgd
  tensorboard --logdir runs

--config takes YAML presets whose keys are the names of the flags below; of several, later ones
win, and flags win over all of them. --resume continues a run from its newest checkpoint, to the
steps it was to take or, with --steps, further."""


@dataclasses.dataclass(frozen=True)
class Command(TrainConfig):
    """What the command line says."""

    config: tuple[Path, ...] = ()
    """YAML presets to start from."""
    resume: Path | None = None
    """Run directory to continue."""
    accept_changes: bool = False
    """Continue even where other settings, libraries or code will change the result."""

    @property
    def settings(self) -> TrainConfig:
        """The arm alone."""
        return TrainConfig(
            **{group.name: getattr(self, group.name) for group in dataclasses.fields(TrainConfig)}
        )


def parse(arguments: list[str]) -> Command:
    """What a command line asks for.

    Raises:
        ValueError: if a preset cannot be read, a value is out of range, or the run to continue
            does not exist.
    """
    base = TrainConfig()
    resumed = _values_of("--resume", arguments)
    if resumed:
        _, base = RunDirectory.open(Path(resumed[-1]))
    for preset in _values_of("--config", arguments):
        base = load_preset(Path(preset), base)
    groups = {group.name: getattr(base, group.name) for group in dataclasses.fields(base)}
    command = tyro.cli(
        Command,
        args=arguments,
        default=Command(**groups),
        description=DESCRIPTION,
        config=(tyro.conf.OmitArgPrefixes,),
    )
    command.settings.check()
    return command


def set_up(command: Command) -> Runner:
    """Everything that a run needs, made or restored.

    Raises:
        ValueError: if the environment, the optimizer, the device or the directory will not do.
    """
    config = command.settings
    _check_device(config.run.device)
    # Before the directory is locked: its processes must not inherit the lock.
    population = Population(config)
    if command.resume is None:
        return Runner(config, population, RunDirectory.create(config))

    directory, before = RunDirectory.open(command.resume)
    directory.lock()
    changes = directory.differences(before, config)
    if changes and not command.accept_changes:
        raise ValueError(
            f"Continuing {command.resume} would not give what it would have given without a stop:"
            f" {'; '.join(changes)}. Add --accept-changes to continue all the same."
        )
    state = newest_state(directory)
    runner = Runner(config, population, directory, state)
    directory.describe(config)
    for change in changes:
        runner.telemetry.event(0, runner.agent.steps, "changed", change)
    return runner


def main(arguments: list[str] | None = None) -> int:
    """Run the command; returns its exit code."""
    try:
        command = parse(sys.argv[1:] if arguments is None else arguments)
        runner = set_up(command)
    except ValueError as error:
        print(f"train.py: error: {error}", file=sys.stderr)
        return USAGE_ERROR

    config, path = command.settings, runner.directory.path
    print(
        f"Training {config.run.seeds} seed(s) of {config.run.opt} on {config.run.env} for"
        f" {config.run.steps:,} steps each, on {config.threads} thread(s). Output: {path}"
    )
    if not runner.agent.exact_state:
        print(
            f"{config.run.env} cannot save its state exactly: if this run is interrupted and"
            " continued, its episodes will begin anew."
        )
    outcome = runner.run()
    if outcome is Outcome.UNSAVED:
        print(
            f"train.py: error: The last checkpoint could not be written to {path}; those in"
            f" {runner.directory.checkpoints} are whole. Make room, then continue with:\n"
            f"  {typed('python')} train.py --resume {path}",
            file=sys.stderr,
        )
        code = UNSAVED
    elif outcome is Outcome.INTERRUPTED:
        print(
            "Interrupted; everything is saved. Continue with:\n"
            f"  {typed('python')} train.py --resume {path}"
        )
        code = INTERRUPTED
    else:
        print(
            f"{outcome.value.capitalize()}. Look at it with:\n"
            f"  {typed('tensorboard')} --logdir {path}\n"
            "and open the address that it prints; the tab Custom Scalars has everything on one"
            f" page. With --logdir {path.parent} the runs beside it are there, too."
        )
        code = 0
    runner.agent.close()
    return code


def _values_of(flag: str, arguments: list[str]) -> list[str]:
    """The words that follow a flag, up to the next flag."""
    values: list[str] = []
    for i, word in enumerate(arguments):
        if word.startswith(f"{flag}="):
            values = [word.partition("=")[2]]
        elif word == flag:
            following = arguments[i + 1 :]
            end = next((j for j, w in enumerate(following) if w.startswith("-")), len(following))
            values = following[:end]
    return values


def _check_device(device: str) -> None:
    try:
        torch.empty(1, device=device)
    except (RuntimeError, AssertionError):
        there = ["cpu", *(f"cuda:{i}" for i in range(torch.cuda.device_count()))]
        raise ValueError(
            f"--device {device} is not there; this machine has {', '.join(there)}."
        ) from None


if __name__ == "__main__":
    sys.exit(main())
