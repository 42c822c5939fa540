"""What docs/plasticity.md says is so: its code runs, it names every statistic and every limit."""

import dataclasses
import re
from pathlib import Path

import torch

from upgd_ppo.agents import plasticity
from upgd_ppo.agents.plasticity import Thresholds
from upgd_ppo.agents.settings.config import PlasticityConfig, WarningConfig

PAGE = (Path(__file__).parents[2] / "docs" / "plasticity.md").read_text(encoding="utf-8")


def test_the_examples_run(capsys):
    namespace = {}
    for block in re.findall(r"```python\n(.*?)```", PAGE, flags=re.DOTALL):
        exec(block, namespace)
    assert "network layer_1 effective_rank" in capsys.readouterr().out


def test_every_statistic_is_explained():
    weight = torch.ones(1, 3, 3)
    names = {
        *plasticity.feature_statistics(torch.ones(4, 3), "tanh"),
        *plasticity.weight_statistics(weight, weight, weight, weight),
        *("weight_rank", "utility_mean", "utility_max", "protected_fraction", "effective_step"),
        "scaled_utility_q25",
    }
    names |= {"trainability", "std_0"}
    explained = set(re.findall(r"`(\w+)`", PAGE))
    assert names <= explained, names - explained


def test_every_flag_is_named_with_its_default():
    for settings in (PlasticityConfig, WarningConfig):
        for setting in dataclasses.fields(settings):
            assert f"`--{setting.name.replace('_', '-')}`" in PAGE, setting.name
    for setting in dataclasses.fields(PlasticityConfig):
        flag = setting.name.replace("_", "-")
        assert f"| `--{flag}` | {setting.default} |" in PAGE


def test_the_default_limits_are_the_documented_ones():
    tanh, relu = (Thresholds.for_activation(name) for name in ("tanh", "relu"))
    for row in (
        f"| `dormant_fraction` | above {tanh.dormant_fraction} |",
        f"| `effective_rank` | below {tanh.effective_rank:.0%}".replace("%", " %"),
        f"first {tanh.early_measurements} measurements",
        f"above {tanh.saturated_fraction} (tanh, sigmoid) or {relu.saturated_fraction} (ReLU)",
        f"| `update_ratio` | above {tanh.update_ratio}, in hidden layers",
        f"below {tanh.policy_std_below} or above {tanh.policy_std_above:.0f} |",
        f"(`train/approx_kl_mean`) | above {tanh.approximate_kl} |",
        f"by {tanh.margin:.0%}".replace("%", " %"),
    ):
        assert row in PAGE, row
