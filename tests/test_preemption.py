"""Runs that are killed, starved of disk or stopped, and what is left of them."""

import errno
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pandas as pd
import pytest
import torch
from runs_in_processes import (
    BASE,
    ITERATIONS,
    ROLLOUT,
    ROOT,
    SEEDS,
    assert_same_run,
    children_of,
    finish,
    in_a_process,
    is_gone,
    kill_at,
    wait_until,
)

import upgd_ppo.agents.learners.collector
import upgd_ppo.agents.learners.ppo
import upgd_ppo.agents.machine.whole_files
import upgd_ppo.agents.runs.checkpoint
import upgd_ppo.agents.runs.event_log
import upgd_ppo.agents.runs.keeper
import upgd_ppo.agents.runs.records
import upgd_ppo.agents.runs.stopping
import upgd_ppo.agents.runs.telemetry
from upgd_ppo import train
from upgd_ppo.agents.runs.checkpoint import checkpoints, load_checkpoint

pytestmark = pytest.mark.slow


@pytest.fixture(autouse=True)
def _in_an_empty_directory(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


KILL_POINTS = [
    ("a step of the rollout", upgd_ppo.agents.learners.collector.Collector, "_by_env", 150, True),
    ("an update", upgd_ppo.agents.learners.ppo, "compute_gradient", 30, True),
    (
        "a checkpoint before it has its name",
        upgd_ppo.agents.machine.whole_files.os,
        "replace",
        3,
        True,
        "step-",
    ),
    ("the dropping of old checkpoints", upgd_ppo.agents.runs.checkpoint, "checkpoints", 3, True),
    ("the writing of records", upgd_ppo.agents.runs.records.pq, "write_table", 2, False),
    ("the writing of records", upgd_ppo.agents.machine.whole_files.os, "replace", 2, True, "part-"),
    ("the writing of events", upgd_ppo.agents.runs.event_log.os, "fsync", 19, True),
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
    finish(
        in_a_process(arguments, kill_at(upgd_ppo.agents.learners.ppo, "compute_gradient", 40, True))
    )
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


def hang_up_as_usual():
    """Whoever runs the tests may ignore it."""
    signal.signal(signal.SIGHUP, signal.SIG_DFL)


def assert_saved_as_said(path, state):
    """What `status.json` says is what the newest checkpoint holds; returns its iteration."""
    status = json.loads(Path(path, "status.json").read_text())
    saved = load_checkpoint(checkpoints(Path(path, "checkpoints"))[0])
    assert status["state"] == state
    assert saved["agent"]["iteration"] * ROLLOUT == status["steps"]
    return saved["agent"]["iteration"]


ENDLESS = [*BASE, "--env", "Hopper-v4", "--steps", "1e6", "--out", "run"]


@pytest.mark.parametrize(
    "numbers", [[signal.SIGTERM], [signal.SIGINT], [signal.SIGHUP], [signal.SIGHUP, signal.SIGTERM]]
)
def test_a_signal_stops_the_run_with_everything_saved(numbers, capfd):
    process = in_a_process(ENDLESS, hang_up_as_usual)
    wait_until(lambda: checkpoints(Path("run/checkpoints")), process)
    for number in numbers:
        os.kill(process.pid, number)
    assert finish(process, 60) == 75
    output = capfd.readouterr()
    assert "--resume run" in output.out
    assert "Traceback" not in output.err
    assert_saved_as_said("run", "interrupted")


def test_under_nohup_a_run_outlives_its_terminal():
    def nohup():
        signal.signal(signal.SIGHUP, signal.SIG_IGN)

    process = in_a_process([*BASE, "--env", "Hopper-v4", "--out", "run"], nohup)
    wait_until(lambda: checkpoints(Path("run/checkpoints")), process)
    os.kill(process.pid, signal.SIGHUP)
    assert finish(process) == 0


def test_an_iteration_with_long_to_go_is_not_waited_for():
    command = [*BASE, "--env", "Hopper-v4", "--steps", "1e6", "--out", "run", "--no-anneal"]
    assert finish(in_a_process([*command, "--steps", "256"])) == 0

    def slow_updates():
        original = upgd_ppo.agents.learners.ppo.PPO.update

        def update(self, *arguments, **keywords):
            Path("updating").touch()
            time.sleep(60)
            return original(self, *arguments, **keywords)

        upgd_ppo.agents.learners.ppo.PPO.update = update

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
        original = upgd_ppo.agents.learners.ppo.PPO.advance

        def advance(self):
            report = original(self)
            os.kill(os.getpid(), signal.SIGTERM)
            return report

        upgd_ppo.agents.learners.ppo.PPO.advance = advance

    command = [*BASE, "--env", "Hopper-v4", "--steps", "1e6", "--out", "run"]
    assert finish(in_a_process(command, signalled_at_the_end_of_the_first_iteration)) == 75
    state = load_checkpoint(checkpoints(Path("run/checkpoints"))[0])
    assert state["agent"]["iteration"] == 0
    assert json.loads(Path("run/status.json").read_text())["steps"] == 0


def hang(where):
    """Have the update of the third iteration never end, and swallow the first thing that is raised
    in it; `where` tells from the process id and that of the run whether it is to hang."""

    def prepare():
        upgd_ppo.agents.runs.stopping.PATIENCE_SECONDS = 1.0
        original, run = upgd_ppo.agents.learners.ppo.PPO.update, os.getpid()

        def update(self, *arguments, **keywords):
            if self.iteration == 2 and where(os.getpid(), run):
                Path("hangs").touch()
                try:
                    time.sleep(3600)
                except BaseException:
                    time.sleep(3600)
            return original(self, *arguments, **keywords)

        upgd_ppo.agents.learners.ppo.PPO.update = update

    return prepare


@pytest.mark.parametrize(
    "where", [lambda pid, run: pid == run, lambda pid, run: pid != run], ids=["here", "in a worker"]
)
def test_a_run_whose_iteration_hangs_is_saved_all_the_same(where):
    process = in_a_process(ENDLESS, hang(where))
    wait_until(lambda: Path("hangs").exists(), process)
    workers = children_of(process)
    assert len(workers) == 1
    os.kill(process.pid, signal.SIGTERM)
    assert finish(process, 60) == 75
    assert assert_saved_as_said("run", "interrupted") == 2
    assert is_gone(workers[0])


def test_a_run_with_a_stopped_worker_is_saved_all_the_same():
    def impatient():
        upgd_ppo.agents.runs.stopping.PATIENCE_SECONDS = 1.0

    process = in_a_process(ENDLESS, impatient)
    wait_until(lambda: len(checkpoints(Path("run/checkpoints"))) > 1, process)
    [worker] = children_of(process)
    os.kill(worker, signal.SIGSTOP)
    os.kill(process.pid, signal.SIGTERM)
    assert finish(process, 60) == 75
    assert assert_saved_as_said("run", "interrupted") >= 2
    assert is_gone(worker)


@pytest.mark.parametrize("stopped", [False, True])
def test_a_second_signal_kills_at_once_and_leaves_no_worker(stopped):
    def slow_checkpoints():
        def save_checkpoint(*_):
            Path("saving").touch()
            time.sleep(3600)

        upgd_ppo.agents.runs.keeper.save_checkpoint = save_checkpoint

    process = in_a_process(ENDLESS, slow_checkpoints)
    wait_until(lambda: Path("saving").exists(), process)
    [worker] = children_of(process)
    if stopped:
        os.kill(worker, signal.SIGSTOP)
    # Two different ones: a signal that is still pending does not count twice.
    os.kill(process.pid, signal.SIGTERM)
    os.kill(process.pid, signal.SIGINT)
    assert finish(process, 60) in (-signal.SIGTERM, -signal.SIGINT)
    wait_for_end_of(worker)


def test_no_worker_outlives_a_run_that_is_killed_even_if_it_hangs():
    process = in_a_process(ENDLESS, hang(lambda pid, run: pid != run))
    wait_until(lambda: Path("hangs").exists(), process)
    [worker] = children_of(process)
    process.kill()
    finish(process)
    wait_for_end_of(worker)


def test_a_worker_whose_run_is_gone_ends_without_a_word(capfd):
    """Its report is unread, so that its connection is reset rather than closed."""
    process = in_a_process(ENDLESS)
    wait_until(lambda: len(checkpoints(Path("run/checkpoints"))) > 1, process)
    [worker] = children_of(process)
    os.kill(process.pid, signal.SIGSTOP)
    wait_until(lambda: sleeps(worker), process)
    process.kill()
    finish(process)
    wait_for_end_of(worker)
    assert "Traceback" not in capfd.readouterr().err


def wait_for_end_of(pid):
    end = time.monotonic() + 60
    while not is_gone(pid):
        assert time.monotonic() < end, "it lives on"
        time.sleep(0.02)


def test_where_a_worker_dies_the_last_whole_iteration_is_saved_and_can_be_continued(capfd):
    arguments = [*BASE, "--env", "Hopper-v4", "--opt", "upgd"]
    assert finish(in_a_process([*arguments, "--out", "whole"])) == 0

    def worker_dies():
        original, run = upgd_ppo.agents.learners.ppo.PPO.update, os.getpid()

        def update(self, *arguments, **keywords):
            if self.iteration == 5 and os.getpid() != run:
                os.kill(os.getpid(), signal.SIGKILL)
            return original(self, *arguments, **keywords)

        upgd_ppo.agents.learners.ppo.PPO.update = update

    capfd.readouterr()
    assert finish(in_a_process([*arguments, "--out", "run"], worker_dies)) == 70
    output = capfd.readouterr()
    assert "A worker process died (SIGKILL" in output.out
    assert "--resume run" in output.err
    assert "Traceback" not in output.err
    assert assert_saved_as_said("run", "failed") == 5
    assert finish(in_a_process(["--resume", "run"])) == 0
    assert_same_run("run", "whole")


def test_where_a_worker_is_killed_while_it_is_asked_that_is_said_too(capfd):
    """Its end of the connection is then closed with something unread in it."""
    process = in_a_process(ENDLESS)
    wait_until(lambda: len(checkpoints(Path("run/checkpoints"))) > 1, process)
    [worker] = children_of(process)
    os.kill(worker, signal.SIGSTOP)
    wait_until(lambda: sleeps(process.pid), process)
    os.kill(worker, signal.SIGKILL)
    assert finish(process, 60) == 70
    assert "A worker process died" in capfd.readouterr().out


def sleeps(pid):
    """Whether a process waits, three times in a row."""
    states = []
    for _ in range(3):
        states.append(Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0])
        time.sleep(0.1)
    return states == ["S"] * 3


def test_what_an_iteration_raises_is_shown_after_the_state_before_it_is_saved(capfd):
    def failing():
        original, run = upgd_ppo.agents.learners.ppo.PPO.update, os.getpid()

        def update(self, *arguments, **keywords):
            if self.iteration == 5 and os.getpid() == run:
                raise ArithmeticError("a mistake in the program")
            return original(self, *arguments, **keywords)

        upgd_ppo.agents.learners.ppo.PPO.update = update

    assert finish(in_a_process(ENDLESS, failing)) == 1
    assert "ArithmeticError: a mistake in the program" in capfd.readouterr().err
    assert assert_saved_as_said("run", "failed") == 5


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
        owner = (
            upgd_ppo.agents.runs.telemetry.Telemetry
            if moment == "flush"
            else upgd_ppo.agents.runs.keeper
        )
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
        original = upgd_ppo.agents.learners.ppo.PPO.update

        def update(self, *arguments, **keywords):
            if self.iteration == 5:
                self.networks.parameters.data[0] = float("nan")
            return original(self, *arguments, **keywords)

        upgd_ppo.agents.learners.ppo.PPO.update = update

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
