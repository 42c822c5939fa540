"""The front door: `train.py` as a person or a scheduler uses it."""

import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
import yaml
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from upgd_ppo import train
from upgd_ppo.agents.population.population import make_learner
from upgd_ppo.agents.runs.checkpoint import checkpoints, load_checkpoint
from upgd_ppo.agents.settings.config import TrainConfig
from upgd_ppo.agents.settings.presets import load_preset

ROOT = Path(__file__).parent.parent
QUICK = [
    *("--env", "Hopper-v4", "--rollout-steps", "64", "--minibatches", "4", "--epochs", "2"),
    *("--hidden-sizes", "8", "8", "--threads", "1"),
]


@pytest.fixture(autouse=True)
def _in_an_empty_directory(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


def run(*arguments):
    return train.main([*QUICK, *map(str, arguments)])


def newest_state(directory):
    """The agent's part of a run's newest checkpoint."""
    return load_checkpoint(checkpoints(Path(directory, "checkpoints"))[0])["agent"]


def refuse(capsys, *arguments):
    """The one sentence with which a command is refused."""
    try:
        code = train.main([str(argument) for argument in arguments])
    except SystemExit as exit_:
        code = exit_.code
    assert code == 2
    error = capsys.readouterr().err
    assert "Traceback" not in error
    return error


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--env", "Antt-v4"], ["Antt-v4", "Ant-v4"]),
        (["--env", "CartPole-v1"], ["CartPole-v1", "Discrete", "Box"]),
        (["--env", "Pusher-v4"], ["Pusher-v4", "mujoco<3"]),
        (["--env-kwargs", "weight=1"], ["weight", "ctrl_cost_weight"]),
        (["--opt", "adan"], ["adan", "adam"]),
        (["--opt", "torch.optim.Adan"], ["torch.optim", "Adan"]),
        (["--opt-kwargs", "sgima=1"], ["sgima", "sigma"]),
        (["--opt-kwargs", "sigma=-1"], ["sigma", "-1"]),
        (["--opt-kwargs", "sigma"], ["sigma", "KEY=VALUE"]),
        (["--epoch", "3"], ["--epoch", "--epochs"]),
        (["--steps", "-5"], ["--steps", "-5", "at least 1"]),
        (["--steps", "1.5"], ["--steps", "1.5", "whole number"]),
        (["--seeds", "0"], ["--seeds", "at least 1"]),
        (["--minibatches", "33"], ["33", "2048", "32"]),
        (["--gamma", "1.5"], ["--gamma", "at most 1"]),
        (["--learning-rate", "nan"], ["--learning-rate", "nan"]),
        (["--activation", "gelu"], ["--activation", "gelu", "tanh"]),
        (["--device", "cuda:7"], ["cuda:7", "cpu"]),
        (["--config", "missing.yaml"], ["missing.yaml", "No such file"]),
        (["--resume", "missing"], ["missing", "not a run directory"]),
    ],
    ids=lambda value: " ".join(value) if value[0].startswith("--") else "",
)
def test_bad_input_gets_one_sentence_and_leaves_nothing_behind(arguments, words, capsys, tmp_path):
    message = re.sub(r"[│\s]+", " ", refuse(capsys, *arguments))
    for word in words:
        assert word in message
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("env: Ant-v4\nepoch: 3\n", ["preset.yaml, line 2", "epoch", "epochs"]),
        ("epochs: three\n", ["preset.yaml, line 1", "epochs", "three"]),
        ("anneal: maybe\n", ["preset.yaml, line 1", "anneal", "true or false"]),
        ("epochs: [1, 2]\n", ["preset.yaml, line 1", "epochs"]),
        ("epochs: 3\nepochs: 4\n", ["line 2", "twice"]),
        ("activation: gelu\n", ["line 1", "activation", "tanh"]),
        ("- 1\n", ["preset.yaml", "maps settings"]),
        ("a: [\n", ["preset.yaml", "line", "YAML"]),
    ],
)
def test_a_mistyped_preset_is_refused_with_file_line_and_key(text, words, capsys, tmp_path):
    Path("preset.yaml").write_text(text)
    message = refuse(capsys, "--config", "preset.yaml")
    for word in words:
        assert word in message
    assert [path.name for path in tmp_path.iterdir()] == ["preset.yaml"]


def test_an_output_directory_that_holds_a_run_or_cannot_be_written_is_refused(capsys):
    assert run("--steps", 64, "--out", "here") == 0
    before = sorted(Path("here").rglob("*"))
    assert "already holds a run" in refuse(capsys, *QUICK, "--out", "here")
    assert sorted(Path("here").rglob("*")) == before
    Path("occupied").mkdir()
    Path("occupied/thesis.tex").write_text("mine")
    assert "not an empty directory" in refuse(capsys, *QUICK, "--out", "occupied")
    assert "Cannot write" in refuse(capsys, *QUICK, "--out", "/proc/nowhere")


def test_a_preset_sets_what_flags_then_override():
    Path("a.yaml").write_text(
        "epochs: 3\nlearning_rate: 1e-3\nhidden_sizes: [32, 16]\nsteps: 2e3\n"
    )
    Path("b.yaml").write_text("epochs: 4\nopt_kwargs: {sigma: 1e-2, betas: [0.9, 0.99]}\n")
    config = train.parse(["--config", "a.yaml", "b.yaml", "--hidden-sizes", "8"])
    assert config.ppo.epochs == 4
    assert config.ppo.learning_rate == 1e-3
    assert config.ppo.hidden_sizes == (8,)
    assert config.run.steps == 2000
    assert config.run.opt_kwargs == {"sigma": 1e-2, "betas": [0.9, 0.99]}


def hyper_parameters(*arguments):
    """What the optimizer of that command line steps with."""
    learner = make_learner(train.parse([*QUICK[2:], *map(str, arguments)]).settings, [1])
    return learner.optimizer.optimizers[0].param_groups[0]


@pytest.mark.parametrize("preset", ["humanoid", "humanoid_standup"])
def test_a_preset_gives_one_optimizer_a_hyper_parameter_and_leaves_the_others_alone(preset):
    arguments = ["--config", ROOT / "configs" / f"{preset}.yaml", "--opt"]
    assert hyper_parameters(*arguments, "upgd")["beta_utility"] == 0.9
    assert hyper_parameters(*arguments, "upgd_local")["beta_utility"] == 0.999
    assert "beta_utility" not in hyper_parameters(*arguments, "adam")
    ours = hyper_parameters(*arguments, "upgd", "--opt-kwargs", "sigma=0.5")
    assert (ours["beta_utility"], ours["sigma"]) == (0.9, 0.5)
    ours = hyper_parameters(*arguments, "upgd", "--opt-kwargs", "beta_utility=0.99")
    assert ours["beta_utility"] == 0.99


def test_hyper_parameters_by_optimizer_are_merged_over_presets_and_kept_with_the_run():
    Path("a.yaml").write_text(
        "opt_defaults: {upgd.sigma: 1e-2, upgd.beta_utility: 0.5, torch.optim.NAdam.eps: 1e-3}\n"
    )
    Path("b.yaml").write_text("opt_defaults: {upgd.beta_utility: 0.7}\n")
    both = ["--config", "a.yaml", "b.yaml", "--opt"]
    ours = hyper_parameters(*both, "upgd")
    assert (ours["sigma"], ours["beta_utility"]) == (1e-2, 0.7)
    assert hyper_parameters(*both, "torch.optim.NAdam")["eps"] == 1e-3
    assert run("--steps", 64, "--out", "here", *both, "upgd") == 0
    again = hyper_parameters("--config", "here/config.yaml")
    assert (again["sigma"], again["beta_utility"]) == (1e-2, 0.7)


@pytest.mark.parametrize(
    ("entry", "words"),
    [
        ("upgdd.sigma: 1", ["opt_defaults", "upgdd", "Perhaps you meant upgd"]),
        ("upgd.sgima: 1", ["opt_defaults", "sgima", "Perhaps you meant sigma"]),
        ("upgd.sigma: -1", ["opt_defaults", "sigma", "-1"]),
        ("upgd: {sigma: 1}", ["opt_defaults", "'upgd'", "OPTIMIZER.KEY"]),
    ],
)
def test_a_mistyped_hyper_parameter_is_refused_whichever_optimizer_runs(entry, words, capsys):
    Path("preset.yaml").write_text(f"opt_defaults: {{{entry}}}\n")
    message = refuse(capsys, *QUICK, "--config", "preset.yaml", "--opt", "adam")
    for word in words:
        assert word in message


@pytest.mark.parametrize("path", sorted((ROOT / "configs").glob("*.yaml")), ids=lambda p: p.stem)
def test_every_preset_that_ships_is_valid_and_says_whether_it_anneals(path):
    config = load_preset(path, TrainConfig())
    config.check()
    assert "anneal" in path.read_text().lower() or path.stem == "demo"


def test_the_published_preset_is_the_default():
    preset = load_preset(ROOT / "configs" / "published.yaml", TrainConfig())
    assert preset == TrainConfig()


def test_a_run_leaves_what_it_promises(capsys):
    assert run("--seeds", 3, "--seed", 5, "--steps", 600, "--opt", "upgd") == 0
    directory = Path("runs/Hopper-v4-upgd")
    printed = capsys.readouterr().out
    assert "tensorboard --logdir runs/Hopper-v4-upgd" in printed
    assert "3/3 healthy" in printed

    settings = yaml.safe_load((directory / "config.yaml").read_text())
    assert (settings["env"], settings["opt"], settings["seeds"]) == ("Hopper-v4", "upgd", 3)

    episodes = pd.read_parquet(directory / "records" / "episodes")
    assert set(episodes.seed) == {5, 6, 7}
    for _, own in episodes.groupby("member"):
        assert own.step.tolist() == own.episode_length.cumsum().tolist()

    names = {path.name for path in (directory / "tensorboard").iterdir()}
    assert names == {"seed_5", "seed_6", "seed_7", "population"}
    log = EventAccumulator(str(directory / "tensorboard" / "seed_6")).Reload()
    tags = set(log.Tags()["scalars"])
    stable_baselines_tags = {
        *("rollout/ep_rew_mean", "rollout/ep_len_mean", "time/fps", "train/std"),
        *("train/approx_kl", "train/clip_fraction", "train/entropy_loss", "train/value_loss"),
        *("train/explained_variance", "train/policy_gradient_loss", "train/learning_rate"),
    }
    assert stable_baselines_tags <= tags
    assert [event.step for event in log.Scalars("train/approx_kl")] == list(range(64, 641, 64))
    own = episodes[(episodes.seed == 6)].episode_return.tail(100)
    assert log.Scalars("rollout/ep_rew_mean")[-1].value == pytest.approx(own.mean(), rel=1e-6)


def test_the_resolved_settings_repeat_the_run():
    assert run("--steps", 128, "--out", "first", "--opt-kwargs", "sigma=0.01") == 0
    assert train.main(["--config", "first/config.yaml", "--out", "second"]) == 0
    states = [
        load_checkpoint(checkpoints(Path(name, "checkpoints"))[0]) for name in ("first", "second")
    ]
    assert torch.equal(*[state["agent"]["parameters"] for state in states])


def test_a_second_run_of_the_same_arm_gets_a_directory_of_its_own():
    assert run("--steps", 64) == 0
    assert run("--steps", 64) == 0
    assert {path.name for path in Path("runs").iterdir()} == {"Hopper-v4-upgd", "Hopper-v4-upgd-2"}


def records(directory):
    return {
        table: pd.read_parquet(Path(directory, "records", table))
        for table in ("episodes", "statistics")
    }


def test_a_run_that_is_interrupted_and_continued_equals_one_that_was_not():
    arguments = [*QUICK, "--seeds", "2", "--steps", "10000", "--checkpoint-every", "1000"]
    command = [sys.executable, str(ROOT / "train.py"), *arguments, "--print-every", "0.1"]
    process = subprocess.Popen(
        [*command, "--out", "interrupted"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    while not re.search(r": [1-9][\d,]*/", process.stdout.readline()):  # steps done / of all
        pass
    process.send_signal(signal.SIGINT)
    output, errors = process.communicate(timeout=60)
    assert process.returncode == 75, errors
    assert "--resume interrupted" in output
    assert 0 < newest_state("interrupted")["iteration"] < 157

    assert train.main(["--resume", "interrupted"]) == 0
    assert train.main([*arguments, "--out", "whole"]) == 0
    assert torch.equal(*[newest_state(name)["parameters"] for name in ("interrupted", "whole")])
    ours, theirs = records("interrupted"), records("whole")
    for table in ours:
        pd.testing.assert_frame_equal(ours[table], theirs[table])
    steps = []
    for name in ("interrupted", "whole"):
        log = EventAccumulator(str(Path(name, "tensorboard", "seed_1"))).Reload()
        steps.append([(e.step, e.value) for e in log.Scalars("train/value_loss")])
    assert steps[0] == steps[1]


def test_the_cores_this_process_may_use_are_the_default_number_of_threads():
    assert TrainConfig().threads == len(os.sched_getaffinity(0))


def test_a_loaded_checkpoint_is_tensors_and_plain_containers():
    assert run("--steps", 64, "--out", "run") == 0
    path = checkpoints(Path("run/checkpoints"))[0]
    state = torch.load(path, weights_only=True)
    assert state["agent"]["iteration"] == 1
    assert np.isfinite(load_checkpoint(path)["agent"]["parameters"].numpy()).all()
