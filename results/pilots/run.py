"""Run the pilots of pilots.yaml that are not finished, in order; stop and start it at will.

    python results/pilots/run.py                      # two at a time
    python results/pilots/run.py --at-once 1 ladder_  # those whose names begin so, one at a time

Ctrl-C or SIGTERM lets every run save itself; the next start continues them where they were.
"""

from __future__ import annotations

import argparse
import queue
import shlex
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import yaml

HERE = Path(__file__).parent
ROOT = HERE.parent.parent
INTERRUPTED = 75
"""What train.py exits with when it was asked to stop and can be continued."""


class Pilots:
    """What is to be run, and the processes that run it.

    Args:
        names: of the pilots, in order.
        file: pilots.yaml, read.
        folder: where their run directories go, and NAME.done once a pilot is finished.
        steps: per seed, instead of what the pilots say.
    """

    def __init__(self, names: list[str], file: dict, folder: Path, steps: str | None) -> None:
        self.file, self.folder, self.steps = file, folder, steps
        self.waiting: queue.SimpleQueue[str] = queue.SimpleQueue()
        for name in names:
            self.waiting.put(name)
        self.running: dict[str, subprocess.Popen] = {}
        self.failed: list[str] = []
        self.stopping = False
        self.lock = threading.Lock()

    def work(self) -> None:
        """Run one pilot after the other until none is left, or all are to stop."""
        while not self.stopping:
            try:
                name = self.waiting.get_nowait()
            except queue.Empty:
                return
            if not self._done(name).exists():
                self._run(name)

    def stop(self) -> None:
        """Let every run save itself."""
        with self.lock:
            self.stopping = True
            for process in self.running.values():
                process.terminate()

    def _run(self, name: str) -> None:
        began = time.monotonic()
        with self.lock:
            if self.stopping:
                return
            with (self.folder / f"{name}.log").open("a") as log:
                # A session of its own: a Ctrl-C in the terminal reaches it once, by `stop`.
                process = subprocess.Popen(
                    ["nice", *self._command(name)],
                    cwd=ROOT,
                    stdout=log,
                    stderr=log,
                    start_new_session=True,
                )
            self.running[name] = process
        print(f"{name}: running, process {process.pid}", flush=True)
        code = process.wait()
        with self.lock:
            del self.running[name]
        minutes = (time.monotonic() - began) / 60
        if code == 0:
            self._done(name).touch()
            print(f"{name}: finished after {minutes:.0f} minutes", flush=True)
        elif code == INTERRUPTED:
            print(f"{name}: interrupted after {minutes:.0f} minutes, to be continued", flush=True)
        else:
            self.failed.append(name)
            print(f"{name}: FAILED with exit code {code}; see {name}.log", flush=True)

    def _command(self, name: str) -> list[str]:
        out = self.folder / name
        train = [sys.executable, str(ROOT / "train.py")]
        steps = ["--steps", self.steps] if self.steps else []
        if any((out / "checkpoints").glob("*.pt")):
            return [*train, "--resume", str(out), *steps]
        if out.exists():  # it ended before its first checkpoint
            out.rename(out.with_name(f"{name}-before-{int(time.time())}"))
        words = shlex.split(f"{self.file['pilots'][name]} {self.file['common']}")
        return [*train, *words, *steps, "--out", str(out)]

    def _done(self, name: str) -> Path:
        return self.folder / f"{name}.done"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("names", nargs="*", help="beginnings of names; without any, all")
    parser.add_argument("--at-once", type=int, default=2, help="how many runs at a time")
    parser.add_argument("--folder", type=Path, default=ROOT / "runs" / "pilots")
    parser.add_argument("--steps", help="steps per seed, instead of what pilots.yaml says")
    arguments = parser.parse_args()
    file = yaml.safe_load((HERE / "pilots.yaml").read_text())
    names = [
        name
        for name in file["pilots"]
        if not arguments.names or name.startswith(tuple(arguments.names))
    ]
    folder = arguments.folder.resolve()
    folder.mkdir(parents=True, exist_ok=True)
    pilots = Pilots(names, file, folder, arguments.steps)
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda *_: pilots.stop())
    workers = [threading.Thread(target=pilots.work) for _ in range(arguments.at_once)]
    for worker in workers:
        worker.start()
    for worker in workers:
        while worker.is_alive():  # a join without end would hold signals back
            worker.join(0.5)
    if pilots.failed:
        return 1
    return INTERRUPTED if pilots.stopping else 0


if __name__ == "__main__":
    sys.exit(main())
