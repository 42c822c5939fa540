"""Names, hyper-parameters and what is built from them."""

import pytest
import torch

from upgd_ppo.agents.optimizers import AdaptiveUPGD, L2Init, get, names


def test_upgd_is_what_was_published_for_ppo():
    spec = get("upgd")
    assert spec.optimizer_class is AdaptiveUPGD
    assert spec.layout == "flat"
    published = dict(
        betas=(0.9, 0.999), eps=1e-5, weight_decay=1e-3, beta_utility=0.999, sigma=1e-3
    )
    assert published.items() <= spec.hyperparameters.items()


def test_adam_is_what_ppo_uses():
    adam = get("adam")
    assert adam.optimizer_class is torch.optim.Adam
    assert {"betas": (0.9, 0.999), "eps": 1e-5, "weight_decay": 0.0}.items() <= (
        adam.hyperparameters.items()
    )
    assert get("adam_equal_betas").hyperparameters["betas"] == (0.99, 0.99)


@pytest.mark.parametrize("name", names())
def test_every_name_moves_a_population_and_a_single_member(name):
    spec = get(name)
    settings = spec.resolve({})
    together = torch.ones(4, 64, requires_grad=True)
    alone = torch.ones(8, 8, requires_grad=True)
    generators = [torch.Generator().manual_seed(i) for i in range(4)]
    for optimizer, p in (
        (spec.build([together], 0.1, generators, **settings), together),
        (spec.build_one([alone], 0.1, generators[0], **settings), alone),
    ):
        assert all(group["lr"] == 0.1 for group in optimizer.param_groups)
        p.grad = torch.ones_like(p)
        optimizer.step()
        assert (p < 1).all()


def test_a_dotted_path_names_any_optimizer_one_per_member():
    spec = get("torch.optim.NAdam")
    assert (spec.optimizer_class, spec.layout) == (torch.optim.NAdam, "member")
    settings = spec.resolve({"momentum_decay": "0.1"})
    assert settings == {"momentum_decay": 0.1}
    p = torch.ones(2, 3, requires_grad=True)
    p.grad = torch.ones_like(p)
    spec.build_one([p], 0.1, torch.Generator(), **settings).step()
    assert (p < 1).all()
    with pytest.raises(ValueError, match="build_one for each"):
        spec.build([p], 0.1, [torch.Generator()] * 2)


def test_a_dotted_class_that_takes_a_generator_gets_the_members_own():
    spec = get("upgd_ppo.agents.optimizers.UPGD")
    generator = torch.Generator()
    optimizer = spec.build_one([torch.ones(2)], 0.1, generator, **spec.resolve({}))
    assert optimizer.generator is generator


def test_command_line_values_are_read():
    settings = get("upgd").resolve(
        {"sigma": "1e-2", "weight_decay": "0", "betas": "0.9,0.99", "protecting": "False"}
    )
    assert settings == {
        "sigma": 0.01,
        "weight_decay": 0,
        "betas": (0.9, 0.99),
        "protecting": False,
    }
    assert get("upgd").resolve({"noise": "cauchy", "noise_clip": "none"}) == {
        "noise": "cauchy",
        "noise_clip": None,
    }


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("upgdd", "no optimizer 'upgdd'. Perhaps you meant upgd"),
        ("Adam", "Perhaps you meant adam"),
        ("zzz", "Registered are adam, "),
        ("torch.optim.Nadam", "no torch.optim.Optimizer class 'Nadam'. Perhaps you meant NAdam"),
        ("torch.nn.Linear", "no torch.optim.Optimizer class 'Linear'"),
        ("nowhere.at_all.Opt", "needs the module 'nowhere.at_all'"),
        ("UPGD", "no optimizer 'UPGD'. Perhaps you meant upgd"),
        ("torch.optim.LBFGS", "needs a closure"),
    ],
)
def test_unknown_names_are_refused_with_the_nearest(name, message):
    with pytest.raises(ValueError, match=message):
        get(name)


@pytest.mark.parametrize(
    ("name", "settings", "message"),
    [
        ("upgd", {"sigm": 1}, "no hyper-parameter 'sigm'. Perhaps you meant sigma.*It has beta_"),
        ("upgd", {"sigma": "-1"}, "refuses sigma='-1': sigma must be"),
        ("upgd", {"sigma": "big"}, "refuses sigma='big'"),
        ("upgd", {"lr": 0.1}, "learning rate is a setting of its own"),
        ("upgd", {"members": True}, "no hyper-parameter 'members'"),
        ("upgd", {"order": "second"}, "need curvature"),
        ("adam", {"betas": "0.9,1.5"}, r"refuses betas='0.9,1.5': Invalid beta"),
        ("adam", {"eps": "abc"}, "refuses eps='abc'"),
        ("sgd", {"sigma": 1}, "'sgd' has no hyper-parameter 'sigma'"),
    ],
)
def test_bad_hyper_parameters_are_refused(name, settings, message):
    with pytest.raises(ValueError, match=message):
        get(name).resolve(settings)


def test_l2_init_pulls_toward_the_initial_weights():
    p = torch.tensor([1.0, -2.0], requires_grad=True)
    optimizer = L2Init([p], lr=0.1, strength=0.5)
    p.grad = torch.ones(2)
    optimizer.step()
    with torch.no_grad():
        p.add_(10.0)
    before = p.detach().clone()
    adam = torch.optim.Adam([q := before.clone().requires_grad_()], lr=0.1, eps=1e-5)
    q.grad = torch.ones(2)
    adam.step()
    adam.zero_grad()
    optimizer.step()
    pulled = before - 0.1 * 0.5 * (before - torch.tensor([1.0, -2.0]))
    # Under a constant gradient every Adam step is the same: −α·g/(|g| + eps).
    torch.testing.assert_close(p.detach(), pulled + (q.detach() - before), rtol=1e-5, atol=1e-5)
