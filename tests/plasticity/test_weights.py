"""Weight and optimizer statistics against NumPy, and the population table against both."""

from itertools import pairwise

import numpy as np
import pytest
import scipy.linalg
import scipy.stats
import torch

from upgd_ppo.agents import plasticity
from upgd_ppo.agents.networks.layers import Layer
from upgd_ppo.agents.plasticity import features as feature_functions
from upgd_ppo.agents.plasticity.early_warnings import EarlyWarningMonitor


def draw(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def effective_rank(matrix):
    sigma = scipy.linalg.svdvals(np.asarray(matrix, dtype=np.float64))
    return np.exp(scipy.stats.entropy(sigma / sigma.sum()))


def test_weight_statistics_equal_numpy():
    weight, initial, previous = draw(3, 6, 4), draw(3, 6, 4, seed=1), draw(3, 6, 4, seed=2)
    gradient = draw(3, 6, 4, seed=3).clamp(min=0)
    measured = plasticity.weight_statistics(weight, initial, previous, gradient)
    w, w0, before, g = (
        t.double().numpy().reshape(3, -1) for t in (weight, initial, previous, gradient)
    )
    expected = {
        "weight_l2": np.linalg.norm(w, axis=1),
        "weight_mean_abs": np.abs(w).mean(1),
        "weight_max_abs": np.abs(w).max(1),
        "distance_from_init": np.linalg.norm(w - w0, axis=1) / np.linalg.norm(w0, axis=1),
        "update_ratio": np.linalg.norm(w - before, axis=1) / np.linalg.norm(w, axis=1),
        "gradient_l2": np.linalg.norm(g, axis=1),
        "gradient_zero_fraction": (g == 0).mean(1),
    }
    assert measured.keys() == expected.keys()
    for name, values in measured.items():
        np.testing.assert_allclose(values.numpy(), expected[name], rtol=1e-12, err_msg=name)


@pytest.mark.parametrize("shape", [(6, 4), (4, 6), (1, 5), (5, 1)])
def test_weight_rank_equals_the_entropy_of_singular_values(shape):
    weight = draw(3, *shape)
    expected = [effective_rank(w) for w in weight]
    np.testing.assert_allclose(plasticity.weight_rank(weight).numpy(), expected, rtol=1e-9)


def test_an_orthogonal_matrix_has_full_weight_rank():
    weight = torch.nn.init.orthogonal_(torch.empty(64, 17))
    assert plasticity.weight_rank(weight).item() == pytest.approx(17)


def test_several_tensors_count_as_one_vector():
    tensors = [draw(3, 6, 4), draw(3, 5, seed=1)]
    others = [draw(3, 6, 4, seed=2), draw(3, 5, seed=3)]
    joined, joined_others = (torch.cat([t.flatten(1) for t in ts], 1) for ts in (tensors, others))
    together = plasticity.weight_statistics(tensors, others, others, others)
    for name, values in plasticity.weight_statistics(
        joined, joined_others, joined_others, joined_others
    ).items():
        torch.testing.assert_close(together[name], values, rtol=1e-12, atol=0)


def test_weights_that_did_not_move_have_distance_zero_even_at_zero():
    zeros = torch.zeros(2, 3, 3)
    assert plasticity.distance_from_init(zeros, zeros).tolist() == [0, 0]
    assert plasticity.update_ratio(zeros, zeros).tolist() == [0, 0]
    assert plasticity.distance_from_init(zeros + 1, zeros).tolist() == [np.inf, np.inf]
    assert plasticity.weight_rank(zeros).tolist() == [0, 0]


def test_weights_of_other_shapes_are_not_compared():
    with pytest.raises(ValueError, match="differ in shape"):
        plasticity.update_ratio(torch.ones(2, 3, 4), torch.ones(2, 4, 3))


@pytest.mark.parametrize("poison", [float("nan"), float("inf")])
def test_non_finite_weights_are_reported_and_contaminate_no_other_member(poison):
    weight, other = draw(4, 6, 5), draw(4, 6, 5, seed=1)
    healthy = plasticity.weight_statistics(weight, other, other, weight)
    healthy["weight_rank"] = plasticity.weight_rank(weight)
    sick = weight.clone()
    sick[1, 2, 3] = poison
    measured = plasticity.weight_statistics(sick, other, other, sick)
    measured["weight_rank"] = plasticity.weight_rank(sick)
    for name, values in measured.items():
        assert values[1].isnan(), name
        assert torch.equal(values[[0, 2, 3]], healthy[name][[0, 2, 3]]), name


# Optimizers


def test_utility_statistics_equal_numpy():
    utilities = [draw(3, 6, 5), draw(3, 7, seed=1)]
    scaled = [torch.sigmoid(u) for u in utilities]
    u, s = (torch.cat([t.flatten(1) for t in ts], 1).double().numpy() for ts in (utilities, scaled))
    expected = {
        "utility_mean": u.mean(1),
        "utility_max": u.max(1),
        "scaled_utility_q25": np.percentile(s, 25, axis=1),
        "scaled_utility_q50": np.median(s, axis=1),
        "scaled_utility_q75": np.percentile(s, 75, axis=1),
        "protected_fraction": (s > 0.6).mean(1),
    }
    measured = plasticity.weight_statistics(utilities=utilities, scaled_utilities=scaled)
    assert measured.keys() == expected.keys()
    for name, values in measured.items():
        np.testing.assert_allclose(values.numpy(), expected[name], rtol=1e-9, err_msg=name)


def test_non_finite_utilities_are_reported_for_their_member_alone():
    utilities = draw(3, 6, 5)
    utilities[1, 0, 0] = float("inf")
    for values in plasticity.weight_statistics(
        utilities=utilities, scaled_utilities=utilities
    ).values():
        assert values.isfinite().tolist() == [True, False, True]


def test_the_direction_of_adam_is_what_torch_adam_moves_by():
    parameter = torch.nn.Parameter(draw(5, 3).double())
    optimizer = torch.optim.Adam([parameter], lr=0.01, betas=(0.9, 0.99), eps=1e-5)
    for seed in range(4):
        before = parameter.detach().clone()
        parameter.grad = draw(5, 3, seed=10 + seed).double()
        optimizer.step()
    state = optimizer.state[parameter]
    direction = plasticity.adam_direction(
        state["exp_avg"], state["exp_avg_sq"], state["step"], (0.9, 0.99), 1e-5
    )
    torch.testing.assert_close(before - parameter.detach(), 0.01 * direction)
    np.testing.assert_allclose(
        plasticity.effective_step(direction), direction.abs().mean(1), rtol=1e-12
    )


def test_members_may_have_taken_different_numbers_of_steps():
    first, second = draw(2, 4), draw(2, 4, seed=1).square()
    together = plasticity.adam_direction(first, second, torch.tensor([3, 70]))
    for member, step in enumerate((3, 70)):
        alone = plasticity.adam_direction(first[member], second[member], step)
        assert torch.equal(together[member], alone)


def test_the_direction_before_the_first_step_is_refused():
    with pytest.raises(ValueError, match="after the first step"):
        plasticity.adam_direction(torch.zeros(2), torch.zeros(2), 0)


def test_plasticity_is_the_share_of_the_loss_that_a_step_removed():
    before = torch.tensor([2.0, 2.0, 2.0, 0.0, 1e-9, float("nan")])
    after = torch.tensor([0.5, 3.0, 0.0, 0.0, 5e-9, 1.0])
    measured = plasticity.plasticity(before, after)
    np.testing.assert_allclose(measured, [0.75, 0, 1, 1, 0.5, np.nan], rtol=1e-6)


def test_plasticity_of_a_negative_loss_is_refused():
    with pytest.raises(ValueError, match="non-negative"):
        plasticity.plasticity(torch.tensor([-1.0]), torch.tensor([1.0]))


# The population


def population(members=3, hidden=(8, 6)):
    sizes = {"actor": (5, *hidden, 2), "critic": (5, *hidden, 1)}
    parameters = {}
    for network, widths in sizes.items():
        for i, (inputs, outputs) in enumerate(pairwise(widths)):
            layer = f"layer_{i + 1}" if i < len(hidden) else "output"
            parameters[f"{network}.{layer}.weight"] = draw(members, outputs, inputs, seed=i)
            parameters[f"{network}.{layer}.bias"] = draw(members, outputs, seed=i + 9)
    parameters["actor.log_std"] = draw(members, 2, seed=77)
    features = {
        network: [torch.tanh(draw(members, 40, units, seed=units)) for units in hidden]
        for network in sizes
    }
    return features, parameters


def statistics(features, activation, parameters, **sources):
    """The table of the networks that `population` makes."""
    layers, by_layer = [], {}
    for network, activations in features.items():
        for number, h in enumerate(activations, start=1):
            place = f"{network}.layer_{number}"
            own = (f"{place}.bias",)
            layer = Layer(
                network, f"layer_{number}", h.shape[2], activation, f"{place}.weight", own
            )
            layers.append(layer)
            by_layer[layer] = h
        output = parameters[f"{network}.output.weight"]
        name, own = f"{network}.output.weight", (f"{network}.output.bias",)
        layers.append(Layer(network, "output", output.shape[1], "identity", name, own))
    return plasticity.population_statistics(layers, by_layer, parameters, **sources)


def shifted(parameters, by):
    return {name: tensor + by for name, tensor in parameters.items()}


def full_table(features, parameters, **overrides):
    sources = {
        "initial": shifted(parameters, 0.5),
        "previous": shifted(parameters, 0.01),
        "gradients": {name: t.clamp(min=0) for name, t in parameters.items()},
        "utilities": parameters,
        "scaled_utilities": {name: torch.sigmoid(t) for name, t in parameters.items()},
        "directions": parameters,
    }
    return statistics(features, "tanh", parameters, **{**sources, **overrides})


def test_the_table_holds_what_each_function_gives():
    features, parameters = population()
    table = full_table(features, parameters)
    column = {key: table.values[:, i] for i, key in enumerate(table.keys)}
    assert table.values.dtype == np.float64
    assert table.values.shape == (3, len(column))

    # 10 per hidden layer; 15 per weight matrix with its rank, 14 per whole network.
    assert len(column) == 2 * (2 * 10 + 3 * 15 + 14)
    initial = shifted(parameters, 0.5)
    for network in ("actor", "critic"):
        for number, h in enumerate(features[network], start=1):
            for name, values in plasticity.feature_statistics(h, "tanh").items():
                np.testing.assert_allclose(
                    column[network, f"layer_{number}", name], values, rtol=1e-12, err_msg=name
                )
        for layer in ("layer_1", "layer_2", "output"):
            name = f"{network}.{layer}.weight"
            expected = {
                "weight_l2": plasticity.weight_l2(parameters[name]),
                "weight_rank": plasticity.weight_rank(parameters[name]),
                "distance_from_init": plasticity.distance_from_init(
                    parameters[name], initial[name]
                ),
                "utility_max": parameters[name].flatten(1).max(1).values.double(),
                "effective_step": plasticity.weight_mean_abs(parameters[name]),
            }
            for statistic, values in expected.items():
                np.testing.assert_allclose(
                    column[network, layer, statistic], values, rtol=1e-12, err_msg=statistic
                )
        whole = [name for name in parameters if name.startswith(network)]
        np.testing.assert_allclose(
            column[network, "all", "update_ratio"],
            plasticity.update_ratio(
                [parameters[name] for name in whole],
                [parameters[name] + 0.01 for name in whole],
            ),
            rtol=1e-12,
        )


def test_what_is_not_given_is_not_reported():
    features, parameters = population()
    table = statistics(features, "tanh", parameters)
    assert not {"update_ratio", "gradient_l2", "utility_mean", "effective_step"} & {
        statistic for _, _, statistic in table.keys
    }
    assert ("actor", "layer_2", "effective_rank") in table.keys


def test_blocks_of_members_make_the_table_of_all():
    features, parameters = population(members=5, hidden=(64, 64))
    whole = full_table(features, parameters)
    blocks = []
    for part in (slice(0, 2), slice(2, 5)):
        block_features = {n: [h[part] for h in hs] for n, hs in features.items()}
        block = {name: tensor[part] for name, tensor in parameters.items()}
        blocks.append(full_table(block_features, block))
    joined = plasticity.StatisticsTable.concatenate(blocks)
    assert joined.keys == whole.keys
    np.testing.assert_allclose(joined.values, whole.values, rtol=1e-9)


def test_a_sick_member_is_nan_and_the_others_are_untouched():
    features, parameters = population()
    healthy = full_table(features, parameters)
    for name in parameters:
        parameters[name] = parameters[name].clone()
        parameters[name][1] = float("nan")
    for layers in features.values():
        for h in layers:
            h[1] = float("nan")
    sick = full_table(features, parameters)
    np.testing.assert_array_equal(sick.values[[0, 2]], healthy.values[[0, 2]])
    counts = [key[2] == "nonfinite_count" for key in sick.keys]
    assert np.isnan(sick.values[1][~np.array(counts)]).all()
    assert (sick.values[1][counts] > 0).all()


def test_features_and_weights_of_one_size_are_decomposed_in_one_call_a_member(monkeypatch):
    features, parameters = population(hidden=(64, 64))
    sizes = []
    decompose = torch.linalg.eigvalsh
    monkeypatch.setattr(
        torch.linalg, "eigvalsh", lambda m: (sizes.append(m.shape[-1]), decompose(m))[1]
    )
    statistics(features, "tanh", parameters)
    members = len(next(iter(parameters.values())))
    assert sorted(sizes) == sorted(members * list(set(sizes)))


def test_tensors_that_require_gradients_are_measured_without_them():
    features, parameters = population()
    parameters = {name: torch.nn.Parameter(tensor) for name, tensor in parameters.items()}
    features = {name: [h.requires_grad_(True) for h in hs] for name, hs in features.items()}
    assert np.isfinite(full_table(features, parameters).values).all()
    statistics = plasticity.feature_statistics(features["actor"][0], "tanh")
    assert not any(value.requires_grad for value in statistics.values())


def test_the_table_in_long_form():
    table = plasticity.StatisticsTable(
        [("actor", "layer_1", "srank"), ("critic", "all", "weight_l2")],
        np.array([[1.0, 2.0], [3.0, 4.0]]),
    )
    rows = list(table.rows(step=[10, 20], members=[5, 7]))
    assert rows == [
        (5, 10, "actor", "layer_1", "srank", 1.0),
        (5, 10, "critic", "all", "weight_l2", 2.0),
        (7, 20, "actor", "layer_1", "srank", 3.0),
        (7, 20, "critic", "all", "weight_l2", 4.0),
    ]
    columns = table.columns(step=[10, 20], members=[5, 7])
    assert list(zip(*(column.tolist() for column in columns.values()), strict=True)) == rows
    assert columns["member"].dtype == np.int32
    assert columns["step"].dtype == np.int64


def test_tables_of_different_statistics_are_not_joined():
    tables = [
        plasticity.StatisticsTable([("actor", "all", name)], np.ones((1, 1))) for name in "ab"
    ]
    with pytest.raises(ValueError, match="different statistics"):
        plasticity.StatisticsTable.concatenate(tables)


def test_the_table_feeds_the_monitor():
    features, parameters = population()
    features["critic"][1][2, :, 2:] = 0
    table = statistics(features, "tanh", parameters)
    monitor = EarlyWarningMonitor(activation="tanh")
    [warning] = monitor.observe(table.rows(step=100))
    assert warning[:5] == (2, 100, "critic", "layer_2", "dormant_fraction")
    assert feature_functions.dormant_fraction(features["critic"][1])[2] == warning.value
