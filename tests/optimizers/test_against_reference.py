"""The fast steps agree with the slow-and-clear ones over random shapes, groups and settings."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from reference import SETTINGS, Weights, perturbed_step, upgd_step

from upgd_ppo.agents.optimizers import PGD, UPGD, AdaptiveUPGD, ShrinkAndPerturb, tiles

SHARED = ("lr", "sigma", "noise_clip", "maximize")
OF_UPGD = (
    *SHARED,
    "beta_utility",
    "weight_decay",
    "order",
    "scope",
    "protecting",
    "step_scale",
    "corrected_denominator",
)
KINDS = {
    "upgd": (UPGD, OF_UPGD),
    "adaptive_upgd": (AdaptiveUPGD, (*OF_UPGD, "betas", "eps")),
    "pgd": (PGD, SHARED),
    "shrink_and_perturb": (ShrinkAndPerturb, (*SHARED, "decay")),
}
STEP = {
    "upgd": upgd_step,
    "adaptive_upgd": lambda parameters: upgd_step(parameters, adaptive=True),
    "pgd": lambda parameters: perturbed_step(parameters, shrinks=False),
    "shrink_and_perturb": lambda parameters: perturbed_step(parameters, shrinks=True),
}

shapes = st.lists(st.lists(st.integers(1, 6), max_size=3).map(tuple), min_size=1, max_size=4)
group_settings = st.fixed_dictionaries(
    dict(
        lr=st.sampled_from([1e-3, 0.1]),
        beta_utility=st.sampled_from([0.0, 0.5, 0.999]),
        sigma=st.sampled_from([0.0, 0.3]),
        weight_decay=st.sampled_from([0.0, 0.5]),
        order=st.sampled_from(["first", "second"]),
        scope=st.sampled_from(["global", "local"]),
        protecting=st.booleans(),
        step_scale=st.sampled_from([1.0, 2.0]),
        noise_clip=st.sampled_from([None, 0.7]),
        corrected_denominator=st.booleans(),
        maximize=st.booleans(),
        betas=st.sampled_from([(0.9, 0.999), (0.0, 0.5)]),
        eps=st.sampled_from([1e-5, 1e-2]),
        decay=st.sampled_from([0.0, 0.4]),
    )
)


@pytest.mark.parametrize("kind", KINDS)
@settings(max_examples=40, deadline=None)
@given(groups=st.lists(st.tuples(shapes, group_settings), min_size=1, max_size=3), data=st.data())
def test_agrees_with_the_formula(kind, groups, data):
    cls, names = KINDS[kind]
    generator = torch.Generator().manual_seed(data.draw(st.integers(0, 2**31)))

    def random(shape):
        return torch.randn(shape, generator=generator, dtype=torch.float64)

    slow, fast, fast_groups = [], [], []
    for group_shapes, drawn in groups:
        chosen = {name: drawn[name] for name in names}
        parameters = [random(shape).requires_grad_() for shape in group_shapes]
        slow += [Weights(p.detach().clone(), {**SETTINGS, **chosen}) for p in parameters]
        fast += parameters
        fast_groups.append({"params": parameters, **chosen})
    noise = {}
    optimizer = cls(fast_groups, noise=lambda p: noise[p])

    for _ in range(4):
        skipped = data.draw(st.integers(0, len(fast)), label="parameter without a gradient")
        for i, (clear, p) in enumerate(zip(slow, fast, strict=True)):
            clear.gradient = None if i == skipped else random(p.shape)
            clear.curvature, clear.noise = random(p.shape), random(p.shape)
            p.grad, p.curvature, noise[p] = clear.gradient, clear.curvature, clear.noise
        scaled = STEP[kind](slow)
        optimizer.step()
        for i, (clear, p) in enumerate(zip(slow, fast, strict=True)):
            torch.testing.assert_close(p.detach(), clear.value, rtol=1e-9, atol=1e-11)
            if scaled is not None and i in scaled:
                trace = optimizer.state[p]["utility"]
                torch.testing.assert_close(trace, clear.memory["utility"], rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("scope", ["global", "local"])
def test_utilities_are_those_of_the_formula(scope):
    generator = torch.Generator().manual_seed(1)
    fast = [torch.randn(s, generator=generator).requires_grad_() for s in [(4, 3), (4,), ()]]
    chosen = {**SETTINGS, "scope": scope, "sigma": 0.0}
    slow = [Weights(p.detach().clone(), chosen) for p in fast]
    optimizer = UPGD(fast, scope=scope, sigma=0.0, beta_utility=0.9, weight_decay=0.01)
    assert all((s == 0.5).all() for s in optimizer.utilities().values())
    for _ in range(3):
        for clear, p in zip(slow, fast, strict=True):
            clear.gradient = p.grad = torch.randn(p.shape, generator=generator)
            clear.noise = torch.zeros(p.shape)
        scaled = upgd_step(slow)
        optimizer.step()
    optimizer.zero_grad()
    for i, p in enumerate(fast):
        assert optimizer.utilities()[p].shape == p.shape
        torch.testing.assert_close(optimizer.utilities()[p], scaled[i])


@pytest.mark.parametrize("shape", [(tiles.TILE + 17,), (3, tiles.SMALL + 5)])
@pytest.mark.parametrize("cls", [UPGD, AdaptiveUPGD])
def test_tensors_of_many_tiles_agree_with_the_formula(cls, shape):
    generator = torch.Generator().manual_seed(2)
    fast = [torch.randn(s, generator=generator).requires_grad_() for s in [(5, 3), shape, (7,)]]
    chosen = {**SETTINGS, "beta_utility": 0.5, "betas": (0.9, 0.999)}
    slow = [Weights(p.detach().double(), chosen) for p in fast]
    noise = {}
    optimizer = cls(
        fast, lr=0.01, beta_utility=0.5, sigma=0.1, weight_decay=0.01, step_scale=1.0,
        noise=lambda p: noise[p],
    )  # fmt: skip
    for _ in range(3):
        for clear, p in zip(slow, fast, strict=True):
            p.grad = torch.randn(p.shape, generator=generator)
            noise[p] = torch.randn(p.shape, generator=generator)
            clear.gradient, clear.noise = p.grad.double(), noise[p].double()
        upgd_step(slow, adaptive=cls is AdaptiveUPGD)
        optimizer.step()
    for clear, p in zip(slow, fast, strict=True):
        torch.testing.assert_close(p.detach(), clear.value.float(), rtol=1e-5, atol=1e-5)
