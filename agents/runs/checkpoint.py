"""What is saved of a run, and how it is kept whole.

A checkpoint is one file of tensors and plain containers, read with `weights_only=True`, so that
loading one never runs code. Its name carries the step and the beginning of its SHA-256.
"""

from __future__ import annotations

import hashlib
import io
import pickle
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import torch

from upgd_ppo.agents.machine.whole_files import make_folder, sync_folder, write_whole
from upgd_ppo.agents.members import Common

DIGEST_LENGTH = 16
_ARRAY_KEY, _COMMON_KEY = "__numpy__", "__common__"


class DamagedCheckpointError(ValueError):
    """A checkpoint file that is not what was written."""


def save_checkpoint(folder: Path, step: int, state: dict[str, Any], keep: int) -> Path:
    """Write a checkpoint beside the others, sync it, give it its name, and drop the oldest.

    Args:
        folder: the run's `checkpoints/`; made if missing.
        step: environment steps per member.
        state: nested dicts and lists of tensors, arrays and plain values; any of them may be
            marked as `Common`.
        keep: how many of the newest to keep; damaged ones do not count.

    Raises:
        OSError: if it cannot be written; the others are then all there.
    """
    make_folder(folder)
    buffer = io.BytesIO()
    torch.save(_pack(state), buffer)
    content = buffer.getbuffer()
    path = folder / f"step-{step:012d}-{_digest(content)}.pt"
    write_whole(path, content)
    sync_folder(folder)
    whole = 0
    for candidate in checkpoints(folder):
        if whole >= keep:
            candidate.unlink()
        else:
            whole += _is_whole(candidate, candidate.stat().st_mtime_ns)
    return path


def load_checkpoint(path: Path) -> dict[str, Any]:
    """The state that was saved.

    Raises:
        DamagedCheckpointError: if the file is not what was written.
    """
    try:
        content = path.read_bytes()
    except OSError as error:
        raise DamagedCheckpointError(
            f"The checkpoint {path} cannot be read: {error.strerror}."
        ) from error
    digest = _digest(content)
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


def _digest(content: bytes | memoryview) -> str:
    return hashlib.sha256(content).hexdigest()[:DIGEST_LENGTH]


@cache
def _is_whole(path: Path, modified: int) -> bool:
    """Whether a file is what was written; each is read once, unless it has been `modified`."""
    try:
        return path.stem.endswith(_digest(path.read_bytes()))
    except OSError:
        return False


def _pack(tree: Any) -> Any:
    if isinstance(tree, Common):
        return {_COMMON_KEY: _pack(tree.value)}
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
        if _COMMON_KEY in tree:
            return Common(_unpack(tree[_COMMON_KEY]))
        return {key: _unpack(value) for key, value in tree.items()}
    if isinstance(tree, list):
        return [_unpack(value) for value in tree]
    return tree
