"""The readable UPGD and the fast one take the same steps."""

import pytest
import torch

from upgd_ppo.agents.optimizers import AdaptiveUPGD
from upgd_ppo.agents.optimizers.upgd_reference import AdaptiveUPGDReference


@pytest.mark.parametrize("settings", [{}, {"betas": (0.5, 0.9), "weight_decay": 0.1, "sigma": 0.2}])
def test_the_readable_upgd_takes_the_steps_of_the_fast_one(settings):
    generator = torch.Generator().manual_seed(0)

    def network():
        torch.manual_seed(1)
        return torch.nn.Sequential(
            torch.nn.Linear(5, 16), torch.nn.Tanh(), torch.nn.Linear(16, 3)
        ).double()

    noises: dict[tuple[int, ...], torch.Tensor] = {}
    models = [network(), network()]
    optimizers = [
        cls(model.parameters(), lr=0.01, noise=lambda p: noises[tuple(p.shape)], **settings)
        for cls, model in zip((AdaptiveUPGD, AdaptiveUPGDReference), models, strict=True)
    ]
    for _ in range(50):
        inputs = torch.randn(32, 5, generator=generator, dtype=torch.float64)
        targets = torch.randn(32, 3, generator=generator, dtype=torch.float64)
        noises.update(
            (tuple(p.shape), torch.randn(p.shape, generator=generator, dtype=torch.float64))
            for p in models[0].parameters()
        )
        for model, optimizer in zip(models, optimizers, strict=True):
            optimizer.zero_grad()
            (model(inputs) - targets).square().mean().backward()
            optimizer.step()
    for fast, readable in zip(models[0].parameters(), models[1].parameters(), strict=True):
        torch.testing.assert_close(fast, readable, rtol=0, atol=1e-12)
        assert (fast != 0).any()
