"""Adaptive UPGD as the paper writes it: slower than `AdaptiveUPGD`, and easy to read.

Read this one to understand the method. The tests hold the fast one to it.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor


class AdaptiveUPGDReference(torch.optim.Optimizer):
    r"""UPGD (first-order utility, global) on Adam's direction, one operation per formula.

    For every weight w with gradient g, standard normal noise ξ and step t::

        ū ← β_u·ū + (1−β_u)·(−g·w)                    how much the loss would grow without w
        s = sigmoid( ū/(1−β_uᵗ) / max ū )             near 1: useful; ½: of no use
        m ← β₁·m + (1−β₁)·g        v ← β₂·v + (1−β₂)·g²
        w ← w·(1 − α·λ) − 2α·( m̂/(√v̂ + eps) + σ·ξ )·(1 − s)

    A useful weight is protected: it moves little. A useless one moves as under Adam, and the noise
    carries it to where it may become useful.

    Args:
        params: parameters or parameter groups.
        lr: α.
        betas: β₁ and β₂ of Adam's moments.
        eps: added to the root of the second moment.
        weight_decay: λ, decoupled.
        beta_utility: β_u of the utility's trace.
        sigma: σ, the scale of the noise.
        noise: parameter → standard noise of its shape.

    Source: Elsayed & Mahmood (ICLR 2024), Algorithm 1, and its published code for PPO.
    """

    def __init__(
        self,
        params: Any,
        lr: float = 3e-4,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-5,
        weight_decay: float = 1e-3,
        beta_utility: float = 0.999,
        sigma: float = 1e-3,
        noise: Callable[[Tensor], Tensor] = torch.randn_like,
    ) -> None:
        defaults = dict(
            lr=lr,
            betas=betas,
            eps=eps,
            weight_decay=weight_decay,
            beta_utility=beta_utility,
            sigma=sigma,
        )
        super().__init__(params, defaults)
        self.noise = noise

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """Update every parameter that has a gradient."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        parameters = [
            (parameter, group)
            for group in self.param_groups
            for parameter in group["params"]
            if parameter.grad is not None
        ]

        # The utility of every weight, and the largest of all.
        largest = -torch.inf
        for parameter, group in parameters:
            state = self.state[parameter]
            if not state:
                state["step"] = 0
                for trace in ("utility", "exp_avg", "exp_avg_sq"):
                    state[trace] = torch.zeros_like(parameter)
            state["step"] += 1
            utility = -parameter.grad * parameter
            state["utility"].lerp_(utility, 1 - group["beta_utility"])
            largest = max(largest, state["utility"].max().item())

        for parameter, group in parameters:
            state, step = self.state[parameter], self.state[parameter]["step"]

            # Where no weight is of use, none is protected: s = ½.
            corrected = state["utility"] / (1 - group["beta_utility"] ** step)
            scaled = torch.sigmoid(
                corrected / largest if largest > 0 else torch.zeros_like(corrected)
            )

            # Adam's direction.
            beta1, beta2 = group["betas"]
            state["exp_avg"].lerp_(parameter.grad, 1 - beta1)
            state["exp_avg_sq"].lerp_(parameter.grad.square(), 1 - beta2)
            first = state["exp_avg"] / (1 - beta1**step)
            second = state["exp_avg_sq"] / (1 - beta2**step)
            direction = first / (second.sqrt() + group["eps"])

            # Protect what is useful, perturb what is not.
            noise = group["sigma"] * self.noise(parameter)
            parameter.mul_(1 - group["lr"] * group["weight_decay"])
            parameter.sub_(2 * group["lr"] * (direction + noise) * (1 - scaled))
        return loss
