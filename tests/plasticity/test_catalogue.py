"""A statistic costs a function and a declaration: everything else follows from these."""

import pandas as pd
import pytest
import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboard.plugins.custom_scalar.layout_pb2 import Layout
from torch import nn

from upgd_ppo import train
from upgd_ppo.agents.plasticity import CATALOGUE, feature_statistics, measure
from upgd_ppo.agents.plasticity.catalogue import Limit, Of, Statistic
from upgd_ppo.analysis import figures

QUICK = [
    *("--env", "Hopper-v4", "--rollout-steps", "64", "--minibatches", "4", "--epochs", "2"),
    *("--hidden-sizes", "8", "8", "--threads", "1", "--steps", "64", "--seeds", "2"),
]


def negative_fraction(features):
    return (features < 0).double().mean((-2, -1))


@pytest.fixture
def toy(monkeypatch):
    statistic = Statistic(
        "negative_fraction",
        Of.FEATURES,
        "share of entries below 0",
        compute=negative_fraction,
        takes=("features",),
        section="Lost units",
        brief=True,
        limits=(Limit("warn_negative_fraction", 0.01, True, "the sky is falling"),),
    )
    monkeypatch.setitem(CATALOGUE, statistic.name, statistic)
    return statistic


def test_a_declared_statistic_is_in_the_tables_of_features_and_modules(toy):
    features = torch.tanh(torch.randn(3, 50, 8, generator=torch.Generator().manual_seed(0)))
    torch.testing.assert_close(
        feature_statistics(features, "tanh")[toy.name], negative_fraction(features.double())
    )
    network = nn.Sequential(nn.Linear(4, 8), nn.Tanh(), nn.Linear(8, 2))
    found = {row.layer for row in measure(network, torch.ones(9, 4)) if row.statistic == toy.name}
    assert found == {"layer_1"}


def test_a_declared_statistic_is_recorded_shown_and_warned_of(toy, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert train.main([*QUICK, "--out", "run"]) == 0

    rows = pd.read_parquet("run/records/statistics")
    rows = rows[rows.statistic == toy.name]
    places = {(network, layer) for network in ("actor", "critic") for layer in (1, 2)}
    assert set(zip(rows.network, rows.layer, strict=True)) == {(n, f"layer_{i}") for n, i in places}
    assert rows.value.between(0.01, 0.99).all()

    seed = EventAccumulator("run/tensorboard/seed_1").Reload()
    shown = seed.Scalars(f"statistics/actor/{toy.name}")[0].value
    mine = rows[(rows.network == "actor") & (rows.member == 0)]
    assert shown == pytest.approx(mine.value.mean())

    population = EventAccumulator("run/tensorboard/population", {"tensors": 0}).Reload()
    [event] = population.Tensors("custom_scalars__config__")
    page = Layout.FromString(event.tensor_proto.string_val[0])
    [lost] = [category for category in page.category if category.title == toy.section]
    assert f"{toy.name} · actor layer_2" in {chart.title for chart in lost.chart}

    events = pd.read_parquet("run/records/events")
    assert events.message.str.contains("negative_fraction is .*the sky is falling").any()


def test_a_figure_shows_what_the_catalogue_says():
    """The analysis knows only what a run directory holds, and so has lists of its own."""
    for figure, listed in (
        ("features", figures.FEATURE_STATISTICS),
        ("weights", figures.WEIGHT_STATISTICS),
    ):
        declared = [name for name, one in CATALOGUE.items() if one.figure == figure]
        assert sorted(listed) == sorted(declared)


def test_a_statistic_takes_what_there_is():
    with pytest.raises(ValueError, match=r"toy takes 'gradients'.*features, activation"):
        Statistic("toy", Of.FEATURES, "", takes=("gradients",))


def test_a_section_exists():
    with pytest.raises(ValueError, match="no section; sections are Lost units"):
        Statistic("toy", Of.FEATURES, "", section="Lost souls")
