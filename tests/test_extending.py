"""What docs/architecture.md says of adding things is so: an optimizer is a class and one line."""

import numpy as np
import torch

from upgd_ppo import train
from upgd_ppo.agents.optimizers import registry
from upgd_ppo.agents.optimizers.registry import OptimizerSpec
from upgd_ppo.agents.population.population import Population
from upgd_ppo.agents.runs.checkpoint import checkpoints, load_checkpoint
from upgd_ppo.agents.settings.config import TrainConfig

QUICK = {
    "env": "InvertedPendulum-v4",
    "opt": "sign_descent",
    "rollout_steps": 64,
    "minibatches": 2,
    "epochs": 1,
    "hidden_sizes": (8,),
    "steps": 128,
    "threads": 1,
}


class SignDescent(torch.optim.Optimizer):
    """w ← w − α·sign(g)."""

    def __init__(self, params, lr=1e-3):
        super().__init__(params, {"lr": lr})

    @torch.no_grad()
    def step(self, closure=None):
        for group in self.param_groups:
            for parameter in group["params"]:
                parameter.sub_(group["lr"] * parameter.grad.sign())


def test_an_optimizer_is_added_by_its_class_and_one_line(tmp_path, monkeypatch):
    monkeypatch.setitem(
        registry.REGISTRY, "sign_descent", OptimizerSpec("sign_descent", SignDescent)
    )
    flags = [
        word
        for name, value in QUICK.items()
        for word in (
            f"--{name.replace('_', '-')}",
            *(map(str, value) if isinstance(value, tuple) else [str(value)]),
        )
    ]
    out = tmp_path / "run"
    command = [*flags, "--seeds", "3", "--no-anneal", "--learning-rate", "0.001"]
    assert train.main([*command, "--out", str(out)]) == 0
    [newest, *_] = checkpoints(out / "checkpoints")
    state = load_checkpoint(newest)["agent"]

    # It stepped: every weight that moved has moved by a whole number of learning rates.
    moved = (state["parameters"] - state["initial_parameters"]).double().abs() / 0.001
    assert moved.max() >= 1
    assert (moved - moved.round()).abs().max() < 1e-2

    # And law 1 holds for it unasked.
    config = TrainConfig().with_flat({**QUICK, "seeds": 1, "seed": 2, "anneal": False})
    alone = Population(config.with_flat({"learning_rate": 0.001}))
    for _ in range(2):
        alone.advance()
    np.testing.assert_array_equal(
        alone.state_dict()["parameters"][0].numpy(), state["parameters"][1].numpy()
    )
