"""What docs/plasticity.md says is so: its code runs, it names every statistic and every limit."""

import dataclasses
import re
from pathlib import Path

from upgd_ppo.agents.plasticity import CATALOGUE
from upgd_ppo.agents.plasticity.early_warnings import EARLY_MEASUREMENTS, MARGIN
from upgd_ppo.agents.settings.config import PlasticityConfig, WarningConfig

PAGE = (Path(__file__).parents[2] / "docs" / "plasticity.md").read_text(encoding="utf-8")


def test_the_examples_run(capsys):
    namespace = {}
    for block in re.findall(r"```python\n(.*?)```", PAGE, flags=re.DOTALL):
        exec(block, namespace)
    assert "network layer_1 effective_rank" in capsys.readouterr().out


def test_every_statistic_is_explained():
    explained = set(re.findall(r"`(\w+)`", PAGE)) | {
        f"scaled_utility{quartile}" for quartile in re.findall(r"`(_q\d+)`", PAGE)
    }
    tagged = {"std": "std_0", "approx_kl": "approx_kl_mean"}  # under these names in TensorBoard
    for name, statistic in CATALOGUE.items():
        assert tagged.get(name, name) in explained | set(re.findall(r"`train/(\w+)`", PAGE)), name
        for source in statistic.source.split(", "):
            assert source in PAGE, (name, source)


def test_a_flag_has_the_limit_of_the_catalogue():
    limits = {
        limit.name: limit.value for statistic in CATALOGUE.values() for limit in statistic.limits
    }
    assert limits == dataclasses.asdict(WarningConfig())


def test_every_flag_is_named_with_its_default():
    for settings in (PlasticityConfig, WarningConfig):
        for setting in dataclasses.fields(settings):
            assert f"`--{setting.name.replace('_', '-')}`" in PAGE, setting.name
    for setting in dataclasses.fields(PlasticityConfig):
        flag = setting.name.replace("_", "-")
        assert f"| `--{flag}` | {setting.default} |" in PAGE


def test_the_default_limits_are_the_documented_ones():
    limits = WarningConfig()
    for row in (
        f"| `dormant_fraction` | above {limits.warn_dormant_fraction} |",
        f"| `effective_rank` | below {limits.warn_rank_fraction:.0%}".replace("%", " %"),
        f"first {EARLY_MEASUREMENTS} measurements",
        f"above {limits.warn_saturated_fraction} (tanh, sigmoid)"
        f" or {limits.warn_inactive_fraction} (ReLU)",
        f"| `update_ratio` | above {limits.warn_update_ratio}, in hidden layers",
        f"below {limits.warn_std_below} or above {limits.warn_std_above:.0f} |",
        f"(`train/approx_kl_mean`) | above {limits.warn_kl} |",
        f"by {MARGIN:.0%}".replace("%", " %"),
    ):
        assert row in PAGE, row
