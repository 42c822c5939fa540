"""What is said beside a setting holds wherever the setting is judged."""

import dataclasses
import math
import subprocess
import sys
import typing
from pathlib import Path

import pytest

from upgd_ppo.agents.settings.config import TrainConfig, settings_with
from upgd_ppo.agents.settings.markers import BOOKKEEPING, FIXED, HARMLESS, Range
from upgd_ppo.agents.settings.presets import load_preset
from upgd_ppo.analysis import setting_differences

ROOT = Path(__file__).parent.parent
GROUPS = typing.get_type_hints(TrainConfig).values()
NUMBERS = (int, float, int | None, float | None)


@pytest.mark.parametrize("group", GROUPS, ids=lambda group: group.__name__)
def test_every_number_says_its_range(group):
    for name, kind in typing.get_type_hints(group, include_extras=True).items():
        plain = typing.get_type_hints(group)[name]
        if plain in NUMBERS:
            assert any(isinstance(m, Range) for m in getattr(kind, "__metadata__", ())), name


def test_every_default_is_in_range():
    TrainConfig().check()


@pytest.mark.parametrize(
    ("allowed", "inside", "outside"),
    [
        (Range(0, 1), (0, 0.5, 1, None), (-0.1, 1.1, math.nan)),
        (Range(0, above=True), (0.1, math.inf, None), (0, -1, math.nan)),
        (Range(), (-math.inf, 0.0), (math.nan,)),
    ],
)
def test_a_range_holds_what_it_says(allowed, inside, outside):
    assert all(value in allowed for value in inside)
    assert not any(value in allowed for value in outside)


def test_a_value_out_of_range_is_named_with_its_unit():
    config = TrainConfig().with_flat({"print_every": 0.0})
    with pytest.raises(ValueError, match=r"--print-every is 0 seconds; it must be greater than 0"):
        config.check()


def test_a_setting_is_either_harmless_or_fixed():
    assert not settings_with(HARMLESS) & settings_with(FIXED)


def test_the_report_passes_over_the_settings_that_are_bookkeeping():
    """The analysis knows only what a run directory holds, and so has a list of its own."""
    assert settings_with(BOOKKEEPING) == setting_differences.BOOKKEEPING


def test_the_settings_of_an_older_run_are_read(tmp_path):
    """As it was written before advantages could be normalised in several ways."""
    path = tmp_path / "config.yaml"
    path.write_text(
        "env: Hopper-v4\nopt: adam\nopt_kwargs: {eps: 1.0e-05}\nseeds: 30\nsteps: 20000000\n"
        "normalize_advantages: true\nhidden_sizes: [64, 64]\ntarget_kl: null\nwarn_kl: 0.2\n"
    )
    config = load_preset(path, TrainConfig())
    assert config.run.steps == 20_000_000
    assert config.ppo.normalize_advantages == "minibatch"
    assert config.ppo.hidden_sizes == (64, 64)
    config.check()


def test_settings_load_nothing_that_learns():
    """They are data, so that whoever asks for a default does not wait for PyTorch."""
    program = (
        "import sys, checkout, upgd_ppo.agents.settings.config;"
        "print([name for name in ('torch', 'numpy', 'mujoco') if name in sys.modules])"
    )
    result = subprocess.run(
        [sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, check=True
    )
    assert result.stdout.strip() == "[]"


def test_no_two_groups_share_a_name():
    names = [field.name for group in GROUPS for field in dataclasses.fields(group)]
    assert len(names) == len(set(names))
