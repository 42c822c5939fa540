"""What a person can get wrong at the front doors: one sentence each, nothing half-written."""

import os
import shutil
import sys
import time
from pathlib import Path

import pytest
import yaml

from upgd_ppo import evaluate, train
from upgd_ppo.agents.machine.cores import available_cores
from upgd_ppo.agents.runs.run_directory import RunDirectory
from upgd_ppo.agents.settings import config, flags
from upgd_ppo.agents.settings.config import TrainConfig
from upgd_ppo.agents.settings.presets import load_preset
from upgd_ppo.analysis.scores import check_destination

ROOT = Path(__file__).parent.parent
QUICK = [
    *("--env", "Hopper-v4", "--rollout-steps", "64", "--minibatches", "4", "--epochs", "1"),
    *("--hidden-sizes", "8", "--threads", "1"),
]


@pytest.fixture(autouse=True)
def _in_an_empty_directory(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A finished run: 2 seeds, 192 of 192 steps, checkpoints at 0, 64, 128 and 192."""
    out = tmp_path_factory.mktemp("runs") / "hopper"
    many = ["--seeds", "2", "--steps", "192", "--checkpoint-every", "64", "--no-anneal"]
    many += ["--keep-checkpoints", "9", "--gae-lambda", "0.8", "--out", str(out)]
    assert train.main([*QUICK, *many]) == 0
    return out


@pytest.fixture
def run(trained, tmp_path):
    """The finished run, to be spoilt."""
    return Path(shutil.copytree(trained, tmp_path / "run"))


@pytest.fixture
def unfinished(run):
    """The same run, of which only 64 steps are saved."""
    for path in (run / "checkpoints").glob("step-*.pt"):
        if int(path.name.split("-")[1]) > 64:
            path.unlink()
    return run


def refused(capsys, main, *arguments):
    """The one sentence with which a command is refused."""
    capsys.readouterr()
    assert main([str(argument) for argument in arguments]) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    return error


def contents(folder):
    return {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}


# ── Flags ───────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ("--lr 3e-4", ["no flag --lr", "--learning-rate"]),
        ("--optimizer adam", ["--optimizer", "perhaps you meant --opt."]),
        ("--total-timesteps 1e6", ["--total-timesteps", "perhaps you meant --steps."]),
        ("--timesteps=1e6", ["no flag --timesteps;", "perhaps you meant --steps."]),
        ("--no-aneal", ["--no-aneal", "--anneal"]),
        ("--frobnicate", ["--frobnicate", "train.py --help"]),
        ("Ant-v4", ["'Ant-v4'", "--env Ant-v4"]),
        ("ant.yaml", ["'ant.yaml'", "--config ant.yaml"]),
        ("--anneal maybe", ["'maybe'"]),
        ("--steps 1,000,000", ["--steps", "1,000,000", "1e6"]),
        ("--steps 1e30", ["--steps", "too large"]),
        ("--seeds 2.5", ["--seeds", "2.5", "whole number"]),
        ("--epochs three", ["--epochs", "three", "whole number"]),
        ("--gamma big", ["--gamma", "big", "number"]),
        ("--target-kl big", ["--target-kl", "big", "number"]),
        ("--hidden-sizes 64 x", ["--hidden-sizes", "'x'", "whole number"]),
        ("--hidden-sizes 64 9999999", ["--hidden-sizes", "units"]),
        ("--opt", ["--opt", "value"]),
        ("--opt UPGD", ["Perhaps you meant upgd"]),
        ("--opt torch.optim.SparseAdam", ["SparseAdam", "dense gradients"]),
        ("--opt torch.optim.Muon", ["Muon", "2D"]),
        ("--config", ["--config names no preset"]),
        ("--config hoper", ["hoper", "hopper"]),
        ("--env-kwargs render_mode=human", ["render_mode", "--video"]),
        ("--env-kwargs camera_id=1", ["camera_id", "--video"]),
        ("--rollout-steps 10000000019", ["--rollout-steps", "10000000019", "at most"]),
        ("--rollout-steps 999999937 --minibatches 500000000", ["does not divide"]),
        ("--rollout-steps 1e6 --seeds 1e5", ["do not fit in memory"]),
    ],
)
def test_train_refuses_in_one_sentence_and_writes_nothing(arguments, words, capsys, tmp_path):
    begun = time.monotonic()
    error = refused(capsys, train.main, *arguments.split())
    assert time.monotonic() - begun < 20
    for word in words:
        assert word in error
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ("comapre A B", ["comapre", "evaluate.py compare"]),
        ("compare --step 5", ["--step", "--steps"]),
        ("compare A --steps many", ["--steps", "many", "whole number"]),
        ("runs/X --n-eval-episodes 5", ["--n-eval-episodes", "--episodes"]),
        ("runs/X --episodes many", ["--episodes", "many"]),
        ("runs/X --env nowhere:Id-v0", ["cannot import 'nowhere'"]),
        ("runs/X --env-kwargs render_mode=human", ["render_mode", "--video"]),
        ("runs/X --env-kwargs width=80", ["width", "--video"]),
    ],
)
def test_evaluate_refuses_in_one_sentence(arguments, words, capsys, tmp_path):
    error = refused(capsys, evaluate.main, *arguments.split())
    for word in words:
        assert word in error
    assert list(tmp_path.iterdir()) == []


def test_whole_numbers_are_understood_in_every_form_and_everywhere():
    words = "--rollout-steps 2e3 --minibatches 1e1 --epochs 2 --statistics-every 1e1 --seeds 3"
    settings = train.parse([*words.split(), "--hidden-sizes", "64,32", "--seed", str(2**62)])
    assert settings.ppo.rollout_steps == 2000
    assert settings.ppo.minibatches == 10
    assert settings.plasticity.statistics_every == 10
    assert settings.ppo.hidden_sizes == (64, 32)
    assert settings.run.seed == 2**62
    parsed = flags.parse_command(evaluate.Compare, ["A", "--steps", "20e3"], "evaluate.py compare")
    assert (parsed.arms, parsed.steps) == (("A",), 20_000)


def test_a_preset_is_known_by_its_name():
    by_name = train.parse(["--config", "hopper", "accelerated_collapse"])
    names = ("hopper", "accelerated_collapse")
    by_path = train.parse(["--config", *(str(ROOT / "configs" / f"{name}.yaml") for name in names)])
    assert by_name.settings == by_path.settings
    Path("hopper").write_text("epochs: 3")
    assert train.parse(["--config", "hopper"]).ppo.epochs == 3


def test_help_names_what_can_be_chosen(capsys):
    for main, words in (
        (train.main, ["upgd_nonprotecting", "HumanoidStandup-v5", "accelerated_collapse"]),
        (evaluate.main, ["evaluate.py compare", "--episodes"]),
    ):
        with pytest.raises(SystemExit) as stop:
            main(["--help"])
        assert not stop.value.code
        printed = capsys.readouterr().out
        for word in words:
            assert word in printed
        with pytest.raises(SystemExit) as stop:
            main(["--version"])
        assert not stop.value.code
        assert capsys.readouterr().out.startswith("upgd-ppo")


# ── Settings ────────────────────────────────────────────────────────────────────────────────────


def test_settings_have_one_name_each_and_no_others_are_taken():
    names = [name for group in vars(TrainConfig()).values() for name in vars(group)]
    assert len(set(names)) == len(names)
    with pytest.raises(ValueError, match="no setting 'epoch'; perhaps you meant epochs"):
        TrainConfig().with_flat({"epoch": 3})


BOMB = "a0: &a0 [x, x]\n" + "".join(f"a{i}: &a{i} [*a{i - 1}, *a{i - 1}]\n" for i in range(1, 40))


@pytest.mark.parametrize(
    ("text", "words"),
    [
        (BOMB, ["line 2", "aliases"]),
        ("opt_kwargs: &a {b: *a}", ["line 1", "aliases"]),
        ("hidden_sizes: " + "[" * 5000, ["line 1", "levels"]),
        ("opt_kwargs: " + "{a: " * 5000, ["line 1", "levels"]),
        ("opt_kwargs: {[a]: 1}", ["line 1", "opt_kwargs"]),
        ("epochs: 3\n" + "#" * 100_000, ["bytes"]),
        ("rollout_steps: 10000000019", ["--rollout-steps"]),
        ("seeds: 1" + "0" * 400, ["seeds", "whole number"]),
        ("lr: 3e-4", ["learning_rate"]),
        ("\0", ["YAML"]),
    ],
    ids=lambda value: value[:20] if isinstance(value, str) else "",
)
def test_a_hostile_preset_is_refused_at_once(text, words, capsys):
    Path("preset.yaml").write_text(text)
    begun = time.monotonic()
    error = refused(capsys, train.main, "--config", "preset.yaml")
    assert time.monotonic() - begun < 5
    for word in words:
        assert word in error


def test_a_file_that_never_ends_is_no_preset(capsys):
    assert "bytes" in refused(capsys, train.main, "--config", "/dev/zero")


# ── Runs that are continued ─────────────────────────────────────────────────────────────────────


def test_settings_that_were_cut_short_anywhere_are_not_believed(unfinished, capsys):
    file = unfinished / "config.yaml"
    whole = file.read_text()
    lines = whole.splitlines(keepends=True)
    for end in [0, 1, len(whole) - 1, *(len("".join(lines[:n])) for n in range(len(lines)))]:
        file.write_text(whole[: end - 1 if end == len(whole) - 1 else end])
        before = contents(unfinished)
        assert "damaged" in refused(capsys, train.main, "--resume", unfinished)
        assert contents(unfinished) == before
    assert "damaged" in refused(capsys, evaluate.main, unfinished, "--episodes", "1")
    file.write_text(whole)
    assert train.main(["--resume", str(unfinished)]) == 0


def test_a_setting_that_the_run_does_not_have_must_be_given(unfinished, capsys):
    file = unfinished / "config.yaml"
    file.write_text(file.read_text().replace("gae_lambda: 0.8\n", ""))
    assert "lack --gae-lambda" in refused(capsys, train.main, "--resume", unfinished)
    changed = refused(capsys, train.main, "--resume", unfinished, "--gae-lambda", "0.8")
    assert "--gae-lambda 0.95 → 0.8" in changed
    again = ["--resume", str(unfinished), "--gae-lambda", "0.8", "--accept-changes"]
    assert train.main(again) == 0
    assert yaml.safe_load(file.read_text())["gae_lambda"] == 0.8


def test_a_run_of_the_format_before_is_read(run):
    file = run / "config.yaml"
    file.write_text(file.read_text().removeprefix("---\n").removesuffix("...\n"))
    assert evaluate.main([str(run), "--episodes", "1"]) == 0
    for kept in (ROOT / "results").rglob("config.yaml"):
        RunDirectory.open(kept.parent)
        assert load_preset(kept, TrainConfig()).run.env == "Hopper-v4"


@pytest.mark.parametrize(
    "change",
    [
        "--env Walker2d-v4",
        "--opt adam",
        "--seeds 3",
        "--seed 7",
        "--envs-per-seed 2",
        "--rollout-steps 128",
        "--hidden-sizes 16",
        "--layer-norm",
        "--no-normalize-rewards",
        "--target-kl 0.1",
    ],
)
def test_what_a_run_cannot_be_continued_with_is_said_at_once(change, unfinished, capsys):
    before = contents(unfinished)
    for accept in ([], ["--accept-changes"]):
        error = refused(capsys, train.main, "--resume", unfinished, *change.split(), *accept)
        assert "cannot be continued with" in error
        assert change.split()[0].replace("--no-", "--") in error
        assert "--accept-changes" not in error
    assert contents(unfinished) == before


def test_settings_that_no_longer_fit_the_checkpoint_are_a_sentence_too(unfinished, capsys):
    file = unfinished / "config.yaml"
    file.write_text(file.read_text().replace("hidden_sizes:\n- 8", "hidden_sizes:\n- 16"))
    before = contents(unfinished)
    assert "does not fit" in refused(capsys, train.main, "--resume", unfinished)
    assert contents(unfinished) == before


def test_a_finished_run_is_not_changed(run, capsys):
    before = contents(run)
    for change in ("--learning-rate 1e-3", "--opt adam", "--epochs 3 --clip-coef 0.3"):
        refused(capsys, train.main, "--resume", run, "--accept-changes", *change.split())
    error = refused(capsys, train.main, "--resume", run, "--accept-changes", "--epochs", "3")
    assert "has taken all its 192 steps" in error
    error = refused(capsys, train.main, "--resume", run, "--accept-changes", "--steps", "10")
    assert "--steps 10 is fewer than the 192" in error
    assert "--out" in refused(capsys, train.main, "--resume", run, "--out", "elsewhere")
    assert contents(run) == before
    assert train.main(["--resume", str(run)]) == 0
    assert (run / "config.yaml").read_bytes() == before[run / "config.yaml"]
    further = ["--resume", str(run), "--steps", "256", "--epochs", "3", "--accept-changes"]
    assert train.main(further) == 0


def test_a_run_whose_versions_are_lost_says_so(unfinished, capsys):
    (unfinished / "versions.json").write_text("{")
    assert "versions.json" in refused(capsys, train.main, "--resume", unfinished)
    assert train.main(["--resume", str(unfinished), "--accept-changes"]) == 0


# ── Places that cannot be written ───────────────────────────────────────────────────────────────


@pytest.fixture
def unprivileged(unfinished, tmp_path):
    """The run in folders of somebody who, other than root, may not write everywhere."""
    if os.geteuid() != 0:
        yield unfinished
        return
    for path in (tmp_path, *tmp_path.rglob("*")):
        os.chown(path, 65534, 65534)
    os.seteuid(65534)
    try:
        yield Path(unfinished.name)  # the folders above are root's alone
    finally:
        os.seteuid(0)


def test_what_may_not_be_written_is_refused(unprivileged):
    Path("closed").mkdir(mode=0)
    with pytest.raises(ValueError, match="Cannot write the run directory closed/run: Permission"):
        RunDirectory.create(TrainConfig().with_flat({"out": Path("closed/run")}))
    (unprivileged / ".lock").unlink(missing_ok=True)
    unprivileged.chmod(0o500)
    with pytest.raises(ValueError, match=f"Cannot write to {unprivileged}: Permission denied"):
        RunDirectory(unprivileged).lock()
    with pytest.raises(ValueError, match="cannot be written: Permission denied"):
        check_destination(unprivileged / "evaluation" / "Hopper-v4")


@pytest.mark.parametrize("out", ["x" * 300, "/proc/nowhere/run", "file/run"])
def test_an_impossible_run_directory_is_refused(out, capsys):
    Path("file").touch()
    assert "give another --out" in refused(capsys, train.main, *QUICK, "--out", out)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ("--out file", "is a file"),
        ("--out /proc/nowhere/scores", "cannot be written"),
        ("--video /proc/nowhere/a.mp4", "cannot be written"),
        ("--video folder.mp4", "cannot be written"),
        ("--image file/a.png", "cannot be written"),
    ],
)
def test_where_scores_and_films_cannot_go_is_said_before_anything_is_played(
    arguments, words, run, capsys, monkeypatch
):
    Path("file").touch()
    Path("folder.mp4").mkdir()
    monkeypatch.setattr("upgd_ppo.agents.playing.play", None)
    monkeypatch.setattr("upgd_ppo.agents.playing.renderer.select_renderer", None)
    before = contents(run)
    assert words in refused(capsys, evaluate.main, run, *arguments.split())
    assert contents(run) == before


def test_scoring_shows_how_far_it_is(run, capsys, monkeypatch):
    monkeypatch.setattr(evaluate, "PROGRESS_SECONDS", 0)
    assert evaluate.main([str(run), "--episodes", "2"]) == 0
    assert "4 episodes ended" in capsys.readouterr().err
    assert evaluate.main([str(run), "--episodes", "2", "--out", "scores"]) == 0


# ── Other systems ───────────────────────────────────────────────────────────────────────────────


def test_cores_are_counted_where_the_system_does_not_bind_processes(monkeypatch):
    monkeypatch.delattr(os, "sched_getaffinity", raising=False)
    assert available_cores() == os.cpu_count()
    assert config.TrainConfig().threads == os.cpu_count()


def test_without_fcntl_everything_is_imported(monkeypatch):
    import importlib

    from upgd_ppo.agents.runs import run_directory

    monkeypatch.setitem(sys.modules, "fcntl", None)
    try:
        without = importlib.reload(run_directory)
        assert without.fcntl is None
        without.RunDirectory(Path()).lock()
    finally:
        monkeypatch.undo()
        importlib.reload(run_directory)
