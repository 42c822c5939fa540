"""What a run leaves behind: TensorBoard, records and early warnings, also across a resume."""

import re

import numpy as np
import pandas as pd
import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboard.plugins.custom_scalar.layout_pb2 import Layout
from tensorboard.util.tensor_util import make_ndarray

from upgd_ppo.agents.population.population import Population
from upgd_ppo.agents.runs.dashboard import plasticity_tag
from upgd_ppo.agents.runs.run_directory import RunDirectory
from upgd_ppo.agents.runs.runner import newest_state
from upgd_ppo.agents.settings.config import TrainConfig
from upgd_ppo.analysis.readers import read_arms
from upgd_ppo.train import make_runner

STEPS = 48
SETTINGS = {
    "env": "Hopper-v4",
    "opt": "upgd",
    "seeds": 3,
    "seed": 5,
    "rollout_steps": STEPS,
    "minibatches": 2,
    "epochs": 2,
    "hidden_sizes": (8, 8),
    "steps": STEPS * 6,
    "statistics_every": 2,
    "histograms_every": 3,
    "checkpoint_every": STEPS * 3,
    # Crossed at once, or as soon as early values are known.
    "warn_std_above": 0.5,
    "warn_rank_fraction": 1.0,
    "threads": 1,
}


def config(path, **changes):
    return TrainConfig().with_flat({**SETTINGS, "out": path, **changes})


def trained(path, population=Population, **changes):
    settings = config(path, **changes)
    runner = make_runner(settings, population(settings), RunDirectory.create(settings))
    runner.run()
    return runner


def events_of(path, run):
    accumulator = EventAccumulator(str(path / "tensorboard" / run), {"tensors": 0, "scalars": 0})
    return accumulator.Reload()


def scalars_of(path, run):
    events = events_of(path, run)
    return {
        tag: [(event.step, event.value) for event in events.Scalars(tag)]
        for tag in events.Tags()["scalars"]
        if not tag.endswith("time/fps")
    }


def texts_of(path, run):
    events = events_of(path, run)
    tags = [tag for tag in events.Tags()["tensors"] if tag.startswith("events/")]
    return [make_ndarray(e.tensor_proto)[0].decode() for tag in tags for e in events.Tensors(tag)]


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    path = tmp_path_factory.mktemp("runs") / "whole"
    trained(path, probe_every=10, tensorboard="full")
    return path


@pytest.fixture(scope="module")
def brief(tmp_path_factory):
    path = tmp_path_factory.mktemp("runs") / "brief"
    trained(path, probe_every=10)
    return path


def test_by_default_a_seed_has_some_twenty_curves_and_the_returns_come_first(brief, run):
    for seed in (5, 6, 7):
        scalars = events_of(brief, f"seed_{seed}").Tags()["scalars"]
        assert 15 <= len(scalars) <= 26
        assert sorted(scalars)[:2] == ["rollout/ep_len_mean", "rollout/ep_rew_mean"]
        assert events_of(brief, f"seed_{seed}").Tags()["tensors"] == ["events/warning"]
    assert min(events_of(brief, "population").Tags()["scalars"]).startswith("values_over_healthy_")
    assert min(events_of(run, "seed_5").Tags()["scalars"]).startswith("rollout/")
    assert len(events_of(run, "seed_5").Tags()["scalars"]) > 100


def test_the_records_hold_every_statistic_however_much_tensorboard_shows(brief, run):
    ours, theirs = (pd.read_parquet(path / "records" / "statistics") for path in (brief, run))
    pd.testing.assert_frame_equal(ours, theirs)


@pytest.mark.parametrize("name", ["seed_5", "population"])
@pytest.mark.parametrize("shown", ["brief", "run"])
def test_no_curve_is_there_twice(name, shown, request):
    curves = {}
    for tag, curve in scalars_of(request.getfixturevalue(shown), name).items():
        values = tuple(value for _, value in curve)
        # Counts, or a network's largest weight and its layer's, are alike by chance.
        counted = all(value.is_integer() for value in values)
        if not counted and not tag.endswith("weight_max_abs"):
            curves.setdefault(values, []).append(tag)
    assert [tags for tags in curves.values() if len(tags) > 1] == []


def test_a_networks_summary_is_the_mean_over_its_hidden_layers_or_the_whole_networks(brief):
    records = pd.read_parquet(brief / "records" / "statistics").query("member == 1")
    scalars = scalars_of(brief, "seed_6")
    critic = records[records.network == "critic"].pivot_table(
        index="step", columns=["statistic", "layer"], values="value", observed=True
    )
    for statistic, layers in (
        ("effective_rank", ["layer_1", "layer_2"]),
        ("dormant_fraction", ["layer_1", "layer_2"]),
        ("weight_l2", ["all"]),
    ):
        expected = critic[statistic][layers].mean(axis=1)
        shown = scalars[f"statistics/critic/{statistic}"]
        assert [step for step, _ in shown] == expected.index.tolist()
        np.testing.assert_allclose([value for _, value in shown], expected, rtol=1e-6)


def test_a_members_statistics_are_the_same_in_tensorboard_and_in_the_records(run):
    records = pd.read_parquet(run / "records" / "statistics")
    records = records[(records.member == 1) & (records.network != "ppo")]
    assert sorted(records.step.unique()) == [STEPS * i for i in (1, 3, 5, 6)]
    scalars = scalars_of(run, "seed_6")
    columns = records.groupby(["network", "layer", "statistic"], observed=True)
    assert len(columns) > 100
    for (network, layer, statistic), rows in columns:
        shown = scalars[plasticity_tag((network, layer, statistic))]
        rows = rows[np.isfinite(rows.value)]
        assert [step for step, _ in shown] == rows.step.tolist()
        np.testing.assert_allclose([value for _, value in shown], rows.value, rtol=1e-6)


def test_the_population_shows_the_mean_and_the_range_of_its_members(run):
    members = [scalars_of(run, f"seed_{seed}") for seed in (5, 6, 7)]
    population = scalars_of(run, "population")
    tag = "statistics/critic/layer_2/effective_rank"
    curves = np.array([[value for _, value in member[tag]] for member in members])
    for shown, expected in (
        (f"values_over_healthy_seeds/mean/{tag}", curves.mean(0)),
        (f"values_over_healthy_seeds/min/{tag}", curves.min(0)),
        (f"values_over_healthy_seeds/max/{tag}", curves.max(0)),
    ):
        np.testing.assert_allclose([value for _, value in population[shown]], expected, rtol=1e-6)


@pytest.mark.parametrize("shown", ["brief", "run"])
def test_every_chart_of_the_page_has_a_curve(shown, request):
    run = request.getfixturevalue(shown)
    events = events_of(run, "population")
    [event] = events.Tensors("custom_scalars__config__")
    page = Layout.FromString(make_ndarray(event.tensor_proto).item())
    tags = events.Tags()["scalars"]
    seeds = events_of(run, "seed_5").Tags()["scalars"]
    assert page.category[0].title.startswith("Returns")
    assert [category.closed for category in page.category[:4]] == [False] * 4
    charts = [chart for category in page.category for chart in category.chart]
    for chart in charts:
        for series in chart.margin.series:
            assert {series.value, series.lower, series.upper} <= set(tags), chart.title
        for pattern in chart.multiline.tag:
            assert any(re.match(pattern, tag) for tag in [*tags, *seeds]), chart.title
    [every_seed] = [chart for chart in charts if chart.title == "return · every seed"]
    [pattern] = every_seed.multiline.tag
    assert [tag for tag in seeds if re.match(pattern, tag)] == ["rollout/ep_rew_mean"]
    assert not [tag for tag in tags if re.match(pattern, tag)]
    titles = [chart.title for chart in charts if chart.title.startswith("dormant_fraction")]
    # TensorBoard shows bands from the last to the first.
    assert titles[::-1] == [
        f"dormant_fraction · {place}"
        for place in ("actor layer_1", "critic layer_1", "actor layer_2", "critic layer_2")
    ]


def test_histograms_can_be_read_back(run):
    events = events_of(run, "seed_5")
    shown = events.Tensors("weights/actor/layer_2")
    assert [event.step for event in shown] == [STEPS, STEPS * 4, STEPS * 6]
    assert make_ndarray(shown[0].tensor_proto)[:, 2].sum() == 8 * 8
    metadata = events.SummaryMetadata("scaled_utilities/critic/output")
    assert metadata.plugin_data.plugin_name == "histograms"


def test_a_warning_is_one_line_one_text_and_one_record(tmp_path, capsys):
    trained(tmp_path / "run", warn_rank_fraction=None)
    lines = [line for line in capsys.readouterr().out.splitlines() if line.startswith("warning")]
    expected = f"seed 6, step {STEPS}: ppo std is"
    assert len([line for line in lines if expected in line]) == 1
    assert len(lines) == 3 * 4  # of the mean and each of the three actions, for three seeds, once
    [text] = [t for t in texts_of(tmp_path / "run", "seed_6") if " std is " in t]
    assert text.startswith(expected)
    records = pd.read_parquet(tmp_path / "run" / "records" / "events")
    warned = records[(records.kind == "warning") & (records.seed == 6)]
    assert len(warned) == 4
    assert warned.message.str.startswith("ppo std").all()


def test_a_switched_off_limit_gives_no_warning(tmp_path, capsys):
    trained(tmp_path / "run", warn_rank_fraction=None, warn_std_above=None, warn_kl=None)
    assert "warning" not in capsys.readouterr().out


def test_a_sick_member_leaves_the_statistics_and_the_warnings(tmp_path):
    class Sick(Population):
        def advance(self):
            if self.iteration == 2:
                self.learner.networks.parameters.data[1] = float("nan")
            return super().advance()

    trained(tmp_path / "run", Sick, statistics_every=1)
    records = pd.read_parquet(tmp_path / "run" / "records" / "statistics")
    last = records.groupby("member").step.max()
    assert last.tolist() == [STEPS * 6, STEPS * 2, STEPS * 6]
    population = scalars_of(tmp_path / "run", "population")
    assert [v for _, v in population["values_over_healthy_seeds/count/healthy_seeds"]] == [
        *(3, 3),
        *(2, 2, 2, 2),
    ]
    events = pd.read_parquet(tmp_path / "run" / "records" / "events")
    assert events[events.member == 1].step.max() == STEPS * 3
    assert events[(events.member == 1) & (events.step == STEPS * 3)].kind.tolist() == ["halted"]


def test_a_run_that_was_killed_and_resumed_leaves_what_an_unbroken_one_does(run, tmp_path):
    class Dying(Population):
        def advance(self):
            if self.iteration == 5:
                raise OSError("power failure")
            return super().advance()

    path = tmp_path / "broken"
    with pytest.raises(OSError, match="power failure"):
        trained(path, Dying, probe_every=10, tensorboard="full")
    settings = config(path, probe_every=10, tensorboard="full")
    directory, _ = RunDirectory.open(path)
    make_runner(settings, Population(settings), directory, newest_state(directory)).run()

    for table in ("statistics", "events", "episodes"):
        ours, theirs = (pd.read_parquet(p / "records" / table) for p in (path, run))
        pd.testing.assert_frame_equal(ours, theirs)
    for name in ("population", "seed_5", "seed_7"):
        assert scalars_of(path, name) == scalars_of(run, name)
        assert texts_of(path, name) == texts_of(run, name)
    assert len(events_of(path, "population").Tensors("custom_scalars__config__")) == 1


def test_a_run_in_which_nothing_happened_has_a_table_of_events_without_rows(tmp_path):
    trained(tmp_path / "run", warn_rank_fraction=None, warn_std_above=None, warn_kl=None)
    events = pd.read_parquet(tmp_path / "run" / "records" / "events")
    assert (len(events), events.columns[0]) == (0, "member")
    [arm] = read_arms([str(tmp_path / "run")])
    assert [member.halted for member in arm.members] == [None, None, None]


def test_a_slow_first_iteration_is_not_taken_for_the_pace(tmp_path, monkeypatch, capsys):
    clock = [0.0]
    monkeypatch.setattr("upgd_ppo.agents.runs.runner.monotonic", lambda: clock[0])

    class Compiling(Population):
        def advance(self):
            clock[0] += 1.0 if self.iteration else 100.0
            return super().advance()

    trained(tmp_path / "run", Compiling, print_every=1e-9, warn_std_above=None)
    lines = [line for line in capsys.readouterr().out.splitlines() if "steps/seed" in line]
    assert len(lines) == 7
    for line in lines[:2]:
        assert "warming up" in line
        assert "left" not in line
    assert [line.split(" left")[0][-7:] for line in lines[2:]] == [
        f"0:00:0{seconds}" for seconds in (4, 3, 2, 1, 0)
    ]


def test_a_long_run_writes_its_records_ever_more_rarely_and_loses_none(tmp_path, monkeypatch):
    clock = [0.0]
    monkeypatch.setattr("upgd_ppo.agents.runs.telemetry.monotonic", lambda: clock[0])
    settings = config(tmp_path / "run")
    telemetry = make_runner(settings, Population(settings), RunDirectory.create(settings)).telemetry
    minute, day, days = 60.0, 24 * 3600.0, 2
    while clock[0] < days * day:
        clock[0] += minute
        telemetry.event(0, int(clock[0]), "warning", "the clock goes on")
        telemetry.flush(int(clock[0]), lazily=True)
    telemetry.flush(int(clock[0]))
    table = tmp_path / "run" / "records" / "events"
    assert len(pd.read_parquet(table)) == days * day / minute
    assert len(list(table.iterdir())) < 600


def test_what_waits_to_be_written_is_written_by_a_checkpoint(tmp_path, monkeypatch):
    monkeypatch.setattr("upgd_ppo.agents.runs.telemetry.RECORDS_SHARE", 1e9)
    run = trained(tmp_path / "run")
    episodes = pd.read_parquet(tmp_path / "run" / "records" / "episodes")
    assert run.telemetry.episodes.pending_rows == 0
    assert episodes.step.max() > STEPS * 5
