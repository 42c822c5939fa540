"""What is saved of a run, and how it is kept whole.

A checkpoint is one file of tensors and plain containers, read with `weights_only=True`, so that
loading one never runs code. Its name carries the step and the beginning of its SHA-256.
"""

from __future__ import annotations

import hashlib
import io
import os
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import torch

DIGEST_LENGTH = 16
_ARRAY_KEY = "__numpy__"


class DamagedCheckpointError(ValueError):
    """A checkpoint file that is not what was written."""


def save_checkpoint(folder: Path, step: int, state: dict[str, Any], keep: int) -> Path:
    """Write a checkpoint beside the others, sync it, give it its name, and drop the oldest.

    Args:
        folder: the run's `checkpoints/`; made if missing.
        step: environment steps per member.
        state: nested dicts and lists of tensors, arrays and plain values.
        keep: how many of the newest to keep.
    """
    folder.mkdir(parents=True, exist_ok=True)
    buffer = io.BytesIO()
    torch.save(_pack(state), buffer)
    content = buffer.getbuffer()
    digest = hashlib.sha256(content).hexdigest()[:DIGEST_LENGTH]
    path = folder / f"step-{step:012d}-{digest}.pt"
    partial = folder / f"step-{step:012d}.partial"
    with open(partial, "wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())
    os.replace(partial, path)
    _sync_folder(folder)
    for old in checkpoints(folder)[keep:]:
        old.unlink()
    return path


def load_checkpoint(path: Path) -> dict[str, Any]:
    """The state that was saved.

    Raises:
        DamagedCheckpointError: if the file is not what was written.
    """
    content = path.read_bytes()
    digest = hashlib.sha256(content).hexdigest()[:DIGEST_LENGTH]
    if not path.stem.endswith(digest):
        raise DamagedCheckpointError(
            f"The checkpoint {path} is damaged: its checksum is {digest}, not that of its name."
        )
    try:
        packed = torch.load(io.BytesIO(content), map_location="cpu", weights_only=True)
    except (pickle.UnpicklingError, RuntimeError, EOFError) as error:
        raise DamagedCheckpointError(f"The checkpoint {path} cannot be read: {error}.") from error
    return _unpack(packed)


def checkpoints(folder: Path) -> list[Path]:
    """The checkpoints of a run, newest first."""
    return sorted(folder.glob("step-*-*.pt"), reverse=True)


def _sync_folder(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _pack(tree: Any) -> Any:
    if isinstance(tree, dict):
        return {key: _pack(value) for key, value in tree.items()}
    if isinstance(tree, list | tuple):
        return [_pack(value) for value in tree]
    if isinstance(tree, np.ndarray):
        return {_ARRAY_KEY: torch.from_numpy(np.ascontiguousarray(tree))}
    if isinstance(tree, np.generic):
        return tree.item()
    return tree


def _unpack(tree: Any) -> Any:
    if isinstance(tree, dict):
        if _ARRAY_KEY in tree:
            return tree[_ARRAY_KEY].numpy()
        return {key: _unpack(value) for key, value in tree.items()}
    if isinstance(tree, list):
        return [_unpack(value) for value in tree]
    return tree
