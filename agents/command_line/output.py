"""What is printed, where it may be impossible to print: a full disk, a closed pipe or terminal."""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Iterator
from typing import Any

# ValueError: the stream is closed, or cannot encode a character. RuntimeError: a signal handler
# prints while the same stream is being written to.
_TROUBLE = (OSError, ValueError, RuntimeError)


class ForgivingStream:
    """A text stream that loses what it cannot write, rather than raise."""

    def __init__(self, stream: Any) -> None:
        self._stream = stream

    def write(self, text: str) -> int:
        """Write what can be written; the length of the text in any case."""
        with contextlib.suppress(*_TROUBLE):
            try:
                self._stream.write(text)
            except UnicodeEncodeError as error:
                self._stream.write(text.encode(error.encoding, "replace").decode(error.encoding))
        return len(text)

    def writelines(self, lines: list[str]) -> None:
        """Write all of them, as far as possible."""
        for line in lines:
            self.write(line)

    def flush(self) -> None:
        """Flush, if possible."""
        with contextlib.suppress(*_TROUBLE):
            self._stream.flush()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)


@contextlib.contextmanager
def forgiving_output() -> Iterator[None]:
    """While this context is entered, printing raises nothing, and neither does Python's own last
    flush at the end of the process."""
    streams = sys.stdout, sys.stderr
    sys.stdout, sys.stderr = (stream and ForgivingStream(stream) for stream in streams)
    try:
        yield
    finally:
        sys.stdout, sys.stderr = streams
        for stream in streams:
            if stream is not None:
                _give_up_what_is_pending(stream)


def _give_up_what_is_pending(stream: Any) -> None:
    try:
        stream.flush()
    except _TROUBLE:
        with contextlib.suppress(*_TROUBLE):
            nowhere = os.open(os.devnull, os.O_WRONLY)
            os.dup2(nowhere, stream.fileno())
            os.close(nowhere)
