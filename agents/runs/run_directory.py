"""The folder that holds an arm's output: how it is named, made and described."""

from __future__ import annotations

import contextlib
import errno
import hashlib
import json
import os
import platform
import subprocess
import sys
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import IO, Any

import yaml

from upgd_ppo.agents.kernels import switch as compiled
from upgd_ppo.agents.machine.whole_files import (
    make_folder,
    remove_partial_files,
    sync_folder,
    write_whole,
)
from upgd_ppo.agents.settings.config import TrainConfig, settings_with
from upgd_ppo.agents.settings.flags import flag
from upgd_ppo.agents.settings.markers import FIXED, HARMLESS
from upgd_ppo.agents.settings.presets import load_preset, read_settings, read_text

try:
    import fcntl
except ModuleNotFoundError:  # on Windows, where nothing locks
    fcntl = None  # type: ignore[assignment]

CONFIG_FILE = "config.yaml"
VERSIONS_FILE = "versions.json"
OLD_LAST_SETTING = "warn_kl"
"""What the settings ended with before their end was marked."""

LIBRARIES = ("upgd-ppo", "torch", "numpy", "gymnasium", "mujoco", "tensorboard", "pyarrow")


class RunDirectory:
    """Where everything of one run lies. Only one process at a time may have a run's directory."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.checkpoints = path / "checkpoints"
        self.tensorboard = path / "tensorboard"
        self.records = path / "records"
        self._lock: IO[str] | None = None
        self._config: TrainConfig | None = None

    @classmethod
    def create(cls, config: TrainConfig) -> RunDirectory:
        """Make a new run's directory and describe the run in it.

        Raises:
            ValueError: if the directory holds a run already, or cannot be written.
        """
        path = config.run.out or _unused_path(config)
        directory = cls(path)
        try:
            if (path / CONFIG_FILE).exists():
                raise ValueError(
                    f"{path} already holds a run; give another --out, or continue that run with"
                    f" --resume {path}."
                )
            if path.exists() and not (path.is_dir() and not any(path.iterdir())):
                raise ValueError(f"{path} is not an empty directory; give another --out.")
            make_folder(path)
            directory.lock()
            directory.describe(config)
        except OSError as error:
            raise ValueError(
                f"Cannot write the run directory {path}: {error.strerror}; give another --out."
            ) from None
        return directory

    @classmethod
    def open(cls, path: Path) -> tuple[RunDirectory, TrainConfig]:
        """An existing run and its settings.

        Raises:
            ValueError: if the path holds no run, or its settings are damaged.
        """
        if not (path / CONFIG_FILE).is_file():
            raise ValueError(
                f"{path} is not a run directory: it has no {CONFIG_FILE}; give the folder that"
                " train.py printed when the run began."
            )
        _check_whole(path / CONFIG_FILE)
        directory = cls(path)
        directory._config = load_preset(path / CONFIG_FILE, TrainConfig())
        return directory, directory._config

    def missing_settings(self) -> list[str]:
        """The settings that the run's config.yaml does not have: those that came later."""
        known = read_settings(self.path / CONFIG_FILE)
        return [name for name in TrainConfig().to_flat() if name not in known and name != "out"]

    def lock(self) -> None:
        """Keep other processes out for as long as this one lives, and clear away what a process
        that was killed left half-written.

        Raises:
            ValueError: if another process has the directory, or it cannot be written.
        """
        if fcntl is None:
            return
        # Opened without truncating: until the lock is ours, what is in it is the other process's.
        try:
            file = open(self.path / ".lock", "a+", encoding="utf-8")  # noqa: SIM115
        except OSError as error:
            raise ValueError(f"Cannot write to {self.path}: {error.strerror}.") from None
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            file.seek(0)
            owner = file.read().strip() or "another process"
            file.close()
            raise ValueError(
                f"{self.path} is in use by {owner}; wait for it or stop it first."
            ) from None
        file.truncate(0)
        with contextlib.suppress(OSError):  # It is the lock that counts.
            file.write(f"process {os.getpid()}")
            file.flush()
        self._lock = file
        remove_partial_files(self.path)

    def describe(self, config: TrainConfig) -> None:
        """Write the settings and the versions of what computes the result."""
        self._config = config
        settings = config.to_flat()
        del settings["out"]
        # Begins with "---" and ends with "...", so that a file that was cut short shows it.
        text = yaml.safe_dump(settings, sort_keys=False, explicit_start=True, explicit_end=True)
        write_whole(self.path / CONFIG_FILE, text.encode())
        write_whole(self.path / VERSIONS_FILE, (json.dumps(versions(), indent=2) + "\n").encode())
        sync_folder(self.path)

    def restore(self) -> None:
        """Make the directory again, described as it was, if it has vanished."""
        if self._config and not (self.path / CONFIG_FILE).exists():
            make_folder(self.path)
            self.describe(self._config)

    def check_exists(self) -> None:
        """Raise FileNotFoundError if the directory has vanished, or something else stands there."""
        if not (self.path / CONFIG_FILE).is_file():
            raise FileNotFoundError(errno.ENOENT, "the directory has vanished")

    def differences(self, before: TrainConfig, now: TrainConfig) -> list[str]:
        """What would make a continued run another one than the run so far.

        Args:
            before: the run's settings so far.
            now: those it is to continue with.
        """
        changed = setting_changes(before, now)
        if before.ppo.anneal and before.num_iterations != now.num_iterations:
            changed.append(
                f"--steps {before.run.steps} → {now.run.steps}, over which the learning rate is"
                " annealed"
            )
        try:
            recorded = json.loads((self.path / VERSIONS_FILE).read_text(encoding="utf-8"))
            libraries = {**recorded["libraries"], "code": recorded["code"]}
        except (OSError, ValueError, KeyError, TypeError):
            changed.append(f"the versions it ran with are unknown ({VERSIONS_FILE} is damaged)")
            return changed
        current = versions()
        for name, version_now in {**current["libraries"], "code": current["code"]}.items():
            if libraries.get(name) != version_now:
                changed.append(f"{name} {libraries.get(name)} → {version_now}")
        return changed

    def write_status(self, status: dict[str, Any]) -> None:
        """Replace status.json, so that a reader never sees half of it."""
        text = json.dumps(status, indent=2) + "\n"
        write_whole(self.path / "status.json", text.encode(), sync=False)


def setting_changes(before: TrainConfig, now: TrainConfig) -> list[str]:
    """The settings that differ, each as a phrase, without those that change no number."""
    old, new = before.to_flat(), now.to_flat()
    harmless = settings_with(HARMLESS)
    return [
        f"{flag(name)} {_shown(old[name])} → {_shown(new[name])}"
        for name in old
        if old[name] != new[name] and name not in harmless
    ]


def check_fixed_settings(path: Path, before: TrainConfig, now: TrainConfig) -> None:
    """Refuse what no checkpoint of the run at `path` can be continued with.

    Raises:
        ValueError: naming the settings.
    """
    old, new = before.to_flat(), now.to_flat()
    fixed = settings_with(FIXED)
    changed = [name for name in old if old[name] != new[name] and name in fixed]
    if (before.ppo.target_kl is None) != (now.ppo.target_kl is None):
        changed.append("target_kl")
    if changed:
        what = "; ".join(f"{flag(n)} {_shown(old[n])} → {_shown(new[n])}" for n in changed)
        raise ValueError(
            f"{path} cannot be continued with {what}: that stays the same for the whole of a run."
            " Train another run with it, without --resume."
        )


def _shown(value: Any) -> str:
    return " ".join(map(str, value)) if isinstance(value, list) else str(value)


def _check_whole(path: Path) -> None:
    """Refuse the settings of a run that were cut short: what is missing would be guessed."""
    text = read_text(path)
    lines = text.splitlines() or [""]
    if lines[0] == "---":
        whole = lines[-1] == "..."
    else:
        whole = lines[-1].startswith(f"{OLD_LAST_SETTING}: ") and text.endswith("\n")
    if not whole:
        raise ValueError(
            f"{path} is damaged: it was cut short after line {len(lines)}, so nobody knows what"
            " was trained; put back a copy of it."
        )


def versions() -> dict[str, Any]:
    """The versions of what computes the result, and the machine it is computed on."""
    libraries = {}
    for name in LIBRARIES:
        try:
            libraries[name] = version(name)
        except PackageNotFoundError:
            continue
    libraries["kernels"] = compiled.version() or "none"
    return {
        "libraries": libraries,
        "python": platform.python_version(),
        "platform": platform.platform(),
        "processor": _processor(),
        "commit": _commit(),
        "code": _code_digest(),
        "command": " ".join(sys.argv),
    }


def _unused_path(config: TrainConfig) -> Path:
    env, arm = config.task.rpartition(":")[2], config.run.arm.rpartition(".")[2]
    name = f"{env}-{arm}".replace("/", "_")
    path, number = Path("runs") / name, 1
    while path.exists():
        number += 1
        path = Path("runs") / f"{name}-{number}"
    return path


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return platform.processor()
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return f"{names[0]} × {len(names)}" if names else platform.processor()


def _code_digest() -> str:
    """The beginning of the SHA-256 of the source that computes the result."""
    root = Path(__file__).resolve().parents[2]
    digest = hashlib.sha256()
    for folder in ("agents", "envs", "streams"):
        for path in sorted((root / folder).rglob("*.py")):
            digest.update(path.read_bytes())
    return digest.hexdigest()[:12]


def _commit() -> str | None:
    """The commit of the source tree this runs from, if it is one, with a mark for changes."""
    root = Path(__file__).resolve().parents[2]
    command = ["git", "-C", str(root), "describe", "--always", "--dirty", "--abbrev=12"]
    try:
        result = subprocess.run(command, capture_output=True, text=True, timeout=10, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return result.stdout.strip() or None
