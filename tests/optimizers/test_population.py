"""Law 1: a member does not know how many others there are, bit for bit."""

import numpy as np
import pytest
import torch
from variants import VARIANTS

from upgd_ppo.agents.networks.actor_critic import ActorCritic
from upgd_ppo.agents.optimizers import AdaptiveUPGD, get, names, tiles
from upgd_ppo.agents.optimizers.population_optimizer import PopulationOptimizer

MEMBERS = 8
LAYOUTS = {
    "network": [(7, 5), (7,), (3, 7), (3,), (2, 3), (2,), (1,)],
    "flat_odd": [(1001,)],
    "flat_whole_vectors": [(1024,)],
    "scalars_and_one_large": [(), (3, 5), (tiles.SMALL + 64,)],
}


def train(build, members, shapes, steps=2):
    """Parameters after some steps of members with these seeds."""

    def random(kind, step, index, shape):
        def one(member):
            seed = hash((kind, step, index, member)) % 2**31
            return torch.randn(shape, generator=torch.Generator().manual_seed(seed))

        return torch.stack([one(member) for member in members])

    parameters = [random(0, 0, i, s).requires_grad_() for i, s in enumerate(shapes)]
    optimizer = build(parameters, [torch.Generator().manual_seed(m) for m in members])
    for step in range(steps):
        for i, (p, shape) in enumerate(zip(parameters, shapes, strict=True)):
            p.grad, p.curvature = random(1, step, i, shape), random(2, step, i, shape)
        optimizer.step()
    utilities = optimizer.utilities() if hasattr(optimizer, "utilities") else {}
    return [p.detach() for p in parameters] + [utilities[p] for p in parameters if utilities]


def assert_members_alone_equal(build, shapes):
    together = train(build, range(MEMBERS), shapes)
    for member in (0, 7):
        alone = train(build, [member], shapes)
        for whole, single in zip(together, alone, strict=True):
            assert torch.equal(whole[member], single[0])


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("variant", VARIANTS)
def test_a_member_of_eight_equals_the_same_member_alone(variant, layout):
    cls, settings = VARIANTS[variant]
    assert_members_alone_equal(
        lambda parameters, generators: cls(
            parameters, lr=0.1, members=True, generator=generators, **settings
        ),
        LAYOUTS[layout],
    )


@pytest.mark.parametrize("name", names())
def test_law_holds_for_every_registered_name_in_its_layout(name):
    spec = get(name)
    is_flat = spec.layout_for(spec.resolve({})) == "flat"
    shapes = LAYOUTS["flat_whole_vectors" if is_flat else "network"]
    assert_members_alone_equal(
        lambda parameters, generators: spec.build(parameters, 0.1, generators, **spec.resolve({})),
        shapes,
    )


def test_a_population_without_noise_equals_ordinary_models():
    shapes = LAYOUTS["network"]
    together = train(
        lambda p, g: AdaptiveUPGD(p, lr=0.1, sigma=0.0, members=True), range(4), shapes
    )
    for member in range(4):

        def ordinary(parameters, generators):
            own = [p.detach()[0].requires_grad_() for p in parameters]

            class Alone(AdaptiveUPGD):
                def step(self):
                    for mine, p in zip(own, parameters, strict=True):
                        mine.grad = p.grad[0]
                    super().step()

                def utilities(self):
                    return {p: super(Alone, self).utilities()[m][None] for m, p in pairs}

            pairs = list(zip(own, parameters, strict=True))
            return Alone(own, lr=0.1, sigma=0.0)

        alone = train(ordinary, [member], shapes)
        for whole, single in zip(together, alone, strict=True):
            torch.testing.assert_close(whole[member], single[0], rtol=1e-5, atol=1e-6)


def test_a_sick_member_harms_nobody():
    generators = [torch.Generator().manual_seed(i) for i in range(3)]
    healthy, sick = torch.randn(2, 3, 128), None
    sick = healthy.clone()
    results = []
    for poisoned in (False, True):
        p = sick[0].clone().requires_grad_()
        for g in generators:
            g.manual_seed(g.initial_seed())
        optimizer = AdaptiveUPGD([p], members=True, generator=generators)
        for _ in range(3):
            p.grad = sick[1].clone()
            if poisoned:
                p.grad[1] = torch.nan
            optimizer.step()
        results.append(p.detach())
    assert results[1][1].isnan().all()
    for member in (0, 2):
        assert torch.equal(results[0][member], results[1][member])


def test_state_has_the_member_axis_first():
    p, q = torch.randn(5, 3, 2).requires_grad_(), torch.randn(5, 3).requires_grad_()
    p.grad, q.grad = torch.randn(5, 3, 2), torch.randn(5, 3)
    optimizer = AdaptiveUPGD([p, q], members=True, generator=[torch.Generator()] * 5)
    optimizer.step()
    for parameter in (p, q):
        state = optimizer.state_dict()["state"][0 if parameter is p else 1]
        for name in ("utility", "exp_avg", "exp_avg_sq"):
            assert state[name].shape == parameter.shape
        assert state["step"] == 1


def test_members_need_one_generator_each_and_one_common_axis():
    p = torch.zeros(3, 4)
    with pytest.raises(ValueError, match="sequence of generators, one per member"):
        AdaptiveUPGD([p], members=True)
    with pytest.raises(ValueError, match="3 members, 2 generators"):
        AdaptiveUPGD([p], members=True, generator=[torch.Generator()] * 2)
    with pytest.raises(ValueError, match="only with members=True"):
        AdaptiveUPGD([p], generator=[torch.Generator()] * 3)
    with pytest.raises(ValueError, match=r"shapes \(3, 4\) and \(2,\)"):
        AdaptiveUPGD([p, torch.zeros(2)], members=True, sigma=0.0)


def stepped(opt, one_per_member=False, sizes=(5, 2), **settings):
    """Actors and critics of three members, and their optimizer after some steps."""
    networks = ActorCritic([1, 2, 3], *sizes, hidden_sizes=(7, 4))
    generators = [torch.Generator().manual_seed(seed) for seed in range(3)]
    optimizer = PopulationOptimizer(
        opt, networks.parameters, 0.1, generators, settings, one_per_member=one_per_member
    )
    generator = torch.Generator().manual_seed(0)
    for _ in range(3):
        networks.parameters.gradient.normal_(generator=generator)
        optimizer.step()
    return networks.parameters, optimizer


SCOPED = [name for name in names() if "scope" in get(name).hyperparameters]


@pytest.mark.parametrize("one_per_member", [False, True])
@pytest.mark.parametrize("opt", [name for name in SCOPED if name != "feature_upgd"])
def test_a_local_scope_is_each_tensors_last_dimension_whoever_asked_for_it(opt, one_per_member):
    _, optimizer = stepped(opt, one_per_member, scope="local")
    memory = optimizer.describe()
    for name, scaled in memory["scaled_utilities"].items():
        utility = memory["utilities"][name].double().numpy()
        norm = np.linalg.norm(utility, axis=-1, keepdims=True)
        expected = 1 / (1 + np.exp(-utility / norm))
        np.testing.assert_allclose(scaled.numpy(), expected, rtol=1e-5, err_msg=name)


@pytest.mark.parametrize(("settings", "name"), [("local", "upgd_local"), ("global", "upgd")])
@pytest.mark.parametrize("opt", ["upgd", "upgd_local"])
def test_a_name_is_no_more_than_its_settings(opt, settings, name):
    ours, _ = stepped(opt, scope=settings)
    theirs, _ = stepped(name)
    assert torch.equal(ours.data, theirs.data)


@pytest.mark.parametrize("opt", names())
def test_an_optimizer_for_each_member_moves_them_by_the_same_bits(opt):
    # As many actions as observations: the actor's output fits the critic's input.
    together, _ = stepped(opt, sizes=(3, 3))
    apart, optimizer = stepped(opt, one_per_member=True, sizes=(3, 3))
    assert len(optimizer.optimizers) == 3
    assert torch.equal(together.data, apart.data)


@pytest.mark.parametrize("opt", ["adam", "upgd", "upgd_local", "torch.optim.NAdam"])
def test_members_that_are_left_out_neither_move_nor_age(opt):
    parameters, optimizer = stepped(opt, one_per_member=True)
    before = parameters.data.clone()
    memory = optimizer.state_dict()["members"][1]
    optimizer.step(np.array([True, False, True]))
    moved = (parameters.data != before).any(1)
    assert moved.tolist() == [True, False, True]
    for name, state in optimizer.state_dict()["members"][1].items():
        for key, value in state.items():
            assert torch.equal(torch.as_tensor(value), torch.as_tensor(memory[name][key]))


@pytest.mark.parametrize("one_per_member", [False, True])
def test_memory_that_is_laid_out_otherwise_is_refused(one_per_member):
    _, optimizer = stepped("upgd", one_per_member)
    _, other = stepped("upgd", not one_per_member)
    with pytest.raises(ValueError, match="laid out otherwise"):
        optimizer.load_state_dict(other.state_dict())
