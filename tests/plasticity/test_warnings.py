"""Early warnings: once per crossing, again only after a recovery."""

import json
import math

import pytest

from upgd_ppo.agents.plasticity import EarlyWarningMonitor, Row


def watch(monitor, values, statistic="dormant_fraction", layer="layer_1", network="actor"):
    """The indices of the values that raised a warning."""
    return [
        step
        for step, value in enumerate(values)
        if monitor.observe([Row(0, step, network, layer, statistic, value)])
    ]


def test_a_crossing_is_told_once_and_again_only_after_a_recovery():
    monitor = EarlyWarningMonitor({"warn_dormant_fraction": 0.3}, margin=0.2)
    values = [0.1, 0.31, 0.29, 0.31, 0.5, 0.25, 0.31, 0.2, 0.35]
    assert watch(monitor, values) == [1, 8]


def test_a_value_at_the_limit_is_no_crossing():
    assert watch(EarlyWarningMonitor({"warn_dormant_fraction": 0.3}), [0.3]) == []


def test_the_message_names_member_network_layer_statistic_and_step():
    monitor = EarlyWarningMonitor({"warn_dormant_fraction": 0.3})
    [warning] = monitor.observe([Row(3, 4096, "critic", "layer_2", "dormant_fraction", 0.5)])
    assert warning[:6] == (3, 4096, "critic", "layer_2", "dormant_fraction", 0.5)
    assert warning.message == (
        "member 3, step 4096: critic layer_2 dormant_fraction is 0.5, above 0.3: "
        "units are falling silent"
    )


def test_rank_is_judged_by_its_early_value():
    monitor = EarlyWarningMonitor({"warn_rank_fraction": 0.4}, early_measurements=2)
    assert watch(monitor, [30, 50, 20, 16, 15, 10, 18, 15, 20, 15], "effective_rank") == [4, 9]


def test_the_message_of_a_rank_says_how_far_it_fell():
    monitor = EarlyWarningMonitor(early_measurements=1)
    rows = [Row(0, step, "actor", "layer_1", "effective_rank", 40.0 / 4**step) for step in (0, 1)]
    [warning] = monitor.observe(rows)
    assert "fell to 25% of its early value, below 40%" in warning.message


@pytest.mark.parametrize(
    ("statistic", "healthy", "sick"),
    [
        ("saturated_fraction", 0.6, 0.95),
        ("update_ratio", 0.1, 0.7),
        ("approx_kl", 0.01, 0.5),
        ("std", 0.5, 0.01),
        ("std", 0.5, 7.0),
        ("std_2", 0.5, 7.0),
    ],
)
def test_every_default_threshold_is_watched(statistic, healthy, sick):
    monitor = EarlyWarningMonitor()
    assert watch(monitor, [healthy, sick, sick, healthy, sick], statistic) == [1, 4]


def test_an_output_layer_that_starts_near_zero_may_move_by_its_own_norm():
    assert watch(EarlyWarningMonitor(), [0.98, 0.4], "update_ratio", layer="output") == []
    assert watch(EarlyWarningMonitor(), [0.98, 0.4], "update_ratio", layer="all") == [0]


def test_saturation_is_judged_as_fits_the_nonlinearity():
    tanh = EarlyWarningMonitor(activation="tanh")
    relu = EarlyWarningMonitor(activation="relu")
    assert watch(tanh, [0.6], "saturated_fraction") == [0]
    assert watch(relu, [0.6], "saturated_fraction") == []


def test_a_threshold_of_none_is_not_watched():
    monitor = EarlyWarningMonitor({"warn_dormant_fraction": None})
    assert watch(monitor, [1.0]) == []
    assert "dormant_fraction" not in monitor.statistics


def test_members_and_layers_are_watched_apart():
    monitor = EarlyWarningMonitor()
    rows = [
        Row(member, 0, network, layer, "dormant_fraction", 0.9)
        for member in (0, 1)
        for network in ("actor", "critic")
        for layer in ("layer_1", "layer_2")
    ]
    assert len(monitor.observe(rows)) == 8
    assert monitor.observe(rows) == []


def test_unwatched_statistics_are_ignored():
    assert watch(EarlyWarningMonitor(), [math.nan, 1e9], "weight_l2") == []


def test_a_watched_value_that_is_not_finite_is_told_once():
    monitor = EarlyWarningMonitor()
    assert watch(monitor, [0.1, math.nan, math.nan, math.inf, 0.1, math.nan]) == [1, 5]
    assert watch(monitor, [1.0, math.nan], "std") == [1]


def test_a_monitor_continues_from_its_state():
    values = [30, 50, 20, 16, 15, 10, 18, 15, 20, 15]
    whole = watch(EarlyWarningMonitor(), values, "effective_rank")
    for cut in range(1, len(values)):
        first = EarlyWarningMonitor()
        before = watch(first, values[:cut], "effective_rank")
        second = EarlyWarningMonitor()
        second.load_state_dict(json.loads(json.dumps(first.state_dict())))
        after = watch(second, values[cut:], "effective_rank")
        assert before + [cut + step for step in after] == whole


@pytest.mark.parametrize("wrong", [{"margin": 1.0}, {"margin": -0.1}, {"early_measurements": 0}])
def test_thresholds_that_make_no_sense_are_refused(wrong):
    with pytest.raises(ValueError, match=r"margin|early"):
        EarlyWarningMonitor(**wrong)


def test_a_limit_that_no_statistic_has_is_refused_with_the_nearest():
    with pytest.raises(ValueError, match=r"'warn_dormant'.*'warn_dormant_fraction'"):
        EarlyWarningMonitor({"warn_dormant": 0.3})
