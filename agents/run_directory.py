"""The folder that holds an arm's output: how it is named, made and described."""

from __future__ import annotations

import json
import os
import platform
import subprocess
import sys
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import yaml

from agents.config import TrainConfig
from agents.presets import load_preset

CONFIG_FILE = "config.yaml"
LIBRARIES = ("upgd-ppo", "torch", "numpy", "gymnasium", "mujoco", "tensorboard", "pyarrow")


class RunDirectory:
    """Where everything of one run lies."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.checkpoints = path / "checkpoints"
        self.tensorboard = path / "tensorboard"
        self.records = path / "records"

    @classmethod
    def create(cls, config: TrainConfig) -> RunDirectory:
        """Make a new run's directory and describe the run in it.

        Raises:
            ValueError: if the directory holds a run already, or cannot be written.
        """
        path = config.run.out or _unused_path(config)
        if (path / CONFIG_FILE).exists():
            raise ValueError(
                f"{path} already holds a run; give another --out, or continue that run with"
                f" --resume {path}."
            )
        if path.is_dir() and any(path.iterdir()):
            raise ValueError(f"{path} is not empty; give another --out.")
        try:
            path.mkdir(parents=True, exist_ok=True)
            settings = config.to_flat()
            del settings["out"]
            _write_whole(path / CONFIG_FILE, yaml.safe_dump(settings, sort_keys=False))
            _write_whole(path / "versions.json", json.dumps(versions(), indent=2) + "\n")
        except OSError as error:
            raise ValueError(
                f"Cannot write the run directory {path}: {error.strerror}; give another --out."
            ) from None
        return cls(path)

    @classmethod
    def open(cls, path: Path) -> tuple[RunDirectory, TrainConfig]:
        """An existing run and its settings.

        Raises:
            ValueError: if the path holds no run.
        """
        if not (path / CONFIG_FILE).is_file():
            raise ValueError(
                f"{path} is not a run directory: it has no {CONFIG_FILE}; give the folder that"
                " train.py printed when the run began."
            )
        return cls(path), load_preset(path / CONFIG_FILE, TrainConfig())

    def write_status(self, status: dict[str, Any]) -> None:
        """Replace status.json, so that a reader never sees half of it."""
        _write_whole(self.path / "status.json", json.dumps(status, indent=2) + "\n")


def versions() -> dict[str, Any]:
    """The versions of what computes the result, and the machine it is computed on."""
    libraries = {}
    for name in LIBRARIES:
        try:
            libraries[name] = version(name)
        except PackageNotFoundError:
            continue
    return {
        "libraries": libraries,
        "python": platform.python_version(),
        "platform": platform.platform(),
        "processor": _processor(),
        "commit": _commit(),
        "command": " ".join(sys.argv),
    }


def _unused_path(config: TrainConfig) -> Path:
    name = f"{config.run.env}-{config.run.opt.rsplit('.', 1)[-1]}".replace("/", "_")
    path, number = Path("runs") / name, 1
    while path.exists():
        number += 1
        path = Path("runs") / f"{name}-{number}"
    return path


def _write_whole(path: Path, text: str) -> None:
    partial = path.with_suffix(path.suffix + ".partial")
    partial.write_text(text, encoding="utf-8")
    os.replace(partial, path)


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return platform.processor()
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return f"{names[0]} × {len(names)}" if names else platform.processor()


def _commit() -> str | None:
    """The commit of the source tree this runs from, if it is one, with a mark for changes."""
    root = Path(__file__).resolve().parent.parent
    command = ["git", "-C", str(root), "describe", "--always", "--dirty", "--abbrev=12"]
    try:
        result = subprocess.run(command, capture_output=True, text=True, timeout=10, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return result.stdout.strip() or None
