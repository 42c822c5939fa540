"""Folders that appear whole or not at all."""

import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from upgd_ppo.analysis.arm import InputError


def check_writable(path: Path) -> None:
    """Find out now whether a file or folder can be made at `path`, and leave nothing behind.

    Raises:
        ValueError: if it cannot.
    """
    try:
        folder = path.parent
        while not folder.exists() and folder != folder.parent:
            folder = folder.parent
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        raise ValueError(f"{path} cannot be written: {error.strerror}.") from None


@contextmanager
def appearing_whole(out: Path) -> Iterator[Path]:
    """A folder beside `out` that takes its place when all went well and vanishes otherwise.

    Raises:
        InputError: it cannot be written.
    """
    out = out.absolute()
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        partial = Path(tempfile.mkdtemp(prefix=f".{out.name}-", dir=out.parent))
    except OSError as error:
        raise _cannot_write(out, error) from error
    try:
        yield partial
        partial.chmod(0o755)
        if out.exists() and any(out.iterdir()):
            old = partial.with_name(partial.name + "-old")
            out.rename(old)
            partial.rename(out)
            shutil.rmtree(old)
        else:
            partial.rename(out)
    except OSError as error:
        raise _cannot_write(out, error) from error
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def _cannot_write(out: Path, error: OSError) -> InputError:
    return InputError(f"Cannot write {out}: {error.strerror or error}; give another --out.")
