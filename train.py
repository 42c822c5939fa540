"""Train one arm: PPO on one environment with one optimizer, many seeds in one process."""

from __future__ import annotations

import dataclasses
import os
import sys
from pathlib import Path
from typing import Any

# Before NumPy is imported: members are spread over threads here, never one product over several.
os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
os.environ.setdefault("OMP_NUM_THREADS", "1")

if not __package__:  # run as a script: the package is this checkout
    import checkout  # noqa: F401

import torch
import tyro

from upgd_ppo.agents.command_line.imports import import_environment, import_optimizer
from upgd_ppo.agents.command_line.output import forgiving_output
from upgd_ppo.agents.command_line.shell import this_command, typed
from upgd_ppo.agents.kernels.switch import announcement
from upgd_ppo.agents.learners.learner import Learner
from upgd_ppo.agents.methods.registry import names as method_names
from upgd_ppo.agents.optimizers.registry import names
from upgd_ppo.agents.plasticity import EarlyWarningMonitor
from upgd_ppo.agents.population.population import Population
from upgd_ppo.agents.runs.run_directory import RunDirectory, check_fixed_settings, setting_changes
from upgd_ppo.agents.runs.runner import Outcome, Runner, newest_state
from upgd_ppo.agents.settings.config import TrainConfig
from upgd_ppo.agents.settings.flags import explain, flag, parse_command, typed_flags
from upgd_ppo.agents.settings.presets import find_preset, load_preset, preset_names
from upgd_ppo.envs.gymnasium_task import RENDERING
from upgd_ppo.envs.tasks import TASKS

USAGE_ERROR = 2
FAILED = 70
"""The exit code of a run that a worker process's death has ended (sysexits' EX_SOFTWARE)."""
UNSAVED = 74
"""The exit code of a run whose last checkpoint could not be written (sysexits' EX_IOERR)."""
INTERRUPTED = 75
"""The exit code of a run that was asked to stop and can be continued (sysexits' EX_TEMPFAIL)."""

DESCRIPTION = f"""Train PPO on a MuJoCo task (or any Gymnasium environment with a Box action space)
with a pluggable optimizer, many seeds in one process.

Examples:
  python train.py --env Ant-v4 --opt upgd
  python train.py --env Ant-v4 --opt adam --seeds 30 --steps 20e6
  python train.py --config ant --opt adam --epochs 20
  python train.py --env Ant-v4 --opt adam --methods random_reset every=1000
  python train.py --resume runs/Ant-v4-upgd
  tensorboard --logdir runs

Optimizers: {", ".join(names())}, and module.Class of your own.

Methods: {", ".join(method_names())}.

Tasks: {", ".join(TASKS)}, any other Gymnasium id, and module:Id of your own.

Presets: {", ".join(preset_names())}, and YAML files of your own.

--config takes presets, whose keys are the names of the flags below; of several, later ones win,
and flags win over all of them. A module is imported only if it is named on the command line, not
if a preset or a run names it. --resume continues a run from its newest checkpoint, to the steps
it was to take or, with --steps, further. --version prints the version."""


@dataclasses.dataclass(frozen=True)
class Command(TrainConfig):
    """What the command line says."""

    config: tuple[Path, ...] = ()
    """Presets to start from: YAML files, or names of those that ship with this package."""
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
        ValueError: if a preset cannot be read, a value is out of range, a module that is named
            cannot be imported, or the run to continue does not exist.
    """
    base = TrainConfig()
    typed = typed_flags(arguments)
    for run in typed.get("resume", []):
        directory, base = RunDirectory.open(Path(run))
        missing = [name for name in directory.missing_settings() if name not in typed]
        if missing:
            raise ValueError(
                f"The settings of {run} lack {' and '.join(map(flag, missing))}: they are damaged,"
                " or of another version; to continue it, add what it was trained with."
            )
    if typed.get("config") == []:
        raise ValueError("--config names no preset; give a YAML file, or a name such as ant.")
    for preset in typed.get("config", []):
        base = load_preset(find_preset(preset), base)
    groups = {group.name: getattr(base, group.name) for group in dataclasses.fields(base)}
    command = parse_command(
        Command,
        arguments,
        "train.py",
        DESCRIPTION,
        default=Command(**groups),
        config=(tyro.conf.OmitArgPrefixes,),
    )
    command.settings.check()
    # What a preset or a run names is never imported: see `upgd_ppo.agents.command_line.imports`.
    if command.run.env in typed.get("env", []):
        import_environment(command.run.env)
    if command.run.opt in typed.get("opt", []):
        import_optimizer(command.run.opt)
    if "env_kwargs" in typed:
        _check_env_kwargs(command.settings)
    return command


def set_up(command: Command) -> Runner:
    """Everything that a run needs, made or restored.

    Raises:
        ValueError: if the environment, the optimizer, the device or the directory will not do.
    """
    config = command.settings
    _check_device(config.run.device)
    if command.resume is not None:
        return _continue(command, config)
    # Before the directory is locked: its processes must not inherit the lock.
    population = Population(config)
    return make_runner(config, population, RunDirectory.create(config))


def make_runner(
    config: TrainConfig,
    learner: Learner,
    directory: RunDirectory,
    state: dict[str, Any] | None = None,
) -> Runner:
    """The runner of an arm.

    Args:
        state: where a continued run goes on from: what `newest_state` gave.
    """
    return Runner(
        learner,
        directory,
        config.logging,
        f"{config.task} {config.run.arm}",
        EarlyWarningMonitor(dataclasses.asdict(config.warnings), config.ppo.activation),
        full=config.plasticity.tensorboard == "full",
        state=state,
    )


def _continue(command: Command, config: TrainConfig) -> Runner:
    """A run, restored from its newest checkpoint."""
    assert command.resume is not None
    directory, before = RunDirectory.open(command.resume)
    if config.run.out is not None:
        raise ValueError(f"--out {config.run.out} has no effect: a run goes on in its own folder.")
    check_fixed_settings(directory.path, before, config)
    population = Population(config)  # before the directory is locked, as above
    directory.lock()
    state = newest_state(directory)
    steps = state["agent"]["iteration"] * config.steps_per_iteration
    changes = directory.differences(before, config)
    if state["agent"]["iteration"] > config.num_iterations:
        raise ValueError(
            f"--steps {config.run.steps} is fewer than the {steps:,} that {directory.path} has"
            " taken; give more, or leave it out."
        )
    finished = state["agent"]["iteration"] == config.num_iterations
    if finished and setting_changes(before, config):
        raise ValueError(
            f"{directory.path} has taken all its {steps:,} steps, so nothing would be trained with"
            f" {'; '.join(setting_changes(before, config))}; give more --steps."
        )
    if changes and not command.accept_changes:
        raise ValueError(
            f"Continuing {command.resume} would not give what it would have given without a stop:"
            f" {'; '.join(changes)}. Add --accept-changes to continue all the same."
        )
    try:
        runner = make_runner(config, population, directory, state)
    except (RuntimeError, KeyError, IndexError, ValueError) as error:
        reason = str(error).splitlines()[0].rstrip(".")
        raise ValueError(
            f"{directory.path} cannot be continued with these settings: its checkpoint does not fit"
            f" them ({reason})."
        ) from error
    if not finished:
        for change in changes:
            runner.telemetry.event(0, runner.learner.steps, "changed", change)
        if changes:
            # With the events: from now on the settings do not tell of them.
            runner.keeper.checkpoint()
        directory.describe(config)
    return runner


@forgiving_output()
def main(arguments: list[str] | None = None) -> int:
    """Run the command; returns its exit code."""
    try:
        command = parse(sys.argv[1:] if arguments is None else arguments)
        runner = set_up(command)
    except (ValueError, OSError, MemoryError) as error:
        print(f"train.py: error: {explain(error)}", file=sys.stderr)
        return USAGE_ERROR

    config, path = command.settings, runner.directory.path
    print(
        f"Training {config.run.seeds} seed(s) of {config.run.arm} on {config.task} for"
        f" {config.run.steps:,} steps each, on {config.threads} thread(s). Output: {path}"
    )
    print(announcement(runner.learner.why_no_kernels))
    if not runner.learner.exact_state:
        print(
            f"{config.run.env} cannot save its state exactly: if this run is interrupted and"
            " continued, its episodes will begin anew."
        )
    try:
        outcome = runner.run()
    except BaseException:
        runner.learner.close()
        raise
    if outcome is Outcome.UNSAVED:
        print(
            f"train.py: error: The last checkpoint could not be written to {path}; those in"
            f" {runner.directory.checkpoints} are whole. Make room, then continue with:\n"
            f"  {this_command('train')} --resume {path}",
            file=sys.stderr,
        )
        code = UNSAVED
    elif outcome is Outcome.FAILED:
        print(
            "train.py: error: The run cannot go on. Everything up to the iteration in which that"
            " happened is saved; continue with:\n"
            f"  {this_command('train')} --resume {path}",
            file=sys.stderr,
        )
        code = FAILED
    elif outcome is Outcome.INTERRUPTED:
        print(
            "Interrupted; everything is saved. Continue with:\n"
            f"  {this_command('train')} --resume {path}"
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
    runner.learner.close()
    return code


def _check_env_kwargs(config: TrainConfig) -> None:
    """Refuse what would silently do nothing: nobody sees an environment that is trained on."""
    drawing = {"render_mode", *RENDERING} if config.run.env in TASKS else {"render_mode"}
    for name in drawing & config.run.env_kwargs.keys():
        raise ValueError(
            f"--env-kwargs {name}={config.run.env_kwargs[name]} does nothing: training draws no"
            " pictures. Film a trained run with evaluate.py RUN --video film.mp4."
        )


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
