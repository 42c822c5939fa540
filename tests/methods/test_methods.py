"""What methods do to networks and to what the optimizer remembers of them, and to nothing else."""

from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import pytest
import torch

from upgd_ppo.agents.learners.make import make_learner
from upgd_ppo.agents.methods import Method, Methods, Networks, make, make_methods, names, registry
from upgd_ppo.agents.networks.actor_critic import ActorCritic
from upgd_ppo.agents.optimizers.separate import make_optimizer
from upgd_ppo.agents.population.population import Population
from upgd_ppo.agents.settings.config import TrainConfig

pytestmark = pytest.mark.usefixtures("computed_by")

MEMBERS = 3
ALL = torch.ones(MEMBERS, dtype=torch.bool)
LAYOUTS = {
    "together": {},
    "one_per_member": {"one_per_member": True},
    "separate": {"separate": True},
}


class Arm:
    """Three members' networks, their optimizer after some steps, and one method."""

    def __init__(self, opt="adam", every=1, layout="together", layer_norm=False, init="pytorch"):
        self.networks = ActorCritic(
            [1, 2, 3], 5, 2, hidden_sizes=(7, 4), layer_norm=layer_norm, initialization=init
        )
        self.parameters = self.networks.parameters
        generators = [torch.Generator().manual_seed(seed) for seed in range(MEMBERS)]
        self.optimizer = make_optimizer(
            opt, self.parameters, 0.01, generators, {}, **LAYOUTS[layout]
        )
        self.memory = self.optimizer.memory
        self.acted_on = Networks(
            self.networks.hidden_layers, self.parameters.views, self.memory, init
        )
        settings = {"random_reset": {"every": every}}
        self.methods = make_methods(settings, self.acted_on, [1, 2, 3])
        self.gradients = torch.Generator().manual_seed(0)
        for _ in range(3):
            self.step()

    def step(self):
        self.parameters.gradient.normal_(generator=self.gradients)
        self.optimizer.step()

    def snapshot(self):
        """Copies of all weights and of what is remembered of them, by name and kind."""
        found = {(name, ""): view.clone() for name, view in self.parameters.views.items()}
        for name in self.memory.names:
            for kind in self.memory.kinds(name):
                found[name, kind] = self.memory.read(name, kind).clone()
        return found

    def belongings(self, member, layer, unit):
        """Masks of the weights of a unit: what enters it, what is its own, what leaves it."""
        masks = {name: torch.zeros_like(v).bool() for name, v in self.parameters.views.items()}
        masks[layer.incoming][member, unit] = True
        for name in layer.own:
            masks[name][member, unit] = True
        masks[layer.outgoing][member, :, unit] = True
        return masks


def renewed_units(arm, before, members):
    """(member, layer, unit) of those whose outgoing weights have become zero."""
    return [
        (member, layer, unit)
        for member in members
        for layer in arm.acted_on.layers
        for unit in range(layer.units)
        if not arm.parameters.views[layer.outgoing][member, :, unit].any()
        and before[layer.outgoing, ""][member, :, unit].any()
    ]


@pytest.mark.parametrize("layer_norm", [False, True], ids=["", "layer_norm"])
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("opt", ["adam", "upgd", "upgd_local", "sgd", "torch.optim.NAdam"])
def test_one_unit_of_each_network_begins_anew_and_nothing_else_changes(opt, layout, layer_norm):
    arm = Arm(opt, layout=layout, layer_norm=layer_norm)
    before = arm.snapshot()
    arm.methods.after_step(torch.tensor([True, False, True]))
    after = arm.snapshot()
    units = renewed_units(arm, before, range(MEMBERS))
    assert sorted((member, layer.network) for member, layer, _ in units) == [
        (0, "actor"),
        (0, "critic"),
        (2, "actor"),
        (2, "critic"),
    ]
    touched = {name: torch.zeros_like(v).bool() for name, v in arm.parameters.views.items()}
    for place in units:
        for name, mask in arm.belongings(*place).items():
            touched[name] |= mask
    for (name, kind), value in after.items():
        assert torch.equal(value[~touched[name]], before[name, kind][~touched[name]])
        if kind:
            assert not value[touched[name]].any()
    for member, layer, unit in units:
        weights = arm.parameters.views[layer.incoming][member, unit]
        assert (weights != before[layer.incoming, ""][member, unit]).all()
        bound = 1 / np.sqrt(weights.shape[0])  # of PyTorch's initialisation
        assert weights.abs().max() <= bound
        for name in layer.own:
            own = arm.parameters.views[name][member, unit]
            if name.endswith("norm_weight"):
                assert own == 1
            elif name.endswith("norm_bias"):
                assert own == 0
            else:
                assert 0 < own.abs() <= bound
    assert arm.methods.scalars["units_renewed"].tolist() == [2, 0, 2]


def test_a_renewed_unit_has_no_say_in_the_output():
    arm = Arm("adam")
    inputs = torch.randn(MEMBERS, 6, 5)
    layer = arm.acted_on.layers[-1]
    units = torch.zeros(MEMBERS, layer.units, dtype=torch.bool)
    units[:, 1] = True
    arm.acted_on.renew(layer, units, [torch.Generator().manual_seed(m) for m in range(MEMBERS)])
    output = arm.networks.critic.forward(inputs)
    arm.parameters.views[layer.incoming][:, 1] = 9.0
    assert torch.equal(arm.networks.critic.forward(inputs), output)


def test_a_unit_is_drawn_as_its_network_was():
    arm = Arm("adam", init="orthogonal")
    layer = arm.acted_on.layers[0]
    everything = torch.ones(MEMBERS, layer.units, dtype=torch.bool)
    generators = [torch.Generator().manual_seed(m) for m in range(MEMBERS)]
    arm.acted_on.renew(layer, everything, generators)
    for weights in arm.parameters.views[layer.incoming]:  # [7, 5]: orthogonal columns, gain √2
        torch.testing.assert_close(weights.T @ weights, 2 * torch.eye(5))
    assert not arm.parameters.views["actor.layer_1.bias"].any()


def test_every_unit_of_a_network_has_its_turn_as_often_as_any_other():
    arm = Arm("sgd")
    counts = {(layer, unit): 0 for layer in arm.acted_on.layers for unit in range(layer.units)}
    for _ in range(400):
        before = arm.snapshot()
        for layer in arm.acted_on.layers:
            arm.parameters.views[layer.outgoing].fill_(1.0)
            before[layer.outgoing, ""].fill_(1.0)
        arm.methods.after_step(ALL)
        for _, layer, unit in renewed_units(arm, before, range(MEMBERS)):
            counts[layer, unit] += 1
    assert sum(counts.values()) == 400 * 2 * MEMBERS
    expected = 400 * MEMBERS / 11
    # 22 counts, binomial with standard deviation √(1200 · 1/11 · 10/11) ≈ 10: five of these.
    assert all(abs(count - expected) < 50 for count in counts.values())


def test_a_method_acts_every_so_many_steps_of_the_member():
    arm = Arm("sgd", every=3)
    for step in range(1, 10):
        arm.methods.after_step(torch.tensor([True, step % 2 == 0, False]))
        taken = np.array([step, step // 2, 0])
        assert arm.methods.scalars["units_renewed"].tolist() == (2 * (taken // 3)).tolist()


def test_no_member_draws_for_another():
    together, alone = Arm("sgd"), Arm("sgd")
    for _ in range(4):
        together.methods.after_step(ALL)
        alone.methods.after_step(torch.tensor([False, True, False]))
    assert torch.equal(together.parameters.data[1], alone.parameters.data[1])
    assert not torch.equal(together.parameters.data[0], alone.parameters.data[0])


def test_methods_do_not_change_one_anothers_random_numbers():
    arms = [Arm("sgd") for _ in range(2)]
    for arm, order in zip(arms, (["a", "b"], ["b"]), strict=True):
        own = {name: make("random_reset", {"every": 1}) for name in order}
        arm.methods = Methods(own, arm.acted_on, [1, 2, 3])
        arm.methods.after_step(ALL)
    ours, theirs = [arm.methods.state_dict()["b"]["random_stream"] for arm in arms]
    for mine, other in zip(ours, theirs, strict=True):
        assert torch.equal(mine, other)


# ── In a run ────────────────────────────────────────────────────────────────────────────────────


SMALL = {
    "env": "Hopper-v4",
    "opt": "adam",
    "seeds": 2,
    "rollout_steps": 64,
    "minibatches": 4,
    "epochs": 3,
    "hidden_sizes": (16, 16),
    "steps": 64 * 4,
    "threads": 1,
}


def config(**changes):
    return TrainConfig().with_flat({**SMALL, **changes})


def test_a_halted_member_is_left_alone():
    learner = make_learner(config(methods={"random_reset": {"every": 1}}), [1, 2])
    learner.advance()
    learner.healthy[0] = False
    state = learner.methods.state_dict()["random_reset"]
    learner.advance()
    now = learner.methods.state_dict()["random_reset"]
    assert now["state"]["units_renewed"][0] == state["state"]["units_renewed"][0]
    assert now["state"]["units_renewed"][1] > state["state"]["units_renewed"][1]
    assert torch.equal(now["random_stream"][0], state["random_stream"][0])


def test_a_member_past_its_target_kl_is_left_alone():
    changes = {"methods": {"random_reset": {"every": 1}}, "target_kl": 1e-4, "seeds": 2}
    learner = make_learner(config(**changes), [1, 2])
    report = learner.advance()
    steps = learner.methods.state_dict()["random_reset"]["state"]["steps"]
    assert (steps < 12).all()
    np.testing.assert_array_equal(report.scalars["units_renewed"], 2 * steps)


@dataclass(frozen=True)
class Watching(Method):
    """Keeps the mean output of every hidden unit."""

    wants_features: ClassVar[bool] = True

    def init(self, networks):
        return {}

    def after_step(self, networks, stepped, features, generators, state):
        assert list(features) == list(networks.layers)
        for layer, outputs in features.items():
            assert outputs.shape == (2, 16, layer.units)
        return {layer.incoming: outputs.mean(1) for layer, outputs in features.items()}


def test_a_method_gets_the_features_of_its_minibatch_without_the_kernels(monkeypatch):
    monkeypatch.setitem(registry.REGISTRY, "watching", Watching)
    population = Population(config(methods={"watching": {}}))
    assert population.why_no_kernels == "a method wants features"
    learner = population.learner
    seen = []
    original = learner.optimizer.step

    def step(active=None):
        # The networks as they were for the gradient of the minibatch last seen.
        seen.append([features.clone() for features in learner.networks.features.values()])
        original(active)

    learner.optimizer.step = step
    population.advance()
    kept = learner.methods.state_dict()["watching"]["state"]
    assert len(kept) == 4
    for features, mean in zip(seen[-1], kept.values(), strict=True):
        assert torch.equal(features.mean(1), mean)
        assert features.std() > 0
    plain = Population(config())
    plain.advance()
    assert torch.allclose(
        plain.learner.networks.parameters.data, learner.networks.parameters.data, atol=1e-3
    )


# ── Names ───────────────────────────────────────────────────────────────────────────────────────


def test_a_wrong_name_or_setting_is_answered_with_the_nearest():
    assert "random_reset" in names()
    with pytest.raises(ValueError, match="Perhaps you meant random_reset"):
        make("random_rest")
    with pytest.raises(ValueError, match=r"no setting 'evry'\. Perhaps you meant every"):
        make("random_reset", {"evry": 3})
    for refused in (0, -1, 2.5, "often", True):
        with pytest.raises(ValueError, match="whole number of at least 1"):
            make("random_reset", {"every": refused})
    assert make("random_reset", None).every == 1000
