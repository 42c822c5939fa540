"""Where the published code breaks, and what a user may do wrong."""

import math

import pytest
import torch
from torch import nn
from variants import VARIANTS

from upgd_ppo.agents.optimizers import (
    PGD,
    UPGD,
    AdaptiveUPGD,
    FeatureUPGD,
    L2Init,
    ShrinkAndPerturb,
)

UTILITY_BASED = [UPGD, AdaptiveUPGD, FeatureUPGD]
SHAPES = [(6, 4), (6,), (3, 6), (3,)]


def parameters(seed=0):
    generator = torch.Generator().manual_seed(seed)
    made = [torch.randn(s, generator=generator).requires_grad_() for s in SHAPES]
    for p in made:
        p.grad = torch.randn(p.shape, generator=generator)
        p.curvature = torch.randn(p.shape, generator=generator)
    return made


def one_weight(value, gradient, **settings):
    p = torch.tensor([value], dtype=torch.float64, requires_grad=True)
    p.grad = torch.tensor([gradient], dtype=torch.float64)
    optimizer = UPGD([p], lr=0.1, sigma=0.0, weight_decay=0.0, beta_utility=0.5, **settings)
    optimizer.step()
    return p.item(), optimizer.utilities()[p].item()


@pytest.mark.parametrize("variant", VARIANTS)
def test_all_zero_gradients_leave_finite_weights(variant):
    cls, settings = VARIANTS[variant]
    made = parameters()
    optimizer = cls(made, lr=0.1, **settings)
    for _ in range(3):
        for p in made:
            p.grad, p.curvature = torch.zeros_like(p), torch.zeros_like(p)
        optimizer.step()
    assert all(p.isfinite().all() for p in made)


@pytest.mark.parametrize("cls", [UPGD, AdaptiveUPGD])
def test_utilities_that_are_all_negative_count_as_one_half(cls):
    made = parameters()
    for p in made:
        p.grad = p.detach().clone()
    optimizer = cls(made, sigma=0.0)
    optimizer.step()
    assert all((s == 0.5).all() for s in optimizer.utilities().values())


def test_a_single_weight_of_positive_utility_is_its_own_maximum():
    # û/max ū = 1/(1 − β) = 2 at the first step.
    value, s = one_weight(1.0, -1.0)
    assert s == pytest.approx(1 / (1 + math.exp(-2)))
    assert value == pytest.approx(1 + 0.1 * (1 - s))
    assert one_weight(1.0, -1.0, corrected_denominator=True)[1] == pytest.approx(
        1 / (1 + math.exp(-1))
    )


def test_a_single_weight_of_negative_utility_counts_as_one_half():
    assert one_weight(1.0, 1.0) == (pytest.approx(0.95), 0.5)


@pytest.mark.parametrize("cls", [*UTILITY_BASED, PGD, ShrinkAndPerturb, L2Init])
def test_empty_groups_and_empty_tensors_are_allowed(cls):
    made = [*parameters(), torch.zeros(0, 3, requires_grad=True)]
    made[-1].grad = torch.zeros(0, 3)
    optimizer = cls([{"params": []}, {"params": made}])
    optimizer.step()
    assert all(p.isfinite().all() for p in made)


@pytest.mark.parametrize("bad", [math.inf, -math.inf, math.nan])
@pytest.mark.parametrize(
    "variant", [name for name, (cls, _) in VARIANTS.items() if cls is not FeatureUPGD]
)
def test_a_non_finite_gradient_harms_its_own_weight_alone(variant, bad):
    cls, settings = VARIANTS[variant]
    made = parameters()
    optimizer = cls(made, lr=0.1, **settings)
    for step in range(3):
        for p in made:
            p.grad = torch.randn(p.shape, generator=torch.Generator().manual_seed(step))
            p.curvature = p.grad.square()
        made[0].grad[1, 2] = bad
        optimizer.step()
    harmed = torch.zeros(SHAPES[0], dtype=torch.bool)
    harmed[1, 2] = True
    assert made[0][~harmed].isfinite().all()
    assert all(p.isfinite().all() for p in made[1:])


@pytest.mark.parametrize("bad", [math.inf, -math.inf, math.nan])
@pytest.mark.parametrize("scope", ["global", "local"])
def test_a_non_finite_gradient_harms_no_weight_of_another_unit_either(scope, bad):
    """A unit's utility sums over the weights that leave it: s falls back to ½, never to NaN."""
    made = parameters()
    made[2].grad[1, 2] = bad
    FeatureUPGD(made, scope=scope).step()
    harmed = torch.zeros(SHAPES[2], dtype=torch.bool)
    harmed[1, 2] = True
    assert made[2][~harmed].isfinite().all()
    assert all(made[i].isfinite().all() for i in (0, 1, 3))


@pytest.mark.parametrize("scope", ["global", "local"])
@pytest.mark.parametrize("cls", UTILITY_BASED)
@pytest.mark.parametrize("scale", [1e-30, 1e-20, 1e20, 1e30])
def test_extreme_but_finite_gradients_leave_finite_weights(cls, scope, scale):
    made = parameters()
    optimizer = cls(made, lr=1e-9, sigma=0.0, scope=scope)
    for step in range(4):
        for p in made:
            p.data.mul_(scale if step == 0 else 1)
            p.grad.mul_(-scale if step == 0 else -1)
        optimizer.step()
    assert not any(p.isnan().any() for p in made)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"lr": -1.0}, r"lr must be a number in \[0, inf\), got -1.0"),
        ({"lr": math.nan}, "got nan"),
        ({"sigma": -0.1}, "sigma .* got -0.1"),
        ({"sigma": "much"}, "sigma .* got 'much'"),
        ({"beta_utility": 1.0}, r"beta_utility must be a number in \[0, 1\), got 1.0"),
        ({"weight_decay": -1}, "weight_decay .* got -1"),
        ({"order": "third"}, "order must be one of 'first', 'second', got 'third'"),
        ({"scope": "nearby"}, "scope .* 'global', 'local', got 'nearby'"),
        ({"step_scale": 0}, r"step_scale must be a number in \(0, inf\), got 0"),
        ({"noise_clip": 0.0}, "noise_clip .* got 0.0"),
        ({"noise": "pink"}, "noise must be one of 'normal', .* got 'pink'"),
        ({"protecting": "yes"}, "protecting must be one of True, False, got 'yes'"),
        ({"maximize": None}, "maximize .* got None"),
        ({"betas": 0.9}, "betas must be a pair .* got 0.9"),
        ({"betas": (0.9, 1.0)}, r"betas\[1\] .* got 1.0"),
        ({"eps": 0.0}, "eps .* got 0.0"),
    ],
)
def test_settings_out_of_range_are_refused_at_once_with_the_value(settings, message):
    with pytest.raises(ValueError, match=message):
        AdaptiveUPGD([torch.zeros(2)], **settings)
    if next(iter(settings)) not in ("noise",):
        with pytest.raises(ValueError, match=message):
            AdaptiveUPGD([{"params": [torch.zeros(2)], **settings}])


def test_other_classes_check_their_own_settings():
    with pytest.raises(ValueError, match=r"decay .* got -1"):
        ShrinkAndPerturb([torch.zeros(2)], decay=-1)
    with pytest.raises(ValueError, match=r"sigma .* got -1"):
        PGD([torch.zeros(2)], sigma=-1)
    with pytest.raises(ValueError, match=r"strength .* got -1"):
        L2Init([torch.zeros(2)], strength=-1)
    with pytest.raises(TypeError, match="utility_beta"):
        UPGD([torch.zeros(2)], utility_beta=0.9)


def test_a_group_that_is_refused_is_not_added():
    optimizer = UPGD([torch.zeros(2)])
    with pytest.raises(ValueError, match="sigma"):
        optimizer.add_param_group({"params": [torch.zeros(3)], "sigma": -1})
    with pytest.raises(ValueError, match="complex64"):
        optimizer.add_param_group({"params": [torch.zeros(3, dtype=torch.complex64)]})
    assert len(optimizer.param_groups) == 1


@pytest.mark.parametrize("cls", [*UTILITY_BASED, PGD, ShrinkAndPerturb])
def test_complex_and_integer_parameters_are_refused(cls):
    for dtype in (torch.complex64, torch.int64):
        with pytest.raises(ValueError, match=f"real floating-point type, got {dtype}"):
            cls([torch.zeros(2, dtype=dtype)])


@pytest.mark.parametrize("cls", [*UTILITY_BASED, PGD, ShrinkAndPerturb])
def test_sparse_gradients_are_refused(cls):
    layer = nn.Embedding(5, 3, sparse=True)
    layer(torch.tensor([1, 2])).sum().backward()
    with pytest.raises(ValueError, match=r"dense gradients.*\(5, 3\).*sparse_coo"):
        cls(layer.parameters()).step()


def test_second_order_without_curvature_says_how_to_get_it():
    made = parameters()
    made[1].curvature = None
    with pytest.raises(ValueError, match=r"p\.curvature.*\(6,\) has none.*hesscale"):
        UPGD(made, order="second").step()
    made[1].curvature = torch.zeros(5)
    with pytest.raises(ValueError, match=r"\(6,\) has one of shape \(5,\)"):
        UPGD(made, order="second").step()


def test_noise_of_the_wrong_shape_is_refused():
    with pytest.raises(ValueError, match=r"shape \(6, 4\), got \(1,\)"):
        UPGD(parameters(), noise=lambda p: torch.zeros(1)).step()
