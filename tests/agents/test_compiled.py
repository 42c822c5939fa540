"""The compiled kernels: beside NumPy, SciPy and published numbers, and beside the operations."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from upgd_ppo import train
from upgd_ppo.agents.kernels import switch as compiled
from upgd_ppo.agents.kernels.compile import tanh
from upgd_ppo.agents.kernels.noise import fill_with_normals, philox
from upgd_ppo.agents.optimizers import AdaptiveUPGD
from upgd_ppo.agents.population.population import Population
from upgd_ppo.agents.settings.config import TrainConfig

ROOT = Path(__file__).parent.parent.parent
SMALL = {
    "env": "InvertedPendulum-v4",
    "rollout_steps": 128,
    "minibatches": 4,
    "epochs": 2,
    "hidden_sizes": (16, 16),
    "steps": 128 * 4,
    "threads": 1,
    "seeds": 2,
}


def test_tanh_is_tanh_wherever_it_is_asked():
    x = np.concatenate(
        [np.linspace(-12, 12, 100_001), [0.0, np.inf, -np.inf, 1e-30, -1e-6, 3e38]]
    ).astype(np.float32)
    ours = np.array([tanh(value) for value in x])
    exact = np.tanh(x.astype(np.float64))
    np.testing.assert_allclose(ours, exact, rtol=5e-7, atol=0)
    assert np.abs(ours).max() <= 1
    np.testing.assert_array_equal(ours, -np.array([tanh(-value) for value in x]))
    assert np.isnan(tanh(np.float32(np.nan)))


@pytest.mark.parametrize(
    ("counter", "key", "expected"),
    [
        ("0" * 32, "0" * 16, "6627e8d5e169c58dbc57ac4c9b00dbd8"),
        ("f" * 32, "f" * 16, "408f276d41c83b0ea20bc7c66d5451fd"),
        (
            "243f6a8885a308d313198a2e03707344",
            "a4093822299f31d0",
            "d16cfe0994fdcceb5001e42024126ea1",
        ),
    ],
)
def test_philox_gives_the_known_answers_of_random123(counter, key, expected):
    def words(digits):
        return np.array([int(digits[i : i + 8], 16) for i in range(0, len(digits), 8)], np.uint32)

    out = np.empty((4, 9), np.uint32)
    philox(out, words(counter), words(key))
    np.testing.assert_array_equal(out[:, 0], words(expected))
    start = words(counter)
    with np.errstate(over="ignore"):
        start[0] += np.uint32(8)
    later = np.empty((4, 1), np.uint32)
    philox(later, start, words(key))
    np.testing.assert_array_equal(out[:, 8], later[:, 0])


@pytest.mark.parametrize("columns", [1, 3, 64, 1001])
def test_normal_numbers_depend_on_the_key_of_their_row_alone(columns):
    keys = np.array([[1, 2], [3, 4], [1, 2], [1, 3]], np.uint32)
    rows = np.empty((4, columns), np.float32)
    fill_with_normals(rows, keys, np.float32(1))
    np.testing.assert_array_equal(rows[0], rows[2])
    assert not np.isin(rows[1], rows[0]).any()
    assert not np.isin(rows[3], rows[0]).any()
    scaled = np.empty((1, columns), np.float32)
    fill_with_normals(scaled, keys[1:2], np.float32(1e-3))
    np.testing.assert_allclose(scaled[0], rows[1] * 1e-3, rtol=1e-6)


def test_the_tails_of_the_normal_numbers_are_there():
    rows = np.empty((64, 2**17), np.float32)
    fill_with_normals(rows, np.arange(128, dtype=np.uint32).reshape(64, 2), np.float32(1))
    count, total = (np.abs(rows) > 4).sum(), rows.size
    expected = 6.334e-5 * total  # 2·(1 − Φ(4))
    assert abs(count - expected) < 4 * np.sqrt(expected)
    assert 4.9 < np.abs(rows).max() < 6
    assert np.isfinite(rows).all()


@pytest.mark.parametrize("opt", ["adam", "upgd"])
def test_training_by_kernels_and_by_operations_begins_alike(opt, monkeypatch):
    reports = []
    for by in ("kernels", "operations"):
        if by == "operations":
            monkeypatch.setattr(compiled, "kernels", lambda: None)
        population = Population(
            TrainConfig().with_flat(
                {**SMALL, "opt": opt, "opt_kwargs": {} if opt == "adam" else {"sigma": 0.0}}
            )
        )
        reports.append(population.advance())
        assert (population.learner.networks.why_no_kernels is None) == (by == "kernels")
    for name in reports[0].scalars:
        np.testing.assert_allclose(
            reports[0].scalars[name], reports[1].scalars[name], rtol=2e-3, atol=1e-5, err_msg=name
        )


@pytest.mark.parametrize("missing", ["numba", "scipy"])
def test_without_numba_or_scipy_everything_is_computed_by_operations(missing, monkeypatch):
    monkeypatch.setitem(sys.modules, missing, None)  # importing it fails
    for module in ("noise", "ppo", "upgd"):
        monkeypatch.delitem(sys.modules, f"upgd_ppo.agents.kernels.{module}", raising=False)
    compiled.kernels.cache_clear()
    try:
        assert compiled.version() is None
        population = Population(TrainConfig().with_flat({**SMALL, "opt": "upgd"}))
        assert population.learner.networks.why_no_kernels
        assert np.isfinite(population.advance().scalars["value_loss"]).all()
    finally:
        monkeypatch.undo()
        compiled.kernels.cache_clear()


def test_where_the_kernels_do_not_fit_operations_are_used():
    for changes in ({"layer_norm": True}, {"activation": "elu"}):
        population = Population(TrainConfig().with_flat({**SMALL, **changes}))
        assert population.learner.networks.why_no_kernels
        assert np.isfinite(population.advance().scalars["value_loss"]).all()


def test_one_variable_turns_them_off_and_resuming_otherwise_needs_a_flag(
    tmp_path, monkeypatch, capfd
):
    arguments = ["--env", "InvertedPendulum-v4", "--rollout-steps", "64", "--minibatches", "4"]
    arguments += ["--hidden-sizes", "8", "8", "--steps", "256", "--threads", "1"]
    environment = {compiled.SWITCH: "0", "PATH": "/usr/bin:/bin"}
    subprocess.run(
        [sys.executable, ROOT / "train.py", *arguments, "--out", "run"],
        env=environment,
        cwd=tmp_path,
        check=True,
        capture_output=True,
    )
    versions = json.loads((tmp_path / "run/versions.json").read_text())
    assert versions["libraries"]["kernels"] == "none"
    monkeypatch.chdir(tmp_path)
    assert train.main(["--resume", "run", "--steps", "320"]) == 2
    assert f"kernels none → {compiled.version()}" in capfd.readouterr().err


def test_a_gradient_that_is_not_finite_stays_with_its_member():
    population = Population(TrainConfig().with_flat(SMALL))
    population.advance()
    data = population.learner.networks.parameters.data
    alone = Population(TrainConfig().with_flat({**SMALL, "seeds": 1, "seed": 2}))
    alone.advance()
    data[0, 5] = torch.nan
    report = population.advance()
    alone.advance()
    assert [member for member, _ in report.halted] == [0]
    torch.testing.assert_close(data[1], alone.learner.networks.parameters.data[0], rtol=0, atol=0)


@pytest.mark.parametrize("beta", [0.999, 0.99999])
def test_a_long_memory_is_averaged_as_exactly_as_without_the_kernels(beta, computed_by):
    """1 − β is not what single precision makes of 1 minus the rounded β."""
    weights = torch.nn.Parameter(torch.full((1, 64), 0.5))
    optimizer = AdaptiveUPGD(
        [weights],
        betas=(beta, beta),
        beta_utility=beta,
        members=True,
        generator=[torch.Generator()],
    )
    weights.grad = torch.ones_like(weights)
    optimizer.step()
    state = optimizer.state[weights]
    assert state["exp_avg"].mean().item() == pytest.approx(1 - beta, rel=1e-6)
    assert state["exp_avg_sq"].mean().item() == pytest.approx(1 - beta, rel=1e-6)
    assert state["utility"].mean().item() == pytest.approx(-0.5 * (1 - beta), rel=1e-6)


@pytest.mark.parametrize("part", ["_trace_utility", "_gate", "_direction", "_move"])
def test_a_subclass_that_replaces_a_part_of_the_step_is_asked_for_it(part, computed_by):
    calls = []

    def replaced(self, *arguments):
        calls.append(part)
        return getattr(AdaptiveUPGD, part)(self, *arguments)

    variant = type("Variant", (AdaptiveUPGD,), {part: replaced})
    weights = torch.nn.Parameter(torch.ones(1, 64))
    weights.grad = torch.ones_like(weights)
    variant([weights], members=True, generator=[torch.Generator()]).step()
    assert calls == [part]


@pytest.mark.parametrize(
    ("settings", "why"),
    [
        ({}, None),
        ({"protecting": False}, "not protecting"),
        ({"scope": "local"}, "scope local"),
        ({"order": "second"}, "order second"),
        ({"whole_rows": False}, "weights that are no whole rows of one group"),
        ({"replaced": ["_gate"]}, "another _gate"),
    ],
)
def test_the_switch_says_what_keeps_a_step_from_being_compiled(settings, why):
    asked = {"order": "first", "scope": "global", "protecting": True}
    asked |= {"whole_rows": True, "replaced": [], **settings}
    assert compiled.why_not("adaptive_upgd", torch.zeros(1, 4), **asked) == why
    chosen = compiled.choose("adaptive_upgd", torch.zeros(1, 4), **asked)
    assert (chosen is None) == (why is not None)
    double = torch.zeros(1, 4, dtype=torch.float64)
    assert compiled.why_not("adaptive_upgd", double, **asked) == "float64 parameters"
