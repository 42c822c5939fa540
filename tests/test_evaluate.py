"""The front door: `evaluate.py` scoring and filming what `train.py` left."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import gymnasium
import imageio_ffmpeg
import numpy as np
import pandas as pd
import pytest
from PIL import Image

from upgd_ppo import evaluate, train
from upgd_ppo.agents.networks.actor_critic import ActorCritic
from upgd_ppo.agents.playing import load_policies, make_env, play
from upgd_ppo.agents.playing.trained_policies import ROWS
from upgd_ppo.agents.runs.checkpoint import checkpoints, load_checkpoint, save_checkpoint
from upgd_ppo.analysis.scores import Score

ROOT = Path(__file__).parent.parent
QUICK = [
    *("--rollout-steps", "64", "--steps", "128", "--checkpoint-every", "64"),
    *("--minibatches", "4", "--epochs", "2", "--hidden-sizes", "8", "8", "--threads", "1"),
]


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    out = tmp_path_factory.mktemp("runs") / "hopper"
    arguments = ["--env", "Hopper-v4", "--opt", "adam", "--seeds", "3", "--seed", "4"]
    assert train.main([*arguments, *QUICK, "--out", str(out)]) == 0
    return out


@pytest.fixture
def copy(run, tmp_path):
    """The run, to be spoilt."""
    return Path(shutil.copytree(run, tmp_path / "copy"))


def score(*arguments):
    return evaluate.main([*map(str, arguments), "--threads", "1"])


def scored(out, *arguments):
    """scores.json's first run, and the returns [S, E] of episodes.csv."""
    assert score(*arguments, "--out", out) == 0
    table = pd.read_csv(out / "episodes.csv")
    returns = table.pivot(index="member", columns="episode", values="episode_return")
    return json.loads((out / "scores.json").read_text())["runs"][0], returns.to_numpy()


def refusal(capsys, *arguments):
    """The one sentence with which a command is refused."""
    capsys.readouterr()
    assert score(*arguments) == 2
    error = capsys.readouterr().err
    assert "Traceback" not in error
    return error


# ── Scores ──────────────────────────────────────────────────────────────────────────────────────


def test_gymnasiums_own_environment_gives_the_same_returns_bit_for_bit(run, tmp_path):
    scored(tmp_path / "out", run, "--episodes", 3)
    state = load_checkpoint(checkpoints(run / "checkpoints")[0])["agent"]
    moments = state["environment"]["NormalizeObservation"]
    env = gymnasium.make("Hopper-v4")
    for row in pd.read_csv(tmp_path / "out" / "episodes.csv").itertuples():
        member = int(row.member.removeprefix("seed ")) - 4
        networks = ActorCritic([0], 11, 3, (8, 8))
        networks.parameters.data.copy_(state["parameters"][member : member + 1])
        observation, _ = env.reset(seed=row.environment_seed)
        episode_return, length, done = 0.0, 0, False
        while not done:
            scale = np.sqrt(moments["var"][member] + 1e-8)
            seen = np.clip((observation - moments["mean"][member]) / scale, -10, 10)
            batch = np.tile(seen.astype(np.float32), (1, ROWS, 1))
            action = networks.actor.infer(batch, networks.actor.numpy_layers())[0, 0]
            observation, reward, terminated, truncated, _ = env.step(np.clip(action, -1, 1))
            episode_return, length = episode_return + reward, length + 1
            done = terminated or truncated
        assert (episode_return, length) == (row.episode_return, row.episode_length)
        assert terminated == row.terminated


def test_an_episode_does_not_depend_on_what_else_is_played(run, tmp_path):
    _, few = scored(tmp_path / "few", run, "--episodes", 2)
    _, many = scored(tmp_path / "many", run, "--episodes", 11)
    np.testing.assert_array_equal(many[:, :2], few)
    alone = load_policies(run).select([2])
    seeds = pd.read_csv(tmp_path / "many" / "episodes.csv")["environment_seed"].to_numpy()
    *_, episodes = play(alone, make_env(alone, 1), seeds[9:10].reshape(1, 1))
    assert episodes.returns[0, 0] == many[2, 9]


def test_statistics_are_those_of_exactly_the_episodes_asked_for(run, tmp_path):
    result, returns = scored(tmp_path / "out", run, "--episodes", 6)
    assert returns.shape == (3, 6)
    assert np.isfinite(returns).all()
    table = pd.read_csv(tmp_path / "out" / "members.csv")
    assert list(table["member"]) == ["seed 4", "seed 5", "seed 6"]
    np.testing.assert_allclose(table["mean"], returns.mean(1))
    np.testing.assert_allclose(table["std"], returns.std(1, ddof=1))
    assert (table["low"] < table["mean"]).all()
    assert (table["mean"] < table["high"]).all()
    population = result["population"]["all 3"]
    assert population["mean"] == pytest.approx(returns.mean())
    assert population["std"] == pytest.approx(returns.mean(1).std(ddof=1))
    assert result["step"] == 128


def test_by_default_scores_lie_in_the_run_and_the_table_is_printed(copy, capsys):
    assert score(copy, "--episodes", 2) == 0
    assert score(copy, "--episodes", 3) == 0  # the newer scores take their place
    folder = copy / "evaluation" / "Hopper-v4-step-000000000128"
    assert {file.name for file in folder.iterdir()} == {
        "scores.json",
        "members.csv",
        "episodes.csv",
    }
    assert len(pd.read_csv(folder / "episodes.csv")) == 9
    assert [entry.name for entry in (copy / "evaluation").iterdir()] == [folder.name]
    printed = capsys.readouterr().out
    for words in ("Hopper-v4", "95 % interval", "seed 6", "all 3"):
        assert words in printed


def test_sampled_actions_depend_on_the_seed_alone(run, tmp_path):
    first, mean = scored(tmp_path / "mean", run, "--episodes", 2)
    second, sampled = scored(tmp_path / "sampled", run, "--episodes", 2, "--stochastic")
    _, more = scored(tmp_path / "more", run, "--episodes", 3, "--stochastic")
    _, other = scored(tmp_path / "other", run, "--episodes", 2, "--stochastic", "--seed", 1)
    assert (first["action"], second["action"]) == ("mean", "sampled")
    assert not np.isin(sampled, mean).any()
    assert not np.isin(sampled, other).any()
    np.testing.assert_array_equal(more[:, :2], sampled)


def test_a_checkpoint_is_picked_by_its_step_or_its_file(run, tmp_path, capsys):
    newest, first, _ = checkpoints(run / "checkpoints")
    _, at_newest = scored(tmp_path / "newest", run, "--episodes", 1, "--checkpoint", newest)
    result, by_step = scored(tmp_path / "step", run, "--episodes", 1, "--checkpoint", 64)
    _, by_file = scored(tmp_path / "file", run, "--episodes", 1, "--checkpoint", first)
    assert (result["step"], result["checkpoint"]) == (64, first.name)
    np.testing.assert_array_equal(by_step, by_file)
    assert not np.isin(by_step, at_newest).any()
    assert "it has 0, 64, 128" in refusal(capsys, run, "--checkpoint", 65)
    assert "takes a file or a step" in refusal(capsys, run, "--checkpoint", "newest")


def test_another_variant_of_the_same_spaces(run, tmp_path, capsys):
    result, _ = scored(tmp_path / "v5", run, "--episodes", 1, "--env", "Hopper-v5")
    assert result["environment"] == "Hopper-v5"
    limit = ["--env-kwargs", "terminate_when_unhealthy=false", "--max-episode-steps", 70]
    scored(tmp_path / "limit", run, "--episodes", 2, *limit)
    table = pd.read_csv(tmp_path / "limit" / "episodes.csv")
    assert (table["episode_length"] == 70).all()
    assert not table["terminated"].any()
    error = refusal(capsys, run, "--env", "Walker2d-v4")
    assert "11 observations" in error
    assert "Walker2d-v4 has 17 observations" in error


def test_halted_members_are_marked_and_the_rest_is_scored_apart(copy, capsys):
    state = load_checkpoint(checkpoints(copy / "checkpoints")[0])
    state["agent"]["healthy"][1] = False
    state["halted"] = [{"seed": 5, "step": 70, "cause": "the loss was not finite"}]
    save_checkpoint(copy / "checkpoints", 192, state, keep=1)
    result, returns = scored(copy / "out", copy, "--episodes", 2)
    assert "seed 5 halted at step 70: the loss was not finite" in capsys.readouterr().out
    assert result["members"][1]["halted"] == "halted at step 70: the loss was not finite"
    assert set(result["population"]) == {"all 3", "the 2 not halted"}
    rest = result["population"]["the 2 not halted"]
    assert rest["mean"] == pytest.approx(returns[[0, 2]].mean())


def test_an_sb3_model_scores_like_the_member_it_was_exported_from(run, tmp_path):
    from upgd_ppo.agents.sb3 import export_sb3

    model, _ = export_sb3(run, 1, tmp_path / "hopper.zip")
    _, expected = scored(tmp_path / "run", run, "--episodes", 3)
    result, returns = scored(tmp_path / "model", model, "--episodes", 3)
    assert result["environment"] == "Hopper-v4"
    np.testing.assert_allclose(returns[0], expected[1], rtol=1e-3)
    assert score(model, "--episodes", 1) == 0
    assert (tmp_path / "hopper_evaluation" / "Hopper-v4" / "scores.json").is_file()


def test_several_runs_share_the_files_that_out_names(run, copy, tmp_path):
    assert score(run, copy, "--episodes", 1, "--out", tmp_path / "out") == 0
    table = pd.read_csv(tmp_path / "out" / "members.csv")
    assert list(table["run"]) == [str(run)] * 3 + [str(copy)] * 3
    assert not (copy / "evaluation").exists()


# ── Refusals ────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    ("spoil", "words"),
    [
        (lambda run: (run / "config.yaml").unlink(), "is not a run directory"),
        (lambda run: shutil.rmtree(run / "checkpoints"), "has no checkpoint yet"),
        (lambda run: _truncate(*checkpoints(run / "checkpoints")), "is damaged"),
    ],
    ids=["no run", "empty run", "truncated checkpoints"],
)
def test_what_cannot_be_scored_is_refused_and_nothing_is_written(spoil, words, copy, capsys):
    spoil(copy)
    before = sorted(copy.rglob("*"))
    assert words in refusal(capsys, copy, "--episodes", 1)
    assert sorted(copy.rglob("*")) == before


def test_a_truncated_checkpoint_is_refused_and_no_older_one_takes_its_place(copy, capsys):
    newest, *_ = checkpoints(copy / "checkpoints")
    _truncate(newest)
    assert "damaged" in refusal(capsys, copy, "--checkpoint", newest)
    error = refusal(capsys, copy, "--episodes", 1)
    assert "damaged" in error
    assert "--checkpoint 64 or 0" in error
    assert score(copy, "--episodes", 1, "--checkpoint", 64) == 0
    assert (copy / "evaluation" / "Hopper-v4-step-000000000064").is_dir()


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--episodes", "0"], "--episodes is 0"),
        (["--video", "film.avi"], "must end in .mp4"),
        (["--env", "Hoper-v4"], "Hopper-v4"),
        (["--env-kwargs", "gravity=1"], "no argument 'gravity'"),
    ],
)
def test_settings_that_make_no_sense_are_refused(arguments, words, run, capsys):
    assert words in refusal(capsys, run, *arguments)
    assert not (run / "evaluation").exists()


def test_a_folder_that_holds_other_things_is_left_alone(run, tmp_path, capsys):
    (tmp_path / "notes.txt").write_text("mine")
    assert "holds other files" in refusal(capsys, run, "--episodes", 1, "--out", tmp_path)
    assert [entry.name for entry in tmp_path.iterdir()] == ["notes.txt"]


def _truncate(*files):
    for file in files:
        file.write_bytes(file.read_bytes()[:1000])


# ── Films ───────────────────────────────────────────────────────────────────────────────────────


def test_best_median_and_worst_are_found():
    returns = np.array([[1.0, 2, 9], [np.nan] * 3, [7, 8, 9], [3, 3, 4], [5, np.nan, 6]])
    nothing = np.zeros((5, 3), int)
    names = [f"seed {k}" for k in range(5)]
    five = Score("", {}, names, nothing, returns, nothing, nothing.astype(bool))
    assert five.ranking() == [("best", 2), ("median", 0), ("worst", 3)]
    assert five.typical_episode(2) == 1
    assert five.typical_episode(4) == 0
    one = Score("", {}, names[:1], nothing[:1], returns[:1], nothing[:1], nothing[:1] > 0)
    assert one.ranking() == [("best", 0)]


def test_film_and_strip_or_a_word_about_the_renderer(run, tmp_path, capsys):
    video, image = tmp_path / "film.mp4", tmp_path / "strip.png"
    arguments = [run, "--episodes", 2, "--out", tmp_path / "out", "--video", video]
    if score(*arguments, "--image", image) == 2:
        assert "libegl1" in capsys.readouterr().err
        assert list(tmp_path.iterdir()) == []
        return
    frames = imageio_ffmpeg.read_frames(str(video))
    width, height = next(frames)["size"]
    pictures = [np.frombuffer(frame, np.uint8).reshape(height, width, 3) for frame in frames]
    assert width == 3 * 480
    lengths = pd.read_csv(tmp_path / "out" / "episodes.csv")["episode_length"]
    assert 31 < len(pictures) <= 32 + lengths.max() / 4 + 1
    for panel in np.split(pictures[0], 3, axis=1):
        assert panel.std() > 10
    assert np.abs(pictures[0].astype(int) - pictures[-1]).max() > 50
    strip = np.asarray(Image.open(image).convert("L"))
    assert len(strip) > 3 * 240
    assert strip.std() > 10
    assert sorted(entry.name for entry in tmp_path.iterdir()) == ["film.mp4", "out", "strip.png"]


def test_without_a_renderer_films_are_refused_and_scores_are_not(
    run, tmp_path, capsys, monkeypatch
):
    monkeypatch.setenv("MUJOCO_GL", "abacus")
    films = ["--image", tmp_path / "strip.png", "--out", tmp_path / "out"]
    error = refusal(capsys, run, "--episodes", 1, *films)
    assert "libegl1 or libosmesa6" in error
    assert error.count("\n") == 1
    assert list(tmp_path.iterdir()) == []
    command = [sys.executable, ROOT / "evaluate.py", run, "--episodes", "1", "--threads", "1"]
    done = subprocess.run(
        [*command, "--out", tmp_path / "out"],
        env={**os.environ, "MUJOCO_GL": "abacus"},
        capture_output=True,
        text=True,
        timeout=600,
    )
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "out" / "scores.json").is_file()
