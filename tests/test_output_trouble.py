"""Output that cannot be written, is damaged, or was left half-written."""

import errno
import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pandas as pd
import pytest
from runs_in_processes import BASE, ROLLOUT, ROOT, finish, in_a_process, kill_at
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

import upgd_ppo.agents.learners.ppo
import upgd_ppo.agents.machine.whole_files
import upgd_ppo.agents.runs.checkpoint
import upgd_ppo.agents.runs.runner
from upgd_ppo import train
from upgd_ppo.agents.command_line.output import forgiving_output
from upgd_ppo.agents.runs.checkpoint import checkpoints, load_checkpoint, save_checkpoint
from upgd_ppo.agents.runs.event_log import EventLog
from upgd_ppo.agents.runs.records import EVENTS, RecordTable
from upgd_ppo.agents.runs.run_directory import RunDirectory
from upgd_ppo.agents.runs.runner import newest_state

TINY = [*BASE, "--env", "Hopper-v4", "--opt", "adam", "--threads", "1", "--steps", str(4 * ROLLOUT)]
LONG = [*TINY, "--threads", "2", "--steps", "1e6", "--print-every", "0.01"]


@pytest.fixture(autouse=True)
def _in_an_empty_directory(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


# ── Where printing is impossible ────────────────────────────────────────────────────────────────


def run_train(arguments, **streams):
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    return subprocess.Popen(
        [sys.executable, ROOT / "train.py", *arguments], env=environment, **streams
    )


def test_a_log_on_a_full_disk_does_not_keep_a_run_from_going_on_and_being_saved():
    with open("/dev/full", "w") as full:
        process = run_train([*LONG, "--out", "run"], stdout=full, stderr=full)
    while len(checkpoints(Path("run/checkpoints"))) < 2:
        assert process.poll() is None
    process.send_signal(signal.SIGTERM)
    assert process.wait(60) == 75
    assert json.loads(Path("run/status.json").read_text())["state"] == "interrupted"


def test_a_run_whose_readers_are_gone_goes_on_to_its_end():
    process = run_train(
        [*TINY, "--print-every", "0.01", "--out", "run"],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    assert process.stdout.readline().startswith("Training")
    process.stdout.close()
    assert process.wait(120) == 0
    assert json.loads(Path("run/status.json").read_text())["state"] == "finished"


def test_what_a_stream_cannot_encode_is_replaced(monkeypatch):
    with open("log", "w", encoding="ascii") as log:
        monkeypatch.setattr(sys, "stdout", log)
        monkeypatch.setattr(sys, "stderr", None)
        with forgiving_output():
            print("return –", flush=True)
        assert sys.stdout is log
    assert Path("log").read_text() == "return ?\n"


# ── Checkpoints ─────────────────────────────────────────────────────────────────────────────────


def damage(path):
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


def test_damaged_checkpoints_are_not_counted_among_those_that_are_kept(tmp_path):
    first = save_checkpoint(tmp_path, 128, {"step": 128}, keep=3)
    damage(save_checkpoint(tmp_path, 256, {"step": 256}, keep=3))
    second = save_checkpoint(tmp_path, 192, {"step": 192}, keep=1)
    assert second.exists()
    assert not first.exists()
    assert newest_state_in(tmp_path) == {"step": 192}

    damage(second)
    third = save_checkpoint(tmp_path, 200, {"step": 200}, keep=2)
    fourth = save_checkpoint(tmp_path, 210, {"step": 210}, keep=2)
    fifth = save_checkpoint(tmp_path, 220, {"step": 220}, keep=2)
    assert [path.exists() for path in (second, third, fourth, fifth)] == [False, False, True, True]


def newest_state_in(folder):
    directory = RunDirectory(folder)
    directory.checkpoints = folder
    return newest_state(directory)


def test_a_checkpoint_that_cannot_be_written_leaves_nothing_and_takes_nothing(
    tmp_path, monkeypatch
):
    before = save_checkpoint(tmp_path, 1, {"step": 1}, keep=1)

    def full(descriptor):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space"):
        save_checkpoint(tmp_path, 2, {"step": 2}, keep=1)
    assert list(tmp_path.iterdir()) == [before]


def test_a_disk_that_was_full_from_the_start_is_said_even_in_the_first_iteration(capfd):
    def full_disk():
        run, advance = (
            upgd_ppo.agents.runs.runner.Runner.run,
            upgd_ppo.agents.learners.ppo.PPO.advance,
        )

        def full(descriptor):
            raise OSError(errno.ENOSPC, "No space left on device")

        def run_on_a_full_disk(self):
            os.fsync = full
            return run(self)

        def signalled(self):
            report = advance(self)
            os.kill(os.getpid(), signal.SIGTERM)
            return report

        upgd_ppo.agents.runs.runner.Runner.run, upgd_ppo.agents.learners.ppo.PPO.advance = (
            run_on_a_full_disk,
            signalled,
        )

    assert finish(in_a_process([*TINY, "--out", "run"], full_disk)) == 74
    output = capfd.readouterr()
    assert "could not be written" in output.err
    assert "Traceback" not in output.err
    assert not list(Path("run").rglob("*.partial"))


def test_a_checkpoint_is_on_the_disk_only_after_everything_that_it_counts_on(monkeypatch):
    synced, seen = {}, []
    fsync, replace = os.fsync, os.replace

    def noting(descriptor):
        fsync(descriptor)
        path = Path(f"/proc/self/fd/{descriptor}").resolve()
        identity = os.fstat(descriptor).st_ino
        synced[identity] = set(os.listdir(path)) if path.is_dir() else path.stat().st_size

    def checking(source, target):
        if Path(target).suffix == ".pt":
            run = Path("run").resolve()
            paths = [run, *run.rglob("*")]
            for path in paths:
                kept = path.suffix in (".parquet", ".yaml") or path.name == "versions.json"
                if kept or "tfevents" in path.name:
                    assert synced.get(path.stat().st_ino) == path.stat().st_size, path
                    seen.append(path.relative_to(run).parts[0])
                    for entry in (path, *path.parents):
                        if entry == run.parent:
                            break
                        assert entry.name in synced[entry.parent.stat().st_ino], entry
        replace(source, target)

    monkeypatch.setattr(os, "fsync", noting)
    monkeypatch.setattr(os, "replace", checking)
    assert train.main([*TINY, "--out", "run"]) == 0
    assert set(seen) == {"config.yaml", "versions.json", "records", "tensorboard"}


# ── Records ─────────────────────────────────────────────────────────────────────────────────────


def events(steps):
    count = len(steps)
    columns = {"member": [0] * count, "seed": [1] * count, "step": steps}
    return columns | {"kind": ["warning"] * count, "message": [str(step) for step in steps]}


def test_no_part_of_the_records_is_ever_replaced_and_they_stay_in_order(tmp_path):
    folder = tmp_path / "events"
    table = RecordTable(folder, EVENTS)
    for step in (10, *[20] * 12, 30):
        table.append(events([step]))
        table.flush(step)
    rows = pd.read_parquet(folder)
    assert rows.step.tolist() == [10, *[20] * 12, 30]
    assert sorted(path.name for path in folder.iterdir())[-1].startswith("part-000000000030")
    assert RecordTable(folder, EVENTS).rewind(20, rows=13) == []
    assert pd.read_parquet(folder).step.tolist() == [10, *[20] * 12]


def test_a_halted_seed_stays_halted_whatever_is_changed_at_the_same_step(monkeypatch):
    original = upgd_ppo.agents.learners.ppo.PPO.update

    def update(self, *arguments, **keywords):
        if self.iteration == 3:
            self.networks.parameters.data[1] = float("nan")
        return original(self, *arguments, **keywords)

    monkeypatch.setattr(upgd_ppo.agents.learners.ppo.PPO, "update", update)
    assert train.main([*TINY, "--no-anneal", "--out", "run"]) == 0
    for iterations, coefficient in ((5, "0.1"), (6, "0.15")):
        command = ["--resume", "run", "--accept-changes", "--clip-coef", coefficient]
        assert train.main([*command, "--steps", str(iterations * ROLLOUT)]) == 0
    rows = pd.read_parquet("run/records/events").query("kind != 'warning'")
    assert rows.kind.tolist() == ["halted", "changed", "changed"]
    assert rows.step.tolist() == [4 * ROLLOUT, 4 * ROLLOUT, 5 * ROLLOUT]
    assert rows.seed.tolist()[0] == 2


def test_a_run_killed_while_writing_leaves_records_that_can_be_read_and_nothing_else_for_long():
    killed = in_a_process(
        [*TINY, "--out", "run"],
        kill_at(upgd_ppo.agents.machine.whole_files.os, "replace", 3, True, "statistics/part-"),
    )
    assert finish(killed) == -signal.SIGKILL
    assert list(Path("run").rglob("*.partial"))
    assert len(pd.read_parquet("run/records/statistics"))
    # As they were named before.
    for name in ("checkpoints/step-000000000064.partial", "records/events/part-1.partial"):
        Path("run", name).parent.mkdir(exist_ok=True)
        Path("run", name).write_bytes(b"half of it")
    assert finish(in_a_process(["--resume", "run"])) == 0
    assert not list(Path("run").rglob("*.partial"))


def test_what_is_missing_or_damaged_of_the_records_is_said_when_the_run_is_continued(capsys):
    assert train.main([*TINY, "--no-anneal", "--out", "run"]) == 0
    capsys.readouterr()
    assert train.main(["--resume", "run"]) == 0
    assert "warning" not in capsys.readouterr().err

    statistics, episodes = (
        next(
            part
            for part in sorted(Path(f"run/records/{table}").iterdir())
            if len(pd.read_parquet(part))
        )
        for table in ("statistics", "episodes")
    )
    rows = len(pd.read_parquet(statistics))
    statistics.unlink()
    episodes.write_bytes(episodes.read_bytes()[:-10])
    log = Path("run/tensorboard/seed_1/events.out.tfevents.0")
    log.write_bytes(log.read_bytes()[:-100])
    Path("run/tensorboard/seed_2/events.out.tfevents.0").unlink()
    assert train.main(["--resume", "run", "--accept-changes", "--steps", str(6 * ROLLOUT)]) == 0
    warnings = capsys.readouterr().err
    assert f"statistics lacks {rows:,} of the" in warnings
    assert f"{episodes} is not a readable Parquet file" in warnings
    assert f"{log} lacks" in warnings
    assert "seed_2/events.out.tfevents.0 lacks" in warnings
    for name in ("seed_1", "seed_2"):
        curves = EventAccumulator(f"run/tensorboard/{name}", {"scalars": 0}).Reload()
        steps = [event.step for event in curves.Scalars("train/value_loss")]
        assert steps[-2:] == [5 * ROLLOUT, 6 * ROLLOUT]


@pytest.mark.parametrize("kept", [0, 1, 30, 39, 100, -1, None])
@pytest.mark.parametrize("when", ["between two runs", "while it is written"])
def test_a_cut_event_file_goes_on_after_its_last_whole_event(tmp_path, kept, when):
    log = EventLog(tmp_path)
    for step in range(5):
        log.scalars(step, {"x": float(step)})
        log.flush()
    content = log.path.read_bytes()
    if kept is None:
        log.path.unlink()
    else:
        log.path.write_bytes(content[:kept])
    if when == "between two runs":
        log = EventLog(tmp_path, len(content))
        assert log.lost_bytes == len(content) - log.position > 0
    log.scalars(5, {"x": 5.0})
    log.flush()
    log.scalars(6, {"x": 6.0})
    log.flush()
    assert b"brain.Event" in log.path.read_bytes()
    curve = EventAccumulator(str(tmp_path), {"scalars": 0}).Reload().Scalars("x")
    steps = [event.step for event in curve]
    assert steps[-2:] == [5, 6]
    assert steps[:-2] == list(range(len(steps) - 2))
    assert len(steps) == {-1: 6}.get(kept, len(steps))


# ── Environments ────────────────────────────────────────────────────────────────────────────────


def test_an_environment_that_fails_halts_its_seed_and_the_others_learn_as_if_nothing_had(tmp_path):
    (tmp_path / "mountain.py").write_text(MOUNTAIN)
    sys.path.insert(0, str(tmp_path))
    try:
        settings = ["--env", "mountain:Mountain-v0", "--steps", str(4 * ROLLOUT), "--seeds", "3"]
        base = [*TINY, *settings]
        assert train.main([*base, "--env-kwargs", "sick=2", "--out", "sick"]) == 0
        assert train.main([*base, "--env-kwargs", "sick=0", "--out", "well"]) == 0
    finally:
        sys.path.remove(str(tmp_path))
    status = json.loads(Path("sick/status.json").read_text())
    [halted] = status["halted"]
    assert (halted["seed"], halted["step"]) == (2, 2 * ROLLOUT)
    assert "step() raised OverflowError: no such height (" in halted["cause"]
    states = [load_checkpoint(checkpoints(Path(d, "checkpoints"))[0]) for d in ("sick", "well")]
    ours, theirs = (state["agent"]["parameters"] for state in states)
    assert ours[[0, 2]].equal(theirs[[0, 2]])
    assert not ours[1].equal(theirs[1])


MOUNTAIN = """
import gymnasium, numpy as np

class Mountain(gymnasium.Env):
    built = 0

    def __init__(self, sick):
        Mountain.built += 1
        self.sick = Mountain.built == sick
        self.observation_space = gymnasium.spaces.Box(-np.inf, np.inf, (2,))
        self.action_space = gymnasium.spaces.Box(-1, 1, (1,), np.float32)
        self.steps = 0

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.position = self.np_random.normal(size=2).astype(np.float32)
        return self.position.copy(), {}

    def step(self, action):
        self.steps += 1
        if self.sick and self.steps == 100:
            raise OverflowError("no such height")
        self.position += action
        return self.position.copy(), float(-abs(self.position).sum()), False, False, {}

gymnasium.register("Mountain-v0", entry_point=Mountain, max_episode_steps=20)
"""
