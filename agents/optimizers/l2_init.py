"""Adam with weight decay toward the initial weights."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any

import torch

from upgd_ppo.agents.optimizers.checks import check_number


class L2Init(torch.optim.Adam):
    r"""Adam that is drawn toward where it started: w ← w − α·λ·(w − w₀) before each Adam step.

    The decoupled form of L2 Init (Kumar et al., 2023). w₀ is what a parameter holds when it is
    first stepped; it is kept in `optimizer.state[p]["initial"]`.

    Args:
        params: parameters or parameter groups.
        lr: α.
        strength: λ ≥ 0.
        betas, eps, fused: see `torch.optim.Adam`.

    Raises:
        ValueError: if a setting is out of range.
    """

    def __init__(
        self,
        params: Any,
        lr: float = 3e-4,
        strength: float = 1e-2,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-5,
        fused: bool | None = None,
    ) -> None:
        check_number("strength", strength)
        super().__init__(params, lr=lr, betas=betas, eps=eps, fused=fused)
        self.defaults["strength"] = strength
        for group in self.param_groups:
            group.setdefault("strength", strength)

    @torch.no_grad()
    @torch.compiler.disable
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """Pull toward the initial weights, then one step of Adam."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        initial = {}
        for group in self.param_groups:
            for p in group["params"]:
                if p.grad is None:
                    continue
                if "initial" in self.state[p]:
                    pull = (p - self.state[p]["initial"]).mul_(float(group["lr"]))
                    p.sub_(pull.mul_(group["strength"]))
                else:
                    initial[p] = p.clone()
        # Adam's step as it was written: the one that torch wraps would call step hooks twice.
        inspect.unwrap(torch.optim.Adam.step)(self)
        for p, start in initial.items():
            self.state[p]["initial"] = start
        return loss
