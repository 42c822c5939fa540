"""Runs that are killed, starved of disk or stopped, and what is left of them."""

import errno
import json
import multiprocessing
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

import agents.checkpoint
import agents.collector
import agents.event_log
import agents.ppo
import agents.records
import agents.runner
import agents.stopping
import agents.telemetry
import train
from agents.checkpoint import checkpoints, load_checkpoint

pytestmark = pytest.mark.slow
ROOT = Path(__file__).parent.parent
SEEDS, ITERATIONS, ROLLOUT = 2, 24, 64
BASE = [
    *("--rollout-steps", str(ROLLOUT), "--minibatches", "4", "--epochs", "2", "--threads", "2"),
    *("--hidden-sizes", "8", "8", "--seeds", str(SEEDS), "--steps", str(ROLLOUT * ITERATIONS)),
    *("--checkpoint-every", str(2 * ROLLOUT), "--statistics-every", "3", "--print-every", "60"),
]


@pytest.fixture(autouse=True)
def _in_an_empty_directory(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


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


def kill_at(owner, name, call, before):
    """Have the process kill itself at the n-th call of a function: just before it, or after.

    Its workers, forked from it, are ahead of it at times; they live on until it dies.
    """

    def prepare():
        original, calls, run = getattr(owner, name), 0, os.getpid()

        def fatal(*arguments, **keywords):
            nonlocal calls
            calls += os.getpid() == run
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


KILL_POINTS = [
    ("a step of the rollout", agents.collector.Collector, "_by_env", 150, True),
    ("an update", agents.ppo, "compute_gradient", 30, True),
    ("a checkpoint before it has its name", agents.checkpoint.os, "replace", 9, True),
    ("the dropping of old checkpoints", agents.checkpoint, "checkpoints", 3, True),
    ("the writing of records", agents.records.pq, "write_table", 2, False),
    ("the writing of events", agents.event_log.os, "fsync", 5, True),
]


@pytest.mark.parametrize("opt", ["adam", "upgd", "sgd"])
def test_a_run_killed_at_every_kind_of_moment_ends_as_one_that_was_not(opt):
    arguments = [*BASE, "--env", "Hopper-v4", "--opt", opt]
    assert finish(in_a_process([*arguments, "--out", "whole"])) == 0
    first = True
    for _, *point in KILL_POINTS:
        command = [*arguments, "--out", "killed"] if first else ["--resume", "killed"]
        code = finish(in_a_process(command, kill_at(*point)))
        assert code == -signal.SIGKILL, point
        first = not checkpoints(Path("killed/checkpoints"))
        if first:
            shutil.rmtree("killed")
    assert not first
    assert finish(in_a_process(["--resume", "killed"])) == 0
    assert_same_run("killed", "whole")


def test_a_run_killed_at_random_moments_ends_as_one_that_was_not():
    arguments = [*BASE, "--env", "Hopper-v4", "--opt", "upgd"]
    start = time.monotonic()
    assert finish(in_a_process([*arguments, "--out", "whole"])) == 0
    duration = time.monotonic() - start
    random.seed(time.time_ns())
    command = [*arguments, "--out", "killed"]
    for _ in range(5):
        process = in_a_process(command)
        time.sleep(random.uniform(0.1, 0.8) * duration)
        process.kill()
        process.join()
        if checkpoints(Path("killed/checkpoints")):
            command = ["--resume", "killed"]
        else:
            shutil.rmtree("killed", ignore_errors=True)
    assert finish(in_a_process(command)) == 0
    assert_same_run("killed", "whole")


def test_where_an_environment_cannot_be_restored_it_is_said_and_its_episode_begins_anew(capfd):
    arguments = [*BASE, "--env", "Pendulum-v1", "--opt", "adam", "--out", "run"]
    finish(in_a_process(arguments, kill_at(agents.ppo, "compute_gradient", 40, True)))
    assert "cannot save its state exactly" in capfd.readouterr().out
    assert finish(in_a_process(["--resume", "run"])) == 0
    episodes = pd.read_parquet("run/records/episodes")
    assert not episodes.duplicated(["member", "step"]).any()
    statistics = pd.read_parquet("run/records/statistics").query("statistic == 'value_loss'")
    assert (
        statistics.groupby("member").step.apply(list).tolist()
        == [list(range(ROLLOUT, ROLLOUT * ITERATIONS + 1, ROLLOUT))] * SEEDS
    )


def test_a_damaged_newest_checkpoint_falls_back_to_the_one_before(capfd):
    arguments = [*BASE, "--env", "Hopper-v4", "--opt", "adam"]
    assert finish(in_a_process([*arguments, "--out", "whole"])) == 0
    assert finish(in_a_process([*arguments, "--out", "run"])) == 0
    newest, before, *_ = checkpoints(Path("run/checkpoints"))
    content = bytearray(newest.read_bytes())
    content[len(content) // 2] ^= 1
    newest.write_bytes(content)
    assert finish(in_a_process(["--resume", "run"])) == 0
    message = capfd.readouterr().err
    assert newest.name in message
    assert "damaged" in message
    assert before.exists()
    assert_same_run("run", "whole")


def test_a_second_process_on_a_run_directory_is_refused(capfd):
    arguments = [*BASE, "--env", "Hopper-v4", "--steps", "1e6", "--out", "run"]
    first = in_a_process(arguments)
    try:
        while not checkpoints(Path("run/checkpoints")):
            time.sleep(0.05)
        assert train.main(["--resume", "run"]) == 2
        assert f"in use by process {first.pid}" in capfd.readouterr().err
    finally:
        first.kill()
        first.join()


def test_changes_that_would_change_the_result_need_an_explicit_flag(capfd):
    assert train.main([*BASE, "--env", "Hopper-v4", "--opt", "adam", "--out", "run"]) == 0
    capfd.readouterr()
    assert train.main(["--resume", "run", "--epochs", "5", "--steps", "2e3"]) == 2
    message = capfd.readouterr().err
    assert "--epochs 2 → 5" in message
    assert "--steps 1536 → 2000" in message
    assert "--accept-changes" in message
    path = Path("run/versions.json")
    versions = json.loads(path.read_text())
    versions["libraries"]["torch"] = "1.0"
    path.write_text(json.dumps(versions))
    assert train.main(["--resume", "run"]) == 2
    assert "torch 1.0 →" in capfd.readouterr().err
    assert train.main(["--resume", "run", "--steps", "2e3", "--accept-changes"]) == 0
    assert json.loads(Path("run/status.json").read_text())["steps"] == 2048


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_stops_the_run_with_everything_saved(number, capfd):
    process = in_a_process([*BASE, "--env", "Hopper-v4", "--steps", "1e6", "--out", "run"])
    while not checkpoints(Path("run/checkpoints")):
        time.sleep(0.05)
    os.kill(process.pid, number)
    assert finish(process, 30) == 75
    assert "--resume run" in capfd.readouterr().out
    status = json.loads(Path("run/status.json").read_text())
    assert status["state"] == "interrupted"
    state = load_checkpoint(checkpoints(Path("run/checkpoints"))[0])
    assert state["agent"]["iteration"] * ROLLOUT == status["steps"]


def test_an_iteration_with_long_to_go_is_not_waited_for():
    command = [*BASE, "--env", "Hopper-v4", "--steps", "1e6", "--out", "run", "--no-anneal"]
    assert finish(in_a_process([*command, "--steps", "256"])) == 0

    def slow_updates():
        original = agents.ppo.PPO.update

        def update(self, *arguments, **keywords):
            Path("updating").touch()
            time.sleep(60)
            return original(self, *arguments, **keywords)

        agents.ppo.PPO.update = update

    process = in_a_process(["--resume", "run", "--steps", "1e6"], slow_updates)
    while not Path("updating").exists():
        time.sleep(0.05)
    start = time.monotonic()
    os.kill(process.pid, signal.SIGTERM)
    assert finish(process, 30) == 75
    assert time.monotonic() - start < 20
    assert load_checkpoint(checkpoints(Path("run/checkpoints"))[0])["agent"]["iteration"] == 4


def test_what_is_said_of_an_abandoned_iteration_is_what_is_saved():
    def signalled_at_the_end_of_the_first_iteration():
        original = agents.ppo.PPO.advance

        def advance(self):
            report = original(self)
            os.kill(os.getpid(), signal.SIGTERM)
            return report

        agents.ppo.PPO.advance = advance

    command = [*BASE, "--env", "Hopper-v4", "--steps", "1e6", "--out", "run"]
    assert finish(in_a_process(command, signalled_at_the_end_of_the_first_iteration)) == 75
    state = load_checkpoint(checkpoints(Path("run/checkpoints"))[0])
    assert state["agent"]["iteration"] == 0
    assert json.loads(Path("run/status.json").read_text())["steps"] == 0


def test_a_second_signal_kills_at_once():
    def slow_checkpoints():
        agents.runner.save_checkpoint = lambda *_: time.sleep(60)

    process = in_a_process([*BASE, "--env", "Hopper-v4", "--out", "run"], slow_checkpoints)
    while not Path("run/tensorboard").exists():
        time.sleep(0.05)
    time.sleep(1.0)
    for _ in range(2):
        os.kill(process.pid, signal.SIGTERM)
        time.sleep(0.5)
    assert finish(process, 10) == -signal.SIGTERM


def fill(path):
    """Write to a file until the disk is full."""
    with open(path, "wb", buffering=0) as file:
        try:
            while file.write(bytes(4096)):
                continue
        except OSError as error:
            assert error.errno == errno.ENOSPC  # noqa: PT017


@pytest.fixture
def small_disk(tmp_path):
    """A file system with room for one short run."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=8m", "tmpfs", str(folder)]
    if subprocess.run(mount, capture_output=True, check=False).returncode:
        pytest.skip("mounting a small file system takes privileges that this user does not have")
    yield folder
    subprocess.run(["umount", "-l", str(folder)], check=True)


def test_a_full_disk_is_said_once_and_leaves_the_last_good_checkpoint(small_disk, capfd):
    arguments = [*BASE, "--env", "Hopper-v4", "--steps", "6400", "--out", str(small_disk / "run")]
    process = in_a_process(arguments)
    while len(checkpoints(small_disk / "run" / "checkpoints")) < 2:
        time.sleep(0.02)
    fill(small_disk / "ballast")
    assert finish(process) == 74
    output = capfd.readouterr()
    assert output.out.count("Cannot write") == 1
    assert "--resume" in output.err
    saved = load_checkpoint(checkpoints(small_disk / "run" / "checkpoints")[0])
    assert 0 < saved["agent"]["iteration"] < 100

    (small_disk / "ballast").unlink()
    assert finish(in_a_process(["--resume", str(small_disk / "run")])) == 0
    shutil.copytree(small_disk / "run", "full")
    assert finish(in_a_process([*arguments[:-1], "whole"])) == 0
    assert_same_run("full", "whole")


@pytest.mark.parametrize("moment", ["flush", "save_checkpoint"])
def test_a_directory_that_vanishes_is_made_again_for_the_last_checkpoint(moment, capfd):
    def vanish_in_time():
        owner = agents.telemetry.Telemetry if moment == "flush" else agents.runner
        original, calls = getattr(owner, moment), 0

        def vanishing(*arguments, **keywords):
            nonlocal calls
            calls += 1
            if calls == 5:
                Path("run").rename("elsewhere")
            return original(*arguments, **keywords)

        setattr(owner, moment, vanishing)

    command = [*BASE, "--env", "Hopper-v4", "--steps", "3200", "--out", "run"]
    assert finish(in_a_process(command, vanish_in_time)) == 0
    output = capfd.readouterr().out
    assert output.count("Cannot write") == 1
    state = load_checkpoint(checkpoints(Path("run/checkpoints"))[0])
    assert state["agent"]["iteration"] == 50
    assert Path("run/config.yaml").exists()
    assert checkpoints(Path("elsewhere/checkpoints"))


def test_a_sick_member_is_reported_and_counted_and_the_run_ends_well(capfd):
    def poison():
        original = agents.ppo.PPO.update

        def update(self, *arguments, **keywords):
            if self.iteration == 5:
                self.networks.parameters.data[0] = float("nan")
            return original(self, *arguments, **keywords)

        agents.ppo.PPO.update = update

    # One thread, hence one block: member 0 is the first of both.
    arguments = [*BASE, "--env", "Hopper-v4", "--opt", "upgd", "--threads", "1"]
    assert finish(in_a_process([*arguments, "--out", "sick"], poison)) == 0
    assert finish(in_a_process([*arguments, "--out", "well"])) == 0
    assert "seed 1 halted at step 384" in capfd.readouterr().out
    status = json.loads(Path("sick/status.json").read_text())
    assert [(h["seed"], h["step"]) for h in status["halted"]] == [(1, 384)]
    events = pd.read_parquet("sick/records/events").query("kind == 'halted'")
    assert events[["seed", "step"]].values.tolist() == [[1, 384]]
    assert "non-finite" in events.message.iloc[0]
    states = [
        load_checkpoint(checkpoints(Path(d, "checkpoints"))[0])["agent"] for d in ("sick", "well")
    ]
    assert torch.equal(*[state["parameters"][1] for state in states])


def test_the_slurm_script_saves_on_sigterm_requeues_and_continues(monkeypatch, tmp_path):
    (tmp_path / "bin").mkdir()
    scontrol = tmp_path / "bin" / "scontrol"
    scontrol.write_text(f"#!/bin/sh\necho $@ >> {tmp_path}/requeued\n")
    scontrol.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path / 'bin'}:{os.environ['PATH']}")
    monkeypatch.setenv("PYTHON", sys.executable)
    monkeypatch.setenv("RUN", str(tmp_path / "run"))
    monkeypatch.setenv("SLURM_JOB_ID", "42")
    arguments = [*BASE, "--env", "Hopper-v4", "--opt", "adam", "--steps", "6400"]
    script = ["bash", str(ROOT / "examples" / "slurm.sh"), *arguments]
    job = subprocess.Popen(script, cwd=ROOT, stdout=subprocess.DEVNULL)
    while len(checkpoints(tmp_path / "run" / "checkpoints")) < 2:
        time.sleep(0.1)
        assert job.poll() is None
    job.send_signal(signal.SIGTERM)
    assert job.wait(60) == 75
    assert (tmp_path / "requeued").read_text() == "requeue 42\n"
    assert subprocess.run(script, cwd=ROOT, stdout=subprocess.DEVNULL, check=False).returncode == 0
    assert json.loads((tmp_path / "run" / "status.json").read_text())["state"] == "finished"
