"""Measuring the networks during training: right, in time, and without a trace in the training."""

import numpy as np
import pytest
import torch
from test_laws import assert_equal

from upgd_ppo.agents.plasticity import feature_statistics
from upgd_ppo.agents.population.population import Population, make_learner
from upgd_ppo.agents.settings.config import TrainConfig

SMALL = {
    "env": "Hopper-v4",
    "rollout_steps": 48,
    "minibatches": 4,
    "epochs": 2,
    "hidden_sizes": (13, 7),
    "steps": 48 * 4,
    "threads": 1,
}
ON = {"statistics_every": 1, "histograms_every": 1, "tensorboard": "full"}
WITH_PROBE = {**ON, "probe_every": 1}
ALL_OFF = {"statistics_every": 0, "histograms_every": 0, "probe_every": 0}
ONE_STEP = {"minibatches": 1, "epochs": 1, **ON}


def config(**changes):
    return TrainConfig().with_flat({**SMALL, **changes})


def values_of(table, member=0):
    return dict(zip(table.keys, table.values[member], strict=True))


@pytest.mark.parametrize("opt", ["adam", "upgd", "upgd_first_order_local", "torch.optim.NAdam"])
def test_measuring_everything_changes_nothing_in_the_training(opt):
    states = []
    for cadence in (WITH_PROBE, ALL_OFF):
        population = Population(config(opt=opt, seeds=3, **cadence))
        for _ in range(2):
            population.advance()
        states.append(population.state_dict())
    assert_equal(*states)


@pytest.mark.parametrize("opt", ["adam", "upgd", "upgd_local"])
def test_a_members_statistics_do_not_depend_on_how_many_there_are(opt, computed_by):
    """Bit for bit, the probe's too, in whatever threads the members are."""
    changes = {"opt": opt, "hidden_sizes": (64, 5), **WITH_PROBE}
    together = Population(config(seeds=3, **changes)).advance().inspection
    threaded = Population(config(seeds=3, threads=2, **changes)).advance().inspection
    assert threaded.table.keys == together.table.keys
    np.testing.assert_array_equal(threaded.table.values, together.table.values)
    for member in (0, 2):
        alone = Population(config(seeds=1, seed=1 + member, **changes)).advance().inspection
        assert alone.table.keys == together.table.keys
        np.testing.assert_array_equal(alone.table.values[0], together.table.values[member])
        for name, bins in alone.histograms.items():
            np.testing.assert_array_equal(bins[0], together.histograms[name][member])


@pytest.mark.parametrize("environments", [3, 8])
def test_the_samples_of_every_environment_of_a_seed_are_measured(environments):
    """Features of the whole rollout, against those of the samples that were chosen."""
    learner = make_learner(
        config(envs_per_seed=environments, rollout_steps=1024, epochs=1, **ON), [3]
    )
    found = values_of(learner.advance().inspection.table)
    samples = learner.rollout.samples("observations", "cpu")
    whole = feature_statistics(learner.networks.actor.hidden_activations(samples)[0], "tanh")
    norm = found["actor", "layer_1", "feature_norm"]
    by_environment = [
        feature_statistics(
            learner.networks.actor.hidden_activations(samples[:, n::environments])[0], "tanh"
        )["feature_norm"].item()
        for n in range(environments)
    ]
    spread = max(by_environment) - min(by_environment)
    assert norm == pytest.approx(whole["feature_norm"].item(), abs=0.3 * spread)


@pytest.mark.parametrize("layer_norm", [False, True])
def test_features_are_those_of_the_latest_rollout_under_the_new_weights(layer_norm):
    learner = make_learner(config(layer_norm=layer_norm, **ON), [3, 4])
    before = learner.networks.parameters.data.clone()
    found = values_of(learner.advance().inspection.table, member=1)
    weights = {name: view[1].double().numpy() for name, view in _views(learner).items()}
    for network in ("actor", "critic"):
        h = learner.rollout.observations[1, :, 0].astype(np.float64)
        for layer in ("layer_1", "layer_2"):
            z = h @ weights[f"{network}.{layer}.weight"].T + weights[f"{network}.{layer}.bias"]
            if layer_norm:
                z = (z - z.mean(1, keepdims=True)) / np.sqrt(z.var(1, keepdims=True) + 1e-5)
                z = z * weights[f"{network}.{layer}.norm_weight"]
                z += weights[f"{network}.{layer}.norm_bias"]
            h = np.tanh(z)
            singular = np.linalg.svd(h, compute_uv=False)
            q = singular / singular.sum()
            expected = {
                "effective_rank": np.exp(-(q * np.log(q)).sum()),
                "feature_norm": np.linalg.norm(h, axis=1).mean(),
                "weight_l2": np.linalg.norm(weights[f"{network}.{layer}.weight"]),
            }
            for name, value in expected.items():
                assert found[network, layer, name] == pytest.approx(value, rel=1e-4), name
        now, then = (
            learner.networks.parameters.named_views(flat)[f"{network}.layer_1.weight"][1].double()
            for flat in (learner.networks.parameters.data, before)
        )
        expected = float((now - then).norm() / now.norm())
        assert found[network, "layer_1", "update_ratio"] == pytest.approx(expected)
    std = learner.networks.log_std[1].exp().tolist()
    assert [found["ppo", "", f"std_{i}"] for i in range(3)] == pytest.approx(std)


def test_gradients_are_those_before_clipping():
    clipped, free = (
        values_of(
            make_learner(config(max_grad_norm=norm, **ONE_STEP), [1]).advance().inspection.table
        )
        for norm in (1e-3, 0)
    )
    names = [key for key in free if key[2] == "gradient_l2"]
    assert len(names) == 8
    for name in names:
        assert clipped[name] == pytest.approx(free[name], rel=1e-5)


@pytest.mark.parametrize("target_kl", [None, 1e9], ids=["flat", "one optimizer per member"])
def test_effective_step_is_how_far_adam_moved_over_its_learning_rate(target_kl):
    learner = make_learner(config(opt="adam", target_kl=target_kl, **ONE_STEP), [1, 2])
    before = learner.networks.parameters.data.clone()
    found = values_of(learner.advance().inspection.table, member=1)
    moved = (learner.networks.parameters.data - before).double() / 3e-4
    for name, view in learner.networks.parameters.named_views(moved).items():
        if name.endswith(".weight"):
            network, layer, _ = name.split(".")
            expected = float(view[1].abs().mean())
            assert found[network, layer, "effective_step"] == pytest.approx(expected, rel=1e-3)


@pytest.mark.parametrize("target_kl", [None, 1e9], ids=["flat", "one optimizer per member"])
def test_scaled_utilities_are_those_that_held_the_weights_back(target_kl):
    settings = {"sigma": 0.0, "weight_decay": 0.0}
    learner = make_learner(
        config(opt="upgd", opt_kwargs=settings, target_kl=target_kl, **ONE_STEP), [1, 2]
    )
    before = learner.networks.parameters.data.clone()
    found = values_of(learner.advance().inspection.table, member=1)
    memory = learner.optimizer.describe()
    views = learner.networks.parameters.named_views(before)
    for name, then in views.items():
        moved = (then - learner.networks.parameters.views[name]).double()
        expected = 2 * 3e-4 * memory["directions"][name] * (1 - memory["scaled_utilities"][name])
        torch.testing.assert_close(moved, expected.double(), rtol=1e-2, atol=1e-7)
    scaled = memory["scaled_utilities"]["critic.layer_1.weight"][1].double()
    assert found["critic", "layer_1", "protected_fraction"] == float((scaled > 0.6).double().mean())
    utility = memory["utilities"]["critic.layer_1.weight"][1].double()
    assert found["critic", "layer_1", "utility_max"] == pytest.approx(float(utility.max()))


def test_each_measurement_has_a_cadence_of_its_own_from_the_first_iteration_to_the_last():
    cadence = {"statistics_every": 2, "histograms_every": 3, "probe_every": 4}
    population = Population(config(**cadence, tensorboard="full", steps=48 * 8))
    seen = []
    for iteration in range(1, 9):
        inspection = population.advance().inspection
        names = {name for _, _, name in inspection.table.keys} if inspection else set()
        seen.append("srank" in names)
        assert ("trainability" in names) == (iteration in (1, 5, 8))
        assert bool(inspection and inspection.histograms) == (iteration in (1, 4, 7, 8))
    assert seen == [True, False, True, False, True, False, True, True]
    assert Population(config(**ALL_OFF)).advance().inspection is None


def test_a_member_with_non_finite_weights_is_reported_and_harms_no_other():
    learner = make_learner(config(**WITH_PROBE), [1, 2])
    expected = learner.advance().inspection.table
    _views(learner)["actor.layer_1.weight"][0, 0, 0] = float("nan")
    found = learner.inspect().table
    np.testing.assert_array_equal(found.values[1], expected.values[1])
    assert values_of(found)["actor", "layer_1", "nonfinite_count"] > 0
    assert np.isnan(values_of(found)["actor", "layer_1", "effective_rank"])
    assert np.isnan(values_of(found)["actor", "all", "trainability"])
    assert np.isfinite(values_of(found)["critic", "layer_1", "effective_rank"])


def test_histograms_hold_every_entry_between_the_extremes():
    learner = make_learner(config(opt="upgd", **ON), [1])
    histograms = learner.advance().inspection.histograms
    assert {name.split("/")[0] for name in histograms} == {
        "weights",
        "unit_activations",
        "scaled_utilities",
    }
    weight = _views(learner)["critic.layer_2.weight"][0]
    bins = histograms["weights/critic/layer_2"][0]
    assert bins[:, 2].sum() == weight.numel()
    assert bins[0, 0] == pytest.approx(float(weight.min()))
    assert bins[-1, 1] == pytest.approx(float(weight.max()))
    assert histograms["unit_activations/actor/layer_1"][0, :, 2].sum() == 48 * 13


def _views(learner):
    return learner.networks.parameters.views


@pytest.mark.usefixtures("computed_by")
@pytest.mark.parametrize("hidden_sizes", [(13, 7), (64, 64), (1,)], ids=str)
@pytest.mark.parametrize(
    "changes",
    [
        {"opt": "adam"},
        {"opt": "upgd", "activation": "relu", "rollout_steps": 1040, "steps": 1040},
        {"opt": "upgd_local", "activation": "silu", "target_kl": 1e9, "env": "HalfCheetah-v4"},
    ],
    ids=lambda changes: changes["opt"],
)
def test_whatever_is_told_of_a_member_has_the_same_bits_alone(changes, hidden_sizes):
    def reported(**seeds):
        population = Population(config(hidden_sizes=hidden_sizes, **ON, **changes, **seeds))
        report = population.advance()
        population.close()
        return report

    together = reported(seeds=3)
    split = reported(seeds=3, threads=2)
    np.testing.assert_array_equal(split.inspection.table.values, together.inspection.table.values)
    for member in range(3):
        alone = reported(seeds=1, seed=1 + member)
        own = together.inspection.table.of([member])
        np.testing.assert_array_equal(alone.inspection.table.values, own.values)
        for name, bins in alone.inspection.histograms.items():
            np.testing.assert_array_equal(bins[0], together.inspection.histograms[name][member])
        for name, values in alone.scalars.items():
            np.testing.assert_array_equal(values[0], together.scalars[name][member], err_msg=name)


@pytest.mark.parametrize("values", [(1.0, 1.0), (1.0, 1.0 + 2.0**-23), (-3e38, 3e38)])
def test_a_histogram_can_be_as_narrow_or_wide_as_numbers_allow(values):
    learner = make_learner(config(**ON), [1])
    learner.advance()
    with torch.no_grad():
        weight = _views(learner)["critic.layer_2.weight"][0]
        weight.fill_(values[0])
        weight[0, 0] = values[1]
    bins = learner.inspect().histograms["weights/critic/layer_2"][0]
    assert bins[:, 2].sum() == weight.numel()
    assert bins[0, 0] <= min(values)
    assert bins[-1, 1] >= max(values)
