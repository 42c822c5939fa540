"""Blocks of members in processes of their own.

Threads would not do: a learner of this size spends half its time in short native calls, each of
which gives Python's global lock away and asks for it back, so that two threads together are hardly
faster than one. Processes share nothing but an iteration's report, and the state it ends with: the
state comes with every report, so that it can be saved while the process is already further.
"""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import pickle
import signal
import sys
import threading
import traceback
import weakref
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from multiprocessing.connection import Connection
from multiprocessing.process import BaseProcess
from typing import Any, Protocol

from upgd_ppo.agents.learners.iteration_report import IterationReport
from upgd_ppo.agents.learners.learner import WorkerDiedError


class Block(Protocol):
    """Some members of a population."""

    def advance(self) -> IterationReport:
        """One iteration, and what it gave."""

    def state_dict(self) -> dict[str, Any]:
        """State out."""

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """State in."""


class BlockProcess:
    """A block in a process of its own.

    Args:
        make: makes the block; called in the process.
        siblings: processes begun before, whose connections this one must not keep open.

    Attributes:
        close: ends the process, whatever it is doing.
    """

    def __init__(self, make: Callable[[], Block], siblings: list[BlockProcess]) -> None:
        # A fork shares the memory of everything imported; elsewhere than on Linux it is not safe.
        context = multiprocessing.get_context("fork" if sys.platform == "linux" else "spawn")
        self.connection, theirs = context.Pipe()
        inherited = [self.connection, *(sibling.connection for sibling in siblings)]
        self._process = context.Process(  # type: ignore[attr-defined]
            target=_serve, args=(theirs, make, inherited), daemon=True
        )
        self._process.start()
        theirs.close()
        self._state: dict[str, Any] | None = None
        # It ignores the signals that would end it, so it must not outlive this object.
        self.close = weakref.finalize(self, _end, self.connection, self._process)

    def begin_iteration(self) -> None:
        """Ask for an iteration, which follows those asked for before; goes on at once."""
        self._ask("advance")

    def report(self) -> IterationReport:
        """What the oldest iteration that is not reported yet gave, when it has ended.

        Raises:
            WorkerDiedError: here and below, if the process has died.
            RuntimeError: if something failed in it.
        """
        report, self._state = self._answer()
        return report

    def state_dict(self) -> dict[str, Any]:
        """State out, after the iteration last reported. Before the first, none may have begun."""
        if self._state is None:
            self._ask("state_dict")
            self._state = self._answer()
        return self._state

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """State in, while no iteration is under way."""
        self._ask("load_state_dict", state)
        self._answer()
        self._state = None

    def _ask(self, method: str, *arguments: Any) -> None:
        with contextlib.suppress(ConnectionError):  # Whoever fetches the answer will be told.
            self.connection.send_bytes(pickle.dumps((method, arguments)))

    def _answer(self) -> Any:
        try:
            value, error = pickle.loads(self.connection.recv_bytes())
        except (EOFError, ConnectionError):
            self._process.join()
            raise WorkerDiedError(
                f"A worker process died ({_cause_of_death(self._process.exitcode)})."
            ) from None
        if error:
            raise RuntimeError(f"A worker process failed:\n{error}")
        return value


def _end(connection: Connection, process: BaseProcess) -> None:
    """End a process, whatever it is doing."""
    process.kill()
    process.join()
    connection.close()


def _cause_of_death(code: int | None) -> str:
    if code == -signal.SIGKILL:
        return "SIGKILL, which is also how a system that is out of memory ends one"
    if code is not None and code < 0:
        return signal.Signals(-code).name
    return f"exit code {code}"


def _serve(connection: Connection, make: Callable[[], Block], inherited: list[Connection]) -> None:
    """Answer one request after another until the other side is gone."""
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)
    for other in inherited:
        other.close()
    threading.Thread(target=_end_with_parent, daemon=True).start()
    # Made at once: however many processes there are, none waits to be asked first.
    block, failure = _attempt(make)
    # Sending waits until the other side reads; the next iteration need not.
    sender = ThreadPoolExecutor(1)
    while True:
        try:
            method, arguments = pickle.loads(connection.recv_bytes())
        except (EOFError, ConnectionError):
            return
        answer = (None, failure) if failure else _attempt(partial(_do, block, method, arguments))
        sender.submit(connection.send_bytes, pickle.dumps(answer))


def _end_with_parent() -> None:
    """End this process with the one that began it, even if its iteration never ends."""
    parent = multiprocessing.parent_process()
    assert parent is not None
    parent.join()
    os._exit(1)


def _do(block: Block, method: str, arguments: tuple[Any, ...]) -> Any:
    value = getattr(block, method)(*arguments)
    return (value, block.state_dict()) if method == "advance" else value


def _attempt(call: Callable[[], Any]) -> tuple[Any, str | None]:
    """What a call gives, or the traceback of its failure, for the other side to raise."""
    try:
        return call(), None
    except Exception:
        return None, traceback.format_exc()
