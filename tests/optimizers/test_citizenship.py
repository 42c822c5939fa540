"""What every user of torch.optim relies on."""

import copy
import io

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
    hesscale,
)

CLASSES = [UPGD, AdaptiveUPGD, FeatureUPGD, PGD, ShrinkAndPerturb, L2Init]
NOISY = [UPGD, AdaptiveUPGD, FeatureUPGD, PGD, ShrinkAndPerturb]
DEVICES = ["cpu", *(["cuda"] if torch.cuda.is_available() else [])]


def network(dtype=torch.float32, device="cpu"):
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return nn.Sequential(nn.Linear(4, 9), nn.Tanh(), nn.Linear(9, 1)).to(device, dtype)


def backward(model, seed):
    p = next(model.parameters())
    x = torch.randn(16, 4, generator=torch.Generator().manual_seed(seed)).to(p.device, p.dtype)
    loss = (model(x) - x.sum(1, keepdim=True)).square().mean()
    loss.backward()
    return loss


def steps(model, optimizer, seeds):
    for seed in seeds:
        optimizer.zero_grad()
        backward(model, seed)
        optimizer.step()


def values(model):
    return torch.cat([p.detach().double().flatten() for p in model.parameters()])


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("cls", CLASSES)
def test_trains_in_every_floating_point_type(cls, dtype, device):
    model = network(dtype, device)
    optimizer = cls(model.parameters(), lr=0.01)
    before = backward(model, 0).item()
    steps(model, optimizer, [0] * 60)
    assert all(p.dtype == dtype for p in model.parameters())
    assert backward(model, 0).item() < 0.9 * before


@pytest.mark.parametrize("cls", [UPGD, AdaptiveUPGD])
def test_bfloat16_weights_follow_the_float32_ones(cls):
    """Traces kept in bfloat16 would not: (1 − 0.999)·u is below its resolution."""
    exact, rounded = network(), network(torch.bfloat16)
    for mine, p in zip(rounded.parameters(), exact.parameters(), strict=True):
        p.data.copy_(mine)
        p.grad = torch.full_like(p, 0.5)
        mine.grad = p.grad.bfloat16()
    a, b = cls(exact.parameters(), sigma=0.0), cls(rounded.parameters(), sigma=0.0)
    a.step(), b.step()
    for mine, p in zip(rounded.parameters(), exact.parameters(), strict=True):
        assert b.state[mine]["utility"].dtype == torch.float32
        torch.testing.assert_close(b.state[mine]["utility"], a.state[p]["utility"])
        torch.testing.assert_close(mine, p.bfloat16())


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("cls", CLASSES)
def test_saved_and_resumed_equals_uninterrupted(cls, dtype):
    noisy = cls in NOISY
    generators = [torch.Generator().manual_seed(1) for _ in range(2)]
    whole, cut = network(dtype), network(dtype)
    one, two = (
        cls(m.parameters(), lr=0.01, **({"generator": g} if noisy else {}))
        for m, g in zip((whole, cut), generators, strict=True)
    )
    steps(whole, one, range(6))
    steps(cut, two, range(3))
    buffer = io.BytesIO()
    saved = [cut.state_dict(), two.state_dict(), generators[1].get_state()]
    torch.save(saved, buffer)
    buffer.seek(0)
    weights, state, noise = torch.load(buffer, weights_only=True)
    resumed = network(dtype)
    resumed.load_state_dict(weights)
    generator = torch.Generator()
    generator.set_state(noise)
    three = cls(resumed.parameters(), lr=0.5, **({"generator": generator} if noisy else {}))
    three.load_state_dict(state)
    steps(resumed, three, range(3, 6))
    assert torch.equal(values(whole), values(resumed))


@pytest.mark.parametrize("cls", CLASSES)
def test_loading_a_state_does_not_tie_two_optimizers_together(cls):
    first, second = network(), network()
    one, two = cls(first.parameters(), lr=0.01), cls(second.parameters(), lr=0.01)
    steps(first, one, range(2))
    two.load_state_dict(copy.deepcopy(one.state_dict()))
    before = copy.deepcopy(one.state_dict()["state"])
    steps(second, two, range(3))
    for mine, theirs in zip(before.values(), one.state_dict()["state"].values(), strict=True):
        for name, value in mine.items():
            assert torch.equal(torch.as_tensor(value), torch.as_tensor(theirs[name]))


@pytest.mark.parametrize("cls", NOISY)
def test_a_deep_copy_goes_on_alike(cls):
    model = network()
    optimizer = cls(model.parameters(), lr=0.01, sigma=0.0)
    steps(model, optimizer, range(2))
    model_copy, optimizer_copy = copy.deepcopy((model, optimizer))
    steps(model, optimizer, range(2, 4))
    steps(model_copy, optimizer_copy, range(2, 4))
    assert torch.equal(values(model), values(model_copy))


@pytest.mark.parametrize("cls", CLASSES)
def test_groups_have_settings_of_their_own(cls):
    model = network()
    moving, still = model[0], model[2]
    optimizer = cls([{"params": moving.parameters(), "lr": 0.1}], lr=1.0)
    optimizer.add_param_group({"params": list(still.parameters()), "lr": 0.0})
    before = values(still), values(moving)
    steps(model, optimizer, range(2))
    assert torch.equal(values(still), before[0])
    assert not torch.equal(values(moving), before[1])


@pytest.mark.parametrize("cls", CLASSES)
def test_a_scheduler_sets_the_learning_rate(cls):
    model = network()
    optimizer = cls(model.parameters(), lr=0.1)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda epoch: float(epoch == 0))
    steps(model, optimizer, [0])
    schedule.step()
    before = values(model)
    steps(model, optimizer, [1])
    assert torch.equal(values(model), before)


@pytest.mark.parametrize("cls", CLASSES)
def test_a_closure_is_called_once_with_gradients_enabled(cls):
    model, calls = network(), []
    optimizer = cls(model.parameters(), lr=0.01)

    def closure():
        optimizer.zero_grad()
        calls.append(backward(model, 0))
        return calls[-1]

    assert optimizer.step(closure) is calls[0]
    assert len(calls) == 1


@pytest.mark.parametrize("cls", CLASSES)
def test_step_hooks_are_called(cls):
    model, called = network(), []
    optimizer = cls(model.parameters(), lr=0.01)
    optimizer.register_step_pre_hook(lambda *_: called.append("before"))
    optimizer.register_step_post_hook(lambda *_: called.append("after"))
    steps(model, optimizer, [0])
    assert called == ["before", "after"]


@pytest.mark.parametrize("set_to_none", [True, False])
def test_zero_grad_clears_gradients_and_curvature(set_to_none):
    model = network()
    optimizer = UPGD(model.parameters(), order="second")
    hesscale(model, torch.randn(5, 4), torch.randn(5, 1), nn.MSELoss())
    optimizer.zero_grad(set_to_none)
    for p in model.parameters():
        assert p.curvature is None
        assert p.grad is None if set_to_none else not p.grad.any()


@pytest.mark.parametrize("cls", CLASSES)
def test_a_parameter_without_a_gradient_is_left_alone_and_does_not_age(cls):
    model = network()
    optimizer = cls(model.parameters(), lr=0.01)
    steps(model, optimizer, range(2))
    frozen = [p.detach().clone() for p in model[0].parameters()]
    for p in model[0].parameters():
        p.requires_grad_(False)
    steps(model, optimizer, range(2, 5))
    for p, before in zip(model[0].parameters(), frozen, strict=True):
        assert torch.equal(p, before)
        assert int(optimizer.state[p]["step"]) == 2
    assert all(int(optimizer.state[p]["step"]) == 5 for p in model[2].parameters())
    for p in model[0].parameters():
        p.requires_grad_(True)
    steps(model, optimizer, [5])
    assert all(int(optimizer.state[p]["step"]) == 3 for p in model[0].parameters())


@pytest.mark.parametrize("cls", NOISY)
def test_the_generator_makes_noise_reproducible_and_leaves_the_global_stream_alone(cls):
    state = torch.get_rng_state()
    runs = []
    for _ in range(2):
        model = network()
        generator = torch.Generator().manual_seed(3)
        steps(model, cls(model.parameters(), lr=0.1, sigma=1.0, generator=generator), range(2))
        runs.append(values(model))
    assert torch.equal(*runs)
    assert torch.equal(state, torch.get_rng_state())


@pytest.mark.parametrize("cls", NOISY)
def test_without_a_generator_noise_comes_from_the_global_stream(cls):
    runs = []
    for seed in (0, 0, 1):
        model = network()
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            steps(model, cls(model.parameters(), lr=0.1, sigma=1.0), range(2))
        runs.append(values(model))
    assert torch.equal(runs[0], runs[1])
    assert not torch.equal(runs[0], runs[2])


@pytest.mark.parametrize("cls", NOISY)
def test_maximize_ascends_as_minimising_the_negative_descends(cls):
    down, up = network(), network()
    one = cls(down.parameters(), lr=0.1, sigma=0.0)
    two = cls(up.parameters(), lr=0.1, sigma=0.0, maximize=True)
    for seed in range(3):
        for model in (down, up):
            model.zero_grad()
            backward(model, seed)
        for p in up.parameters():
            p.grad.neg_()
        one.step(), two.step()
    assert torch.equal(values(down), values(up))


@pytest.mark.parametrize("cls", [AdaptiveUPGD, L2Init])
def test_a_compiled_training_step_equals_the_eager_one(cls):
    torch.compiler.reset()
    results = []
    for compiles in (False, True):
        model = network()
        optimizer = cls(
            model.parameters(),
            lr=0.01,
            **({"generator": torch.Generator().manual_seed(0)} if cls in NOISY else {}),
        )
        x = torch.randn(8, 4, generator=torch.Generator().manual_seed(0))

        def train_step(x, model=model, optimizer=optimizer):
            optimizer.zero_grad()
            model(x).square().mean().backward()
            optimizer.step()

        step = torch.compile(train_step, backend="eager") if compiles else train_step
        for _ in range(3):
            step(x)
        results.append(values(model))
    torch.testing.assert_close(*results)


@pytest.mark.parametrize("variant", VARIANTS)
def test_non_contiguous_parameters_are_updated_like_contiguous_ones(variant):
    cls, settings = VARIANTS[variant]
    generator = torch.Generator().manual_seed(0)
    layers = [torch.randn(s, generator=generator) for s in [(6, 4), (6,), (3, 6), (3,)]]
    results = []
    for transposed in (False, True):
        parameters = [
            (p.T.contiguous().T if transposed and p.ndim == 2 else p.clone()).requires_grad_()
            for p in layers
        ]
        source = torch.Generator().manual_seed(1)
        optimizer = cls(parameters, lr=0.1, generator=source, **settings)
        for step in range(2):
            for i, p in enumerate(parameters):
                gradient = torch.Generator().manual_seed(10 * step + i)
                p.grad = torch.randn(p.shape, generator=gradient)
                p.curvature = p.grad.square()
            optimizer.step()
        results.append(parameters)
    for contiguous, strided in zip(*results, strict=True):
        assert torch.equal(contiguous, strided)


def test_a_state_that_the_user_resets_is_forgotten():
    model = network()
    optimizer = AdaptiveUPGD(model.parameters(), sigma=0.0)
    steps(model, optimizer, range(3))
    fresh_model = copy.deepcopy(model)
    optimizer.state.clear()
    fresh = AdaptiveUPGD(fresh_model.parameters(), sigma=0.0)
    steps(model, optimizer, range(3, 5))
    steps(fresh_model, fresh, range(3, 5))
    assert torch.equal(values(model), values(fresh_model))


def test_a_model_may_change_its_type_between_steps():
    model, exact = network(), network()
    optimizer = AdaptiveUPGD(model.parameters(), sigma=0.0)
    reference = AdaptiveUPGD(exact.parameters(), sigma=0.0)
    steps(model, optimizer, range(2))
    steps(exact, reference, range(2))
    model.double()
    steps(model, optimizer, range(2, 4))
    steps(exact, reference, range(2, 4))
    assert next(model.parameters()).dtype == torch.float64
    torch.testing.assert_close(values(model), values(exact), rtol=1e-5, atol=1e-6)


def test_a_trace_that_the_user_edits_in_place_counts():
    model = network()
    optimizer = AdaptiveUPGD(model.parameters(), sigma=0.0)
    steps(model, optimizer, range(2))
    p = model[0].weight
    optimizer.state[p]["exp_avg"].zero_()
    optimizer.state[p]["utility"][0] = 1e9
    assert optimizer.utilities()[p][0].min() > 0.99
    optimizer.zero_grad()
    p.grad = torch.zeros_like(p)
    before = p.detach().clone()
    optimizer.step()
    torch.testing.assert_close(p.detach(), before * (1 - 3e-4 * 1e-3), rtol=1e-7, atol=0)


@pytest.mark.parametrize("cls", [UPGD, AdaptiveUPGD, PGD, ShrinkAndPerturb])
@pytest.mark.parametrize("size", [100, 2**15])
def test_a_gradient_may_have_any_strides(cls, size):
    results = []
    for strided in (False, True):
        p = torch.linspace(-1, 1, size).requires_grad_()
        gradients = [torch.full((size,), 0.5), torch.linspace(1, -1, size)]
        if strided:
            doubled = gradients[1].repeat_interleave(2)
            gradients = [torch.tensor(0.5).expand(size), doubled[::2]]
        optimizer = cls([p], lr=0.1, generator=torch.Generator().manual_seed(0))
        for gradient in gradients:
            p.grad = gradient
            optimizer.step()
        results.append(p.detach())
    assert torch.equal(*results)
