"""A learner of a stream keeps the laws, and is driven, recorded and compared like PPO."""

import json
import shutil
import typing

import numpy as np
import pandas as pd
import pytest
import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboard.plugins.custom_scalar.layout_pb2 import Layout
from tensorboard.util.tensor_util import make_ndarray
from test_laws import assert_equal, member_of

from upgd_ppo import evaluate, train
from upgd_ppo.agents.learners.make import make_learner
from upgd_ppo.agents.optimizers import names
from upgd_ppo.agents.population.population import Population
from upgd_ppo.agents.runs.run_directory import RunDirectory
from upgd_ppo.agents.settings.config import StreamConfig, TrainConfig
from upgd_ppo.analysis.readers import read_arms
from upgd_ppo.streams import STREAMS
from upgd_ppo.streams.regression import KEPT, NOISE, RegressionStream

SAMPLES, ITERATIONS = 64, 4
SMALL = {
    "stream": "regression",
    "change_every": 50,
    "rollout_steps": SAMPLES,
    "minibatches": 4,
    "hidden_sizes": (16, 16),
    "steps": SAMPLES * ITERATIONS,
    "threads": 1,
    "statistics_every": 1,
}
FLAGS = [
    *("--stream", "regression", "--change-every", "50", "--rollout-steps", str(SAMPLES)),
    *("--minibatches", "4", "--hidden-sizes", "8", "8", "--statistics-every", "1"),
    *("--print-every", "60"),
]


def config(**changes):
    return TrainConfig().with_flat({**SMALL, **changes})


def advanced(population, iterations=ITERATIONS):
    reports = [population.advance() for _ in range(iterations)]
    return population.state_dict(), reports


# ── The laws ────────────────────────────────────────────────────────────────────────────────────

law = pytest.mark.usefixtures("computed_by")


@law
@pytest.mark.parametrize("opt", [*names(), "torch.optim.NAdam"])
def test_a_member_of_five_equals_the_same_seed_alone(opt):
    together, reports = advanced(Population(config(opt=opt, seeds=5)))
    alone, own = advanced(Population(config(opt=opt, seeds=1, seed=4)))
    assert_equal(member_of(together, 3, 5), alone)
    for name, values in own[-1].scalars.items():
        np.testing.assert_array_equal(reports[-1].scalars[name][3:4], values)
    np.testing.assert_array_equal(
        reports[-1].inspection.table.values[3:4], own[-1].inspection.table.values
    )


@law
@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize("changes", [{}, {"opt": "adam"}, {"methods": {"random_reset": None}}])
def test_a_restored_population_goes_on_as_if_it_had_not_stopped(threads, changes):
    whole = Population(config(seeds=3, **changes))
    halfway, _ = advanced(whole, 2)
    expected, reports = advanced(whole, 2)
    restored = Population(config(seeds=3, threads=threads, **changes))
    restored.load_state_dict(halfway)
    state, own = advanced(restored, 2)
    assert_equal(state, expected)
    assert own[-1].episodes == reports[-1].episodes
    restored.close()


@law
def test_arms_differ_in_the_optimizer_alone():
    learners = [make_learner(config(opt=opt), [7, 8]) for opt in ("adam", "upgd")]
    assert torch.equal(*[learner.parameters.data for learner in learners])
    first, _ = zip(*[learner.advance().scalars["loss"] for learner in learners], strict=True)
    assert first[0] != first[1]
    for draws in zip(*[learner.stream.draw(SAMPLES) for learner in learners], strict=True):
        assert torch.equal(*draws)


@law
def test_a_sick_member_is_halted_and_harms_nobody():
    sick, well = Population(config(seeds=3)), Population(config(seeds=3))
    advanced(sick, 1), advanced(well, 1)
    good = sick.learner.parameters.data[1].clone()
    sick.learner.stream.hidden[1] = float("nan")
    state, reports = advanced(sick, 2)
    assert [report.halted for report in reports] == [[(1, "a non-finite loss")], []]
    assert sick.healthy.tolist() == [True, False, True]
    assert torch.equal(state["parameters"][1], good)
    assert {episode.member for episode in reports[-1].episodes} == {0, 2}
    expected, _ = advanced(well, 2)
    for member in (0, 2):
        assert_equal(
            member_of({**state, "healthy": None}, member, 3),
            member_of({**expected, "healthy": None}, member, 3),
        )


# ── What it computes ────────────────────────────────────────────────────────────────────────────


def test_it_learns_as_a_torch_module_with_that_optimizer_does():
    learner = make_learner(config(opt="adam", opt_kwargs={"eps": 1e-8}, anneal=False), [3])
    views = learner.parameters.views
    module = torch.nn.Sequential(
        *(torch.nn.Linear(16, 16), torch.nn.Tanh(), torch.nn.Linear(16, 16), torch.nn.Tanh()),
        torch.nn.Linear(16, 1),
    )
    linear = {0: "layer_1", 2: "layer_2", 4: "output"}
    for index, name in linear.items():
        for kind in ("weight", "bias"):
            getattr(module[index], kind).data.copy_(views[f"regressor.{name}.{kind}"][0])
    optimizer = torch.optim.Adam(module.parameters(), lr=3e-4)
    twin = make_learner(config(), [3]).stream
    for _ in range(3):
        losses = []
        inputs, targets = twin.draw(SAMPLES)
        for batch, wanted in zip(inputs[0].split(16), targets[0].split(16), strict=True):
            loss = torch.nn.functional.mse_loss(module(batch), wanted)
            losses.append(loss.item())
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        report = learner.advance()
        np.testing.assert_allclose(report.scalars["loss"], np.mean(losses), rtol=1e-4)
        [episode] = report.episodes
        np.testing.assert_allclose(episode.episode_return, -np.mean(losses), rtol=1e-4)
    for index, name in linear.items():
        np.testing.assert_allclose(
            views[f"regressor.{name}.weight"][0], module[index].weight.detach(), atol=1e-5
        )


def test_the_loss_falls_while_nothing_changes_and_jumps_where_the_teacher_does():
    changes = {"opt": "adam", "learning_rate": 0.01, "anneal": False, "hidden_sizes": (64,)}
    changes |= {"rollout_steps": 1000, "minibatches": 50, "change_every": 20_000, "seeds": 3}
    population = Population(config(**changes, activation="relu", steps=40_000))
    _, reports = advanced(population, 40)
    losses = np.array([report.scalars["loss"] for report in reports]).mean(1)
    assert losses[19] < 0.2 * losses[0]
    assert losses[20] > 2 * losses[19]
    assert losses[39] < 0.5 * losses[20]
    assert losses.min() > NOISE**2


def test_a_teacher_changes_slowly_and_stays_as_hard():
    generators = [torch.Generator().manual_seed(seed) for seed in range(200)]
    stream = RegressionStream(generators, change_every=10)
    before = stream.hidden.clone()
    stream.draw(9)
    assert torch.equal(stream.hidden, before)
    stream.draw(1)
    correlation = np.corrcoef(before.flatten(), stream.hidden.flatten())[0, 1]
    assert correlation == pytest.approx(KEPT, abs=0.01)
    for _ in range(5):
        stream.draw(10)
    assert stream.hidden.std().item() == pytest.approx(before.std().item(), rel=0.02)
    _, targets = stream.draw(10)
    assert targets.square().mean().item() == pytest.approx(1, rel=0.2)


def test_a_sequence_does_not_depend_on_how_much_is_drawn_between_two_changes():
    generators = [torch.Generator().manual_seed(1)], [torch.Generator().manual_seed(1)]
    one, two = (RegressionStream(own, change_every=30) for own in generators)
    one.draw(60)
    two.draw(30), two.draw(30)
    assert torch.equal(one.hidden, two.hidden)
    assert torch.equal(one.draw(30)[1], two.draw(30)[1])


def test_every_stream_can_be_asked_for():
    asked = typing.get_args(typing.get_type_hints(StreamConfig)["stream"])[0]
    assert set(typing.get_args(asked)) == set(STREAMS)


# ── The same runner, records and report ─────────────────────────────────────────────────────────


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """Two arms, trained from the command line."""
    folder = tmp_path_factory.mktemp("streams")
    for opt in ("adam", "upgd"):
        arguments = [*FLAGS, "--opt", opt, "--seeds", "3", "--steps", str(SAMPLES * 60)]
        assert train.main([*arguments, "--out", str(folder / opt)]) == 0
    return folder


def test_what_a_run_leaves_is_what_ppo_leaves(runs):
    status = json.loads((runs / "adam" / "status.json").read_text())
    assert (status["state"], status["steps"]) == ("finished", SAMPLES * 60)
    episodes = pd.read_parquet(runs / "adam" / "records" / "episodes").query("member == 1")
    assert episodes.step.tolist() == [SAMPLES * (i + 1) for i in range(60)]
    statistics = pd.read_parquet(runs / "adam" / "records" / "statistics").query("member == 1")
    loss = statistics[(statistics.network == "supervised") & (statistics.statistic == "loss")]
    np.testing.assert_allclose(loss.value, -episodes.episode_return)
    layers = statistics[statistics.statistic == "effective_rank"]
    assert set(zip(layers.network, layers.layer, strict=True)) == {
        ("regressor", "layer_1"),
        ("regressor", "layer_2"),
    }


def test_tensorboard_shows_the_loss_and_a_band_of_it(runs):
    seed = EventAccumulator(str(runs / "upgd" / "tensorboard" / "seed_2")).Reload()
    statistics = pd.read_parquet(runs / "upgd" / "records" / "statistics").query("member == 1")
    loss = statistics[statistics.statistic == "loss"].value
    np.testing.assert_allclose([event.value for event in seed.Scalars("train/loss")], loss, 1e-6)
    population = EventAccumulator(
        str(runs / "upgd" / "tensorboard" / "population"), {"tensors": 0}
    ).Reload()
    [event] = population.Tensors("custom_scalars__config__")
    page = Layout.FromString(make_ndarray(event.tensor_proto).item())
    shown = population.Tags()["scalars"]
    bands = [
        series
        for category in page.category
        for chart in category.chart
        for series in chart.margin.series
    ]
    assert any(band.value.endswith("/train/loss") for band in bands)
    for band in bands:
        assert {band.value, band.lower, band.upper} <= set(shown)


def test_two_arms_are_compared(runs, tmp_path, capsys):
    arms = read_arms([str(runs / "adam"), str(runs / "upgd")])
    assert [(arm.name, arm.environment) for arm in arms] == [
        ("adam", "regression"),
        ("upgd", "regression"),
    ]
    assert not any(note for arm in arms for note in arm.notes)
    folders = [str(runs / "adam"), str(runs / "upgd")]
    assert evaluate.main(["compare", *folders, "--out", str(tmp_path / "report")]) == 0
    assert "regression, first" in capsys.readouterr().out


def test_a_run_continues_where_it_stopped(runs, tmp_path):
    arguments = [*FLAGS, "--opt", "adam", "--no-anneal", "--seeds", "2"]
    whole, cut = tmp_path / "whole", tmp_path / "cut"
    assert train.main([*arguments, "--steps", str(SAMPLES * 6), "--out", str(whole)]) == 0
    assert train.main([*arguments, "--steps", str(SAMPLES * 3), "--out", str(cut)]) == 0
    shutil.rmtree(cut / "tensorboard" / "seed_1")  # said, and no reason to stop
    assert train.main(["--resume", str(cut), "--steps", str(SAMPLES * 6)]) == 0
    ours, theirs = (
        pd.read_parquet(path / "records" / "episodes").reset_index(drop=True)
        for path in (cut, whole)
    )
    pd.testing.assert_frame_equal(ours, theirs)


def test_an_early_warning_is_given_of_its_layers(tmp_path, capsys):
    arguments = [*FLAGS, "--opt", "adam", "--steps", str(SAMPLES), "--out", str(tmp_path / "run")]
    assert train.main([*arguments, "--warn-update-ratio", "1e-6"]) == 0
    assert "regressor layer_1 update_ratio" in capsys.readouterr().out


def test_a_run_is_named_after_its_stream(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert RunDirectory.create(config(opt="adam")).path.name == "regression-adam"


@pytest.mark.parametrize("arguments", ["--epochs 3", "--env Hopper-v4", "--envs-per-seed 2"])
def test_what_a_stream_does_not_know_is_refused(arguments, capsys):
    assert train.main([*FLAGS, *arguments.split()]) == 2
    assert f"{arguments.split()[0]} has no effect on a stream" in capsys.readouterr().err


def test_a_stream_has_no_policy_to_play(runs, capsys):
    assert evaluate.main([str(runs / "adam")]) == 2
    assert "no policy to play" in capsys.readouterr().err
