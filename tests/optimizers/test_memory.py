"""What an optimizer remembers can be read and forgotten weight by weight, however it is made."""

import copy

import numpy as np
import pytest
import torch
from torch import nn

from upgd_ppo.agents.networks.actor_critic import ActorCritic
from upgd_ppo.agents.optimizers import get, names
from upgd_ppo.agents.optimizers.memory import Memory, adam_direction
from upgd_ppo.agents.optimizers.separate import make_optimizer

LAYOUTS = {
    "together": {},
    "one_per_member": {"one_per_member": True},
    "separate": {"separate": True},
}
OTHERS = ["torch.optim.NAdam", "torch.optim.Rprop", "torch.optim.Adagrad", "torch.optim.ASGD"]
MEMBERS, LAYER, UNIT = 3, "actor.layer_1", 2


class Trained:
    """Actors and critics of three members, and their optimizer."""

    def __init__(self, opt, layout, **settings):
        self.networks = ActorCritic([1, 2, 3], 5, 2, hidden_sizes=(7, 4))
        self.parameters = self.networks.parameters
        generators = [torch.Generator().manual_seed(seed) for seed in range(MEMBERS)]
        self.optimizer = make_optimizer(
            opt, self.parameters, 0.01, generators, settings, **LAYOUTS[layout]
        )
        self.gradients = torch.Generator().manual_seed(0)
        self.step(3)

    def step(self, times):
        for _ in range(times):
            self.parameters.gradient.normal_(generator=self.gradients)
            self.optimizer.step()

    def states(self):
        """Every tensor that the optimizers keep, by name: what torch's own dictionaries hold."""
        parts = getattr(self.optimizer, "optimizers", None)
        parts = list(parts.values()) if isinstance(parts, dict) else [self.optimizer]
        found = {}
        for part in parts:
            order = list(part.parameters.views)
            for member, (optimizer, tensors) in enumerate(
                zip(part.optimizers, part._tensors, strict=True)
            ):
                for index, tensor in enumerate(tensors):
                    for kind, value in optimizer.state.get(tensor, {}).items():
                        if not torch.is_tensor(value) or not value.ndim:
                            continue
                        if part.layout == "flat":
                            named = part.parameters.named_views(value)
                        else:
                            named = {order[index]: value}
                        for name, view in named.items():
                            view = view[None] if part.layout == "member" else view
                            found.setdefault((name, kind), {})[member] = view
        return {key: [members[k] for k in sorted(members)] for key, members in found.items()}


def one_unit(parameters, members):
    """Where the weights of a hidden unit lie: name → mask [S, …]."""
    masks = {
        name: torch.zeros_like(view, dtype=torch.bool)
        for name, view in parameters.views.items()
        if name.startswith("actor.layer")
    }
    for member in members:
        masks[f"{LAYER}.weight"][member, UNIT] = True
        masks[f"{LAYER}.bias"][member, UNIT] = True
        masks["actor.layer_2.weight"][member, :, UNIT] = True
    return masks


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("opt", [*names(), *OTHERS])
def test_what_is_read_is_what_the_optimizer_keeps(opt, layout):
    trained = Trained(opt, layout)
    memory = trained.optimizer.memory
    assert memory.names == list(trained.parameters.views)
    kept = trained.states()
    assert {(name, kind) for name in memory.names for kind in memory.kinds(name)} == set(kept)
    for (name, kind), parts in kept.items():
        found = memory.read(name, kind)
        assert found.shape == trained.parameters.views[name].shape
        assert torch.equal(found, torch.cat(parts))


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("opt", [*names(), *OTHERS])
def test_forgetting_equals_zeroing_the_state_by_hand_and_goes_on_so(opt, layout):
    ours, theirs, untouched = (Trained(opt, layout) for _ in range(3))
    masks = one_unit(ours.parameters, [1])
    for trained in (ours, theirs):
        for name, mask in masks.items():
            trained.parameters.views[name].masked_fill_(mask, 0.25)
    for name, mask in masks.items():
        ours.optimizer.memory.clear(name, mask)
    for (name, kind), parts in theirs.states().items():
        if name not in masks:
            continue
        mask = masks[name]
        if (opt, kind, name) == ("feature_upgd", "utility", "actor.layer_2.weight"):
            continue  # the utilities there are those of the units of layer 2
        begins = {"initial": 0.25, "ax": 0.25, "step_size": 0.01}.get(kind, 0.0)
        start = 0
        for part in parts:
            part.masked_fill_(mask[start : start + len(part)], begins)
            start += len(part)
    for key, parts in theirs.states().items():
        assert torch.equal(torch.cat(ours.states()[key]), torch.cat(parts)), key
    for trained in (ours, theirs, untouched):
        trained.step(3)
    assert torch.equal(ours.parameters.data, theirs.parameters.data)
    others = torch.tensor([0, 2])
    assert torch.equal(ours.parameters.data[others], untouched.parameters.data[others])
    if untouched.states():
        assert not torch.equal(ours.parameters.data[1], untouched.parameters.data[1])


@pytest.mark.parametrize("opt", ["adam", "upgd", "sgd", "rmsprop", "l2_init", "feature_upgd"])
def test_a_plain_model_is_a_population_of_one(opt):
    spec = get(opt)
    model = nn.Sequential(nn.Linear(5, 7), nn.Tanh(), nn.Linear(7, 2))
    parameters = dict(model.named_parameters())
    generator = torch.Generator().manual_seed(0)
    optimizer = spec.build_one(list(parameters.values()), 0.01, generator, **spec.resolve({}))
    memory = Memory.of_model([optimizer], parameters)
    assert not any(memory.kinds(name) for name in memory.names)
    memory.clear("0.weight", torch.ones(1, 7, 5, dtype=torch.bool))  # nothing to forget yet
    for _ in range(3):
        optimizer.zero_grad()
        model(torch.randn(16, 5)).square().mean().backward()
        optimizer.step()
    before = copy.deepcopy(optimizer.state_dict()["state"])
    mask = torch.zeros(1, 7, 5, dtype=torch.bool)
    mask[:, 3] = True
    memory.clear("0.weight", mask)
    for kind in memory.kinds("0.weight"):
        now = memory.read("0.weight", kind)
        assert now.shape == (1, 7, 5)
        begins = parameters["0.weight"][None] if kind == "initial" else torch.zeros(1, 7, 5)
        assert torch.equal(now[mask], begins[mask])
        assert torch.equal(now[~mask], before[0][kind][None][~mask])


def test_a_parameter_that_nobody_steps_has_no_memory():
    used, unused = nn.Parameter(torch.ones(2)), nn.Parameter(torch.ones(2))
    memory = Memory.of_model([torch.optim.SGD([used], 0.1)], {"used": used, "unused": unused})
    assert memory.names == ["used"]
    memory.clear("unused", torch.ones(1, 2, dtype=torch.bool))


def test_a_count_of_steps_is_no_weights_memory():
    scalar = nn.Parameter(torch.tensor(1.0))
    optimizer = torch.optim.Adam([scalar])
    scalar.grad = torch.tensor(1.0)
    optimizer.step()
    memory = Memory.of_model([optimizer], {"scalar": scalar})
    assert memory.kinds("scalar") == []
    memory.clear("scalar", torch.ones(1, dtype=torch.bool))
    assert optimizer.state[scalar]["step"] == 1


@pytest.mark.parametrize("layout", LAYOUTS)
def test_what_statistics_read_follows_from_the_optimizers_state(layout):
    trained = Trained("upgd", layout)
    memory = trained.optimizer.memory
    for name, direction in memory.directions().items():
        first, second = (
            memory.read(name, kind).double().numpy() for kind in ("exp_avg", "exp_avg_sq")
        )
        expected = first / (1 - 0.9**3) / (np.sqrt(second / (1 - 0.999**3)) + 1e-5)
        np.testing.assert_allclose(direction.numpy(), expected, rtol=1e-9)
        utility = memory.read(name, "utility").double().numpy() / (1 - 0.999**3)
        np.testing.assert_allclose(memory.utilities()[name].numpy(), utility, rtol=1e-5)
    assert set(memory.scaled_utilities()) == set(memory.names)
    described = trained.optimizer.describe()
    assert {"utilities", "scaled_utilities", "directions"} == set(described)


def test_before_the_first_step_there_is_no_direction():
    with pytest.raises(ValueError, match="at least one step"):
        adam_direction(torch.zeros(2), torch.zeros(2), 0)
