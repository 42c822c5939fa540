"""Feature statistics against NumPy computations from the definitions and closed forms."""

import numpy as np
import pytest
import scipy.linalg
import scipy.stats
import torch

from upgd_ppo.agents import plasticity as statistics

ACTIVATIONS = {
    "tanh": torch.tanh,
    "sigmoid": torch.sigmoid,
    "relu": torch.relu,
}
RANKS = ("effective_rank", "stable_rank", "srank", "approximate_rank", "feature_rank")


def layer(activation="tanh", shape=(3, 200, 17), seed=0, dtype=torch.float32):
    """Features with correlated units, of which some saturate, some sleep and one is dead."""
    generator = torch.Generator().manual_seed(seed)
    *leading, batch, units = shape
    z = torch.randn(*leading, batch, units, generator=generator, dtype=torch.float64)
    mixing = torch.randn(*leading, units, units, generator=generator, dtype=torch.float64)
    z = z @ (mixing * torch.logspace(0, -4, units, dtype=torch.float64))
    if units > 2:
        z[..., -1] = -5.0
    return ACTIVATIONS[activation](z).to(dtype)


def by_definition(h, activation):
    """Every statistic of one [batch, units] matrix, written from the page with NumPy and SciPy."""
    h = np.asarray(h, dtype=np.float64)
    batch = len(h)
    sigma = scipy.linalg.svdvals(h)
    q = sigma / sigma.sum()
    score = np.abs(h).mean(0) / np.abs(h).mean(0).mean()
    dead = (h == 0).all(0) if activation == "relu" else h.std(0) < 1e-3
    saturated = {
        "tanh": np.abs(h) > 0.99,
        "sigmoid": (h < 0.01) | (h > 0.99),
        "relu": h == 0,
    }[activation]
    rarely = {"rarely_active_fraction": ((h > 0).mean(0) < 0.01).mean()}
    return {
        **(rarely if activation == "relu" else {}),
        "dormant_fraction": (score <= 0.025).mean(),
        "dead_fraction": dead.mean(),
        "saturated_fraction": saturated.mean(),
        "effective_rank": np.exp(scipy.stats.entropy(q)),
        "stable_rank": (sigma**2).sum() / sigma[0] ** 2,
        "srank": 1 + np.argmax(np.cumsum(sigma) >= 0.99 * sigma.sum()),
        "approximate_rank": 1 + np.argmax(np.cumsum(sigma**2) >= 0.99 * (sigma**2).sum()),
        "feature_rank": (sigma / np.sqrt(batch) > 0.01).sum(),
        "feature_norm": np.linalg.norm(h, axis=1).mean(),
        "nonfinite_count": 0,
    }


@pytest.mark.parametrize("activation", ACTIVATIONS)
@pytest.mark.parametrize("shape", [(3, 200, 17), (1, 1024, 64), (2, 9, 33), (2, 5, 1)])
def test_every_statistic_equals_its_definition(activation, shape):
    h = layer(activation, shape)
    measured = statistics.feature_statistics(h, activation)
    expected = [by_definition(one, activation) for one in h]
    assert measured.keys() == expected[0].keys()
    for name, values in measured.items():
        assert values.dtype == torch.float64
        np.testing.assert_allclose(
            values.numpy(), [row[name] for row in expected], rtol=1e-5, err_msg=name
        )


OF_THE_ACTIVATION = ("dead_fraction", "rarely_active_fraction", "saturated_fraction")


@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_each_function_gives_what_the_whole_set_gives(activation):
    h = layer(activation, (2, 3, 50, 7))
    for name, expected in statistics.feature_statistics(h, activation).items():
        if name == "nonfinite_count":
            continue
        arguments = (activation,) if name in OF_THE_ACTIVATION else ()
        measured = getattr(statistics, name)(h, *arguments)
        assert measured.shape == (2, 3)
        assert torch.equal(measured, expected), name


@pytest.mark.parametrize("shape", [(2, 3, 41, 7), (5, 1, 30, 33), (21, 64, 5), (9, 256, 64)])
def test_batched_equals_looped(shape):
    h = layer("tanh", shape)
    batched = statistics.feature_statistics(h, "tanh")
    for index in np.ndindex(*shape[:-2]):
        alone = statistics.feature_statistics(h[index], "tanh")
        for name, value in alone.items():
            # Matrix products of sizes that fill no vector register may differ in the last bit,
            # which the square root of a small eigenvalue magnifies.
            torch.testing.assert_close(value, batched[name][index], rtol=1e-9, atol=0)


def test_batched_equals_looped_bit_for_bit_for_layers_of_64_units():
    h = layer("tanh", (7, 1024, 64))
    batched = statistics.feature_statistics(h, "tanh")
    for member, one in enumerate(h):
        for name, value in statistics.feature_statistics(one, "tanh").items():
            assert torch.equal(value, batched[name][member]), name


def test_singular_values_of_the_gram_matrix_are_accurate_where_a_rank_looks():
    # Spectra from 1 down to 1e-6: far below every threshold, and where float32 features end.
    generator = torch.Generator().manual_seed(0)
    left = torch.linalg.qr(torch.randn(4, 1024, 64, generator=generator, dtype=torch.float64)).Q
    right = torch.linalg.qr(torch.randn(4, 64, 64, generator=generator, dtype=torch.float64)).Q
    spectrum = torch.logspace(0, -6, 64, dtype=torch.float64)
    h = left * spectrum @ right.mT
    expected = np.stack([scipy.linalg.svdvals(one.numpy()) for one in h])
    measured = statistics.spectrum.singular_values(h).numpy()
    np.testing.assert_allclose(measured, expected, atol=1e-9)
    # Relative to itself even a singular value of 1e-4·σ₁ has eight digits.
    np.testing.assert_allclose(measured[:, :43], expected[:, :43], rtol=1e-7)


@pytest.mark.parametrize("rank", [1, 5, 10])
def test_orthogonal_features_of_a_known_rank(rank):
    # r equal singular values: every rank is r, but 99 % of them suffice for srank.
    h = torch.zeros(200, 10, dtype=torch.float64)
    h[range(rank), range(rank)] = 3.0
    assert statistics.effective_rank(h).item() == pytest.approx(rank)
    assert statistics.stable_rank(h).item() == pytest.approx(rank)
    assert statistics.srank(h).item() == rank
    assert statistics.approximate_rank(h).item() == rank
    assert statistics.feature_rank(h).item() == rank


def test_two_singular_values_in_closed_form():
    h = torch.diag(torch.tensor([3.0, 1.0], dtype=torch.float64))
    q = 0.75
    entropy = -q * np.log(q) - (1 - q) * np.log(1 - q)
    assert statistics.effective_rank(h).item() == pytest.approx(np.exp(entropy), rel=1e-12)
    assert statistics.stable_rank(h).item() == pytest.approx(10 / 9, rel=1e-12)
    assert statistics.feature_norm(h).item() == pytest.approx(2.0, rel=1e-12)


def test_srank_needs_exactly_99_of_100_equal_singular_values():
    assert statistics.srank(torch.eye(100, dtype=torch.float64)).item() == 99


def test_srank_stable_rank_and_approximate_rank_are_told_apart():
    h = torch.diag(torch.tensor([1.0, 0.1, 0.1, 0.1], dtype=torch.float64))
    assert statistics.srank(h).item() == 4
    assert statistics.stable_rank(h).item() == pytest.approx(1.03)
    assert statistics.approximate_rank(h).item() == 3


def test_feature_rank_counts_singular_values_over_the_root_of_the_batch():
    # σ/√batch of unit i is the root mean square of that unit, here 0.02 and 0.005.
    h = torch.zeros(400, 2)
    h[::2, 0], h[1::2, 0] = 0.02, -0.02
    h[:, 1] = 0.005
    assert statistics.feature_rank(h).item() == 1
    assert statistics.feature_rank(h, threshold=0.001).item() == 2


def test_a_unit_is_dormant_at_the_threshold_and_below():
    activity = torch.tensor([[1.0, 1.0, 1.0, 0.07, 0.0]], dtype=torch.float64)
    assert statistics.dormant_fraction(activity).item() == pytest.approx(0.2)
    assert statistics.dormant_fraction(activity, threshold=0.2).item() == pytest.approx(0.4)


def test_leaky_units_are_dead_when_they_do_not_vary():
    h = torch.randn(50, 4, generator=torch.Generator().manual_seed(0))
    h[:, 1] = 0.3
    assert statistics.dead_fraction(h, "leaky_relu").item() == 0.25
    assert "saturated_fraction" not in statistics.feature_statistics(h, "leaky_relu")


def test_saturation_of_an_activation_without_a_definition_is_refused():
    with pytest.raises(ValueError, match="not defined for 'elu'"):
        statistics.saturated_fraction(torch.ones(3, 3), "elu")


def test_an_unknown_activation_is_answered_with_the_nearest():
    with pytest.raises(ValueError, match="perhaps you meant 'tanh'"):
        statistics.feature_statistics(torch.ones(3, 3), "tahn")


@pytest.mark.parametrize("features", [torch.ones(3), torch.ones(0, 3), torch.ones(3, 3).int()])
def test_features_of_the_wrong_kind_are_refused(features):
    with pytest.raises(ValueError, match=r"\[..., batch, units\]"):
        statistics.effective_rank(features)


def test_more_than_1024_samples_are_thinned_evenly():
    h = layer("tanh", (2, 4096, 5))
    thinned = statistics.feature_statistics(statistics.select_samples(h, 1), "tanh")
    for name, values in statistics.feature_statistics(h, "tanh").items():
        assert torch.equal(values, thinned[name]), name
    for available in (1025, 1500, 4096):
        chosen = statistics.select_samples(torch.arange(available))
        # One of each of 1024 equal stretches.
        assert (chosen * 1024 // available - torch.arange(1024)).abs().max() <= 1
        assert len(chosen.unique()) == 1024


@pytest.mark.parametrize(
    ("steps", "environments"), [*((2048, n) for n in (1, 2, 3, 4, 8)), (512, 8)]
)
def test_thinned_samples_are_of_every_environment_and_time(steps, environments):
    """Samples of several environments alternate, and a stride could be in step with them."""
    environment = torch.arange(environments).repeat(steps)
    time = torch.arange(steps).repeat_interleave(environments)
    counts = statistics.select_samples(environment).bincount(minlength=environments)
    assert counts.min() >= 0.8 * 1024 / environments
    quarters = (statistics.select_samples(time) * 4 // steps).bincount(minlength=4)
    assert quarters.tolist() == [256] * 4


def test_a_unit_that_is_seldom_active_is_not_dead_but_rarely_active():
    h = torch.rand(1000, 4) + 0.1
    h[:, 0] = 0
    h[:, 1] *= torch.arange(1000) < 9
    h[:, 2] *= torch.arange(1000) < 10
    measured = statistics.feature_statistics(h, "relu")
    assert measured["dead_fraction"].item() == 0.25
    assert measured["rarely_active_fraction"].item() == 0.5
    assert "rarely_active_fraction" not in statistics.feature_statistics(h, "tanh")
    with pytest.raises(ValueError, match="not defined for 'tanh'"):
        statistics.rarely_active_fraction(h, "tanh")


# Degenerate layers


def test_an_all_zero_layer_has_no_rank_and_is_wholly_dormant():
    measured = statistics.feature_statistics(torch.zeros(2, 30, 4), "relu")
    shares = ("dormant", "dead", "saturated", "rarely_active")
    expected = {f"{share}_fraction": 1 for share in shares}
    for name, values in measured.items():
        assert values.tolist() == [expected.get(name, 0)] * 2, name


def test_a_constant_layer_has_rank_one_and_is_dead_but_not_dormant():
    measured = statistics.feature_statistics(torch.full((30, 4), 0.5), "tanh")
    for name in RANKS:
        assert measured[name].item() == pytest.approx(1), name
    assert measured["dead_fraction"].item() == 1
    assert measured["dormant_fraction"].item() == 0
    assert measured["feature_norm"].item() == pytest.approx(1)


def test_one_unit_and_one_sample():
    for shape in ((30, 1), (1, 4), (1, 1)):
        measured = statistics.feature_statistics(torch.full(shape, 0.5), "tanh")
        assert all(measured[name].item() == pytest.approx(1) for name in RANKS)
        assert all(value.isfinite() for value in measured.values())


def test_fewer_samples_than_units_bound_the_rank():
    h = torch.randn(8, 32, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    measured = statistics.feature_statistics(h, "tanh")
    assert measured["feature_rank"].item() == 8
    assert 1 < measured["effective_rank"].item() <= 8


@pytest.mark.parametrize("poison", [float("nan"), float("inf"), float("-inf")])
@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_non_finite_features_are_reported_and_contaminate_no_other_member(poison, activation):
    h = layer(activation, (5, 60, 7))
    healthy = statistics.feature_statistics(h, activation)
    sick = h.clone()
    sick[2, 3, 4] = sick[2, 50, 0] = poison
    measured = statistics.feature_statistics(sick, activation)
    others = [0, 1, 3, 4]
    for name, values in measured.items():
        assert torch.equal(values[others], healthy[name][others]), name
        if name == "nonfinite_count":
            assert values[2].item() == 2
        else:
            assert values[2].isnan(), name


def test_huge_and_tiny_float32_features_are_measured():
    h = layer("tanh", (1, 100, 6))
    for scale in (1e30, 1e-30):
        for name in ("effective_rank", "stable_rank", "srank", "approximate_rank"):
            function = getattr(statistics, name)
            assert function(h * scale).item() == pytest.approx(function(h).item(), rel=1e-5)


# Planted faults


def healthy_relu_layer():
    generator = torch.Generator().manual_seed(3)
    inputs = torch.randn(512, 12, generator=generator)
    weight = torch.nn.init.orthogonal_(torch.empty(12, 12), 2**0.5, generator=generator)
    return inputs, weight


def test_a_unit_whose_weights_are_zero_is_reported_as_dead_and_dormant():
    inputs, weight = healthy_relu_layer()
    before = statistics.feature_statistics(torch.relu(inputs @ weight.T), "relu")
    weight[5] = 0
    after = statistics.feature_statistics(torch.relu(inputs @ weight.T), "relu")
    assert before["dead_fraction"].item() == before["dormant_fraction"].item() == 0
    assert after["dead_fraction"].item() == after["dormant_fraction"].item() == 1 / 12
    assert before["feature_rank"].item() == 12
    assert after["feature_rank"].item() == 11


def test_a_saturated_unit_is_reported_as_saturated_and_dead_but_not_dormant():
    inputs, weight = healthy_relu_layer()
    bias = torch.zeros(12)
    bias[2] = 50.0
    measured = statistics.feature_statistics(torch.tanh(inputs @ (0.2 * weight).T + bias), "tanh")
    assert measured["saturated_fraction"].item() == pytest.approx(1 / 12)
    assert measured["dead_fraction"].item() == 1 / 12
    assert measured["dormant_fraction"].item() == 0


def test_two_duplicate_units_cost_one_rank_and_nothing_else():
    inputs, weight = healthy_relu_layer()
    weight[7] = weight[3]
    measured = statistics.feature_statistics(torch.relu(inputs @ weight.T), "relu")
    assert measured["feature_rank"].item() == 11
    assert measured["dead_fraction"].item() == measured["dormant_fraction"].item() == 0


def test_a_rank_one_layer_has_rank_one_by_every_measure():
    inputs, weight = healthy_relu_layer()
    direction = torch.linspace(0.5, 1.5, 12)
    h = torch.relu(inputs @ weight[0])[:, None] * direction
    measured = statistics.feature_statistics(h, "relu")
    for name in RANKS:
        assert measured[name].item() == pytest.approx(1, abs=1e-6), name
