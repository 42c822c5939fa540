"""Every optimizer reproduces the numbers that the published reference code gave."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from upgd_ppo.agents.optimizers import PGD, UPGD, AdaptiveUPGD, ShrinkAndPerturb

FIXTURES = Path(__file__).parents[1] / "fixtures"

CASES = {
    "adaptive_upgd": (AdaptiveUPGD, {}),
    "adaptive_upgd_short_memory": (AdaptiveUPGD, {}),
    "pgd": (PGD, {}),
    "shrink_and_perturb": (ShrinkAndPerturb, {}),
    "upgd_published_snippet": (UPGD, {"step_scale": 2.0}),
}
for order in ("first", "second"):
    for scope in ("global", "local"):
        settings = {"order": order, "scope": scope}
        CASES[f"upgd_{order}_order_{scope}"] = (UPGD, settings)
        CASES[f"upgd_{order}_order_{scope}_nonprotecting"] = (
            UPGD,
            {**settings, "protecting": False},
        )


def replay(name: str, dtype: torch.dtype, members: bool = False):
    """Yield (step, parameter name, value after the step, golden value) of a fixture."""
    cls, settings = CASES[name]
    golden = np.load(FIXTURES / f"{name}.npz", allow_pickle=False)
    hyper = json.loads(golden["hyperparameters"].item())
    if "beta1" in hyper:
        hyper["betas"] = (hyper.pop("beta1"), hyper.pop("beta2"))
    names = [key[3:] for key in golden.files if key.startswith("p0/")]

    def tensor(array: np.ndarray) -> torch.Tensor:
        value = torch.tensor(array, dtype=dtype)
        return torch.stack([value, value]) if members else value

    parameters = {key: tensor(golden[f"p0/{key}"]).requires_grad_() for key in names}
    step = 0

    def recorded_noise(parameter):
        (key,) = (key for key in names if parameters[key] is parameter)
        return tensor(golden[f"noise/{key}"][step])

    optimizer = cls(parameters.values(), noise=recorded_noise, members=members, **hyper, **settings)
    steps = golden[f"params/{names[0]}"].shape[0]
    assert steps == 40
    for step in range(steps):
        for key, p in parameters.items():
            p.grad = tensor(golden[f"grad/{key}"][step])
            if f"hess/{key}" in golden.files:
                p.curvature = tensor(golden[f"hess/{key}"][step])
        optimizer.step()
        for key, p in parameters.items():
            yield step, key, p.detach().numpy(), golden[f"params/{key}"][step]


def test_every_optimizer_fixture_is_covered():
    files = {path.stem for path in FIXTURES.glob("*.npz")}
    of_others = ("ppo_", "cbp_", "redo_")
    assert {name for name in files if not any(word in name for word in of_others)} == set(CASES)


@pytest.mark.parametrize("name", CASES)
def test_float64_agrees_to_1e_12_at_every_step(name):
    for step, key, value, golden in replay(name, torch.float64):
        assert np.abs(value - golden).max() <= 1e-12, f"step {step}, {key}"


@pytest.mark.parametrize("name", CASES)
def test_float32_agrees_within_rounding(name):
    # 40 steps, each a few roundings of values of order 1: 40 · 2⁻²⁴ ≈ 2.4e-6.
    for step, key, value, golden in replay(name, torch.float32):
        assert np.abs(value - golden).max() <= 3e-6, f"step {step}, {key}"


@pytest.mark.parametrize("name", CASES)
def test_each_member_of_a_population_agrees_to_1e_12(name):
    for step, key, value, golden in replay(name, torch.float64, members=True):
        assert np.abs(value - golden).max() <= 1e-12, f"step {step}, {key}"
