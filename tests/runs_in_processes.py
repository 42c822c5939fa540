"""`train.py` in processes of its own, which tests kill, stop and starve."""

import multiprocessing
import os
import signal
import sys
import time
from pathlib import Path

import numpy as np
import pandas as pd
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from upgd_ppo import train
from upgd_ppo.agents.runs.checkpoint import checkpoints, load_checkpoint

ROOT = Path(__file__).parent.parent
SEEDS, ITERATIONS, ROLLOUT = 2, 24, 64
BASE = [
    *("--rollout-steps", str(ROLLOUT), "--minibatches", "4", "--epochs", "2", "--threads", "2"),
    *("--hidden-sizes", "8", "8", "--seeds", str(SEEDS), "--steps", str(ROLLOUT * ITERATIONS)),
    *("--checkpoint-every", str(2 * ROLLOUT), "--statistics-every", "3", "--print-every", "60"),
]


def in_a_process(arguments, prepare=None):
    """`train.py` in a process of its own, forked, so that it need not import anything anew."""

    def target():
        if prepare:
            prepare()
        sys.exit(train.main(arguments))

    process = multiprocessing.get_context("fork").Process(target=target)
    process.start()
    return process


def finish(process, seconds=120):
    process.join(seconds)
    assert process.exitcode is not None, "the run hangs"
    return process.exitcode


def kill_at(owner, name, call, before, about=""):
    """Have the process kill itself at the n-th call of a function: just before it, or after.

    Only calls whose arguments speak of `about` are counted.

    Its workers, forked from it, are ahead of it at times; they live on until it dies.
    """

    def prepare():
        original, calls, run = getattr(owner, name), 0, os.getpid()

        def fatal(*arguments, **keywords):
            nonlocal calls
            if os.getpid() != run or about not in str(arguments):
                return original(*arguments, **keywords)
            calls += 1
            if calls == call and before:
                os.kill(os.getpid(), signal.SIGKILL)
            result = original(*arguments, **keywords)
            if calls == call:
                os.kill(os.getpid(), signal.SIGKILL)
            return result

        setattr(owner, name, fatal)

    return prepare


def assert_same_run(ours, theirs):
    states = [
        load_checkpoint(checkpoints(Path(d, "checkpoints"))[0])["agent"] for d in (ours, theirs)
    ]
    for key in ("parameters", "next_observations", "healthy"):
        np.testing.assert_array_equal(*[np.asarray(state[key]) for state in states])
    for table in ("episodes", "statistics"):
        frames = [pd.read_parquet(Path(d, "records", table)) for d in (ours, theirs)]
        pd.testing.assert_frame_equal(*frames)
    for name in ("seed_1", "seed_2", "population"):
        logs = [
            EventAccumulator(str(Path(d, "tensorboard", name))).Reload() for d in (ours, theirs)
        ]
        assert logs[0].Tags()["scalars"] == logs[1].Tags()["scalars"]
        for tag in logs[0].Tags()["scalars"]:
            if not tag.endswith("time/fps"):
                curves = [[(e.step, e.value) for e in log.Scalars(tag)] for log in logs]
                assert curves[0] == curves[1], tag


def wait_until(condition, process, seconds=120):
    """Wait for something to happen while a run goes on."""
    end = time.monotonic() + seconds
    while not condition():
        assert process.exitcode is None, "the run has ended"
        assert time.monotonic() < end, "it never happens"
        time.sleep(0.02)


def children_of(process):
    """The process ids of a run's workers."""
    return [
        int(i) for i in Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
    ]


def is_gone(pid):
    """Whether a process has ended; one that nobody has asked for its exit code counts."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] in "ZX"
    except FileNotFoundError:
        return True
