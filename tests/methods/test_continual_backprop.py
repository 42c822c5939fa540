"""Continual backpropagation: the published numbers, and what differs from them by default."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from upgd_ppo.agents.learners.make import make_learner
from upgd_ppo.agents.methods import Networks, make, method
from upgd_ppo.agents.networks.flat_parameters import FlatParameters
from upgd_ppo.agents.networks.stacked_mlp import StackedMLP, mlp_shapes
from upgd_ppo.agents.optimizers.memory import Memory
from upgd_ppo.agents.settings.config import TrainConfig

FIXTURES = Path(__file__).parent.parent / "fixtures"
SIZES = (11, 16, 16, 3)
NAMES = {"net.0": "net.layer_1", "net.2": "net.layer_2", "net.4": "net.output"}


class Replay:
    """The published run: a network under SGD, and after every step the method.

    Args:
        members: how many copies of it learn side by side.
    """

    def __init__(self, name, monkeypatch, members=1, **settings):
        self.golden = np.load(FIXTURES / f"{name}.npz", allow_pickle=False)
        published = json.loads(str(self.golden["settings"]))
        self.events = json.loads(str(self.golden["events"]))
        self.parameters = FlatParameters(
            mlp_shapes("net", SIZES, False), members, dtype=torch.float64
        )
        self.mlp = StackedMLP(self.parameters, "net", SIZES, published["activation"], False)
        for theirs, ours in NAMES.items():
            for kind in ("weight", "bias"):
                self.parameters.views[f"{ours}.{kind}"].copy_(self.tensor(f"init/{theirs}.{kind}"))
        self.networks = Networks(
            self.mlp.hidden_layers, self.parameters.views, Memory({}), "lecun_uniform"
        )
        monkeypatch.setattr(Memory, "clear", lambda *_: None)  # SGD remembers nothing
        self.method = make(
            "continual_backprop",
            {
                "replacement_rate": published["replacement_rate"],
                "maturity": published["maturity_threshold"],
                "decay": published["decay_rate"],
                **settings,
            },
        )
        self.lr = published["lr"]
        self.state = self.method.init(self.networks)
        self.members = members
        self._draws = self._fresh_weights()
        monkeypatch.setattr(method, "fresh_units", self._next_draw)

    def tensor(self, key):
        return torch.from_numpy(self.golden[key])

    def step(self, number):
        """One step; the units that were renewed after it, layer by layer, of the first member."""
        inputs, targets = self.tensor("inputs")[number], self.tensor("targets")[number]
        outputs = self.mlp.forward(inputs.expand(self.members, -1, -1))
        features = dict(
            zip(
                self.mlp.hidden_layers,
                [
                    h.clone()
                    for h in self.mlp.hidden_activations(inputs.expand(self.members, -1, -1))
                ],
                strict=True,
            )
        )
        self.mlp.backward(2 * (outputs - targets) / targets.numel())
        self.parameters.data.sub_(self.lr * self.parameters.gradient)
        ages = {layer: self.state[f"net.{layer.name}.age"].clone() for layer in features}
        self.state = self.method.after_step(
            self.networks, torch.ones(self.members, dtype=torch.bool), features, [None], self.state
        )
        return [
            (self.state[f"net.{layer.name}.age"] < before)[0].nonzero().flatten().tolist()
            for layer, before in ages.items()
        ]

    def _fresh_weights(self):
        at, draws = 0, self.golden["draws"]
        for event in self.events:
            for layer, units in zip(self.mlp.hidden_layers, event["units"], strict=True):
                inputs = self.parameters.views[layer.incoming].shape[2]
                if units:
                    weights = torch.zeros(16, inputs, dtype=torch.float64)
                    count = len(units) * inputs
                    weights[units] = torch.from_numpy(draws[at : at + count].reshape(-1, inputs))
                    at += count
                    yield weights, torch.zeros(16, dtype=torch.float64)

    def _next_draw(self, *_):
        return next(self._draws)


@pytest.mark.parametrize("name", ["cbp_relu", "cbp_tanh"])
def test_the_published_codes_numbers_come_out(name, monkeypatch):
    """It empties the trace of a unit's mean before it is used: `keeps_mean=False`."""
    replay = Replay(name, monkeypatch, keeps_mean=False)
    events = {event["step"]: event["units"] for event in replay.events}
    checked = 0
    for step in range(len(replay.golden["inputs"])):
        assert replay.step(step) == events.get(step, [[], []]), step
        if f"after/{step}/net.0.weight" in replay.golden:
            checked += 1
            for theirs, ours in NAMES.items():
                for kind in ("weight", "bias"):
                    found = replay.parameters.views[f"{ours}.{kind}"][0].numpy()
                    golden = replay.golden[f"after/{step}/{theirs}.{kind}"]
                    np.testing.assert_allclose(found, golden, rtol=0, atol=1e-12)
    assert checked == 12
    for index, layer in enumerate(replay.mlp.hidden_layers):
        for ours, theirs in (
            ("utility", "utility"),
            ("age", "ages"),
            ("mean_output", "mean_activation"),
        ):
            found = replay.state[f"net.{layer.name}.{ours}"][0].numpy()
            np.testing.assert_allclose(
                found, replay.golden[f"{theirs}/{index}"], rtol=0, atol=1e-12
            )


def test_a_unit_that_goes_leaves_its_mean_output_in_the_next_bias(monkeypatch):
    """On the batch of its mean, the next layer gets what it got before."""
    replay = Replay("cbp_tanh", monkeypatch)
    first = replay.events[0]
    for step in range(first["step"]):
        replay.step(step)
    before = {name: view.clone() for name, view in replay.parameters.views.items()}
    inputs, targets = (
        replay.tensor("inputs")[first["step"]],
        replay.tensor("targets")[first["step"]],
    )
    outputs = replay.mlp.forward(inputs[None])
    hidden = [h.clone() for h in replay.mlp.hidden_activations(inputs[None])]
    replay.mlp.backward(2 * (outputs - targets) / targets.numel())
    stepped = (
        before["net.output.bias"] - replay.lr * replay.parameters.gradient_views["net.output.bias"]
    )
    stepped_weight = (
        before["net.output.weight"]
        - replay.lr * replay.parameters.gradient_views["net.output.weight"]
    )
    replay.mlp.forward(inputs[None])
    trace = replay.state["net.layer_2.mean_output"][0].clone()
    [unit] = first["units"][1]
    replay.step(first["step"])
    age = first["step"] + 1
    mean = (0.99 * trace[unit] + 0.01 * hidden[1][0, :, unit].mean()) / (1 - 0.99**age)
    expected = stepped[0] + stepped_weight[0, :, unit] * mean
    torch.testing.assert_close(
        replay.parameters.views["net.output.bias"][0], expected, rtol=0, atol=1e-12
    )
    assert (mean * stepped_weight[0, :, unit]).abs().max() > 1e-4


SMALL = {
    "env": "InvertedPendulum-v4",
    "rollout_steps": 64,
    "minibatches": 4,
    "epochs": 2,
    "hidden_sizes": (8, 8),
    "steps": 128,
    "threads": 1,
}


@pytest.mark.parametrize(
    "utility",
    [
        *("contribution", "zero_contribution", "adaptable_contribution"),
        *("weight", "adaptation", "feature_by_input"),
    ],
)
@pytest.mark.parametrize("opt", ["adam", "upgd"])
def test_a_member_of_a_population_has_the_units_renewed_that_it_has_alone(opt, utility):
    methods = {"continual_backprop": {"replacement_rate": 0.02, "maturity": 3, "utility": utility}}
    config = TrainConfig().with_flat({**SMALL, "opt": opt, "methods": methods})
    together, alone = make_learner(config, [3, 4, 5]), make_learner(config, [4])
    for learner in (together, alone):
        reports = [learner.advance() for _ in range(2)]
    ours, theirs = (learner.state_dict()["parameters"] for learner in (together, alone))
    assert torch.equal(ours[1], theirs[0])
    assert (reports[-1].scalars["units_renewed"] > 0).all()


def test_the_optimizer_keeps_what_it_knew_of_renewed_units_where_it_is_told_to():
    found = {}
    for clears in (True, False):
        methods = {
            "continual_backprop": {
                "replacement_rate": 0.02,
                "maturity": 3,
                "clears_memory": clears,
            }
        }
        config = TrainConfig().with_flat({**SMALL, "opt": "adam", "methods": methods})
        learner = make_learner(config, [1])
        learner.advance()
        found[clears] = learner.optimizer.memory.read("actor.layer_1.weight", "exp_avg")[0]
    zeros = {clears: int((memory == 0).all(1).sum()) for clears, memory in found.items()}
    assert zeros[True] >= zeros[False] == 0


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"replacement_rate": 2}, "replacement_rate must be from 0 to 1"),
        ({"maturity": -1}, "maturity must be a whole number"),
        ({"decay": 1.0}, "decay must be at least 0 and less than 1"),
        ({"utility": "contributions"}, "utility must be one of contribution"),
        ({"replacment_rate": 0.1}, "Perhaps you meant replacement_rate"),
    ],
)
def test_what_is_out_of_range_is_refused(settings, words):
    with pytest.raises(ValueError, match=words):
        make("continual_backprop", settings)
