"""Files that appear under their names whole or not at all, and that outlive a power failure."""

from __future__ import annotations

import contextlib
import os
from pathlib import Path

PARTIAL = ".partial"
"""How the names of files end that are being written."""


def write_whole(
    path: Path, content: bytes | memoryview, partial: Path | None = None, sync: bool = True
) -> None:
    """Write a file under another name first, and then give it its own.

    Args:
        path: its name; a file that has it is replaced.
        content: all of it.
        partial: the other name, on the same file system; None is a hidden one beside `path`.
        sync: through to the disk before it has its name. The name itself is only safe after
            `sync_folder`.

    Raises:
        OSError: if it cannot be written; nothing of it is then left.
    """
    partial = partial or path.with_name(f".{path.name}{PARTIAL}")
    try:
        with open(partial, "wb") as file:
            file.write(content)
            if sync:
                file.flush()
                os.fsync(file.fileno())
        os.replace(partial, path)
    except BaseException:
        with contextlib.suppress(OSError):
            partial.unlink()
        raise


def make_folder(folder: Path) -> None:
    """Make a folder and those above it that are missing, their names through to the disk."""
    if not folder.is_dir():
        make_folder(folder.parent)
        folder.mkdir(exist_ok=True)
        sync_folder(folder.parent)


def sync_folder(folder: Path) -> None:
    """See the names of the files in a folder through to the disk."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def remove_partial_files(folder: Path) -> None:
    """Remove what a process that was killed while writing left in a folder and those below it.

    Nothing may be writing there.
    """
    for partial in folder.rglob(f"*{PARTIAL}"):
        with contextlib.suppress(OSError):
            partial.unlink()
