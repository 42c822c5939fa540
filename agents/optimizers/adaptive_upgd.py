"""UPGD on Adam's direction: the variant that its authors use with PPO."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor

from upgd_ppo.agents.kernels import switch
from upgd_ppo.agents.optimizers.checks import check_betas, check_number
from upgd_ppo.agents.optimizers.noise import Generators, NoiseFunction
from upgd_ppo.agents.optimizers.tiled_optimizer import TiledOptimizer
from upgd_ppo.agents.optimizers.tiles import Group, Tile
from upgd_ppo.agents.optimizers.upgd import UPGD, correction_of


class AdaptiveUPGD(UPGD):
    r"""Adam that protects useful weights and perturbs useless ones: a drop-in for Adam.

    With Adam's bias-corrected moments m̂, v̂ of the gradient, standard noise ξ and the scaled utility
    s of `UPGD`::

        w ← w·(1 − α·λ) − 2α·(m̂/(√v̂ + eps) + σ·ξ)·(1 − s)

    A weight of no utility has s = ½ and moves as under Adam; the defaults are those published for
    PPO. Every other setting means what it means for `UPGD`; not protecting,
    w ← w·(1 − α·λ) − 2α·(m̂/(√v̂ + eps) + σ·ξ·(1 − s)), which steps twice as far as Adam: set
    step_scale=1 there.

    Args:
        params: parameters or parameter groups.
        lr: α ≥ 0.
        betas: decay of Adam's moments, each in [0, 1).
        eps: > 0.
        weight_decay: λ ≥ 0, decoupled.
        beta_utility, sigma, order, scope, protecting, step_scale, noise_clip,
            corrected_denominator, maximize, noise, generator, members: see `UPGD`.

    Raises:
        ValueError: as `UPGD`.
    """

    traces = ("utility", "exp_avg", "exp_avg_sq")

    def __init__(
        self,
        params: Any,
        lr: float = 3e-4,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-5,
        weight_decay: float = 1e-3,
        beta_utility: float = 0.999,
        sigma: float = 1e-3,
        order: str = "first",
        scope: str = "global",
        protecting: bool = True,
        step_scale: float = 2.0,
        noise_clip: float | None = None,
        corrected_denominator: bool = False,
        maximize: bool = False,
        *,
        noise: str | NoiseFunction = "normal",
        generator: Generators = None,
        members: bool = False,
    ) -> None:
        defaults = dict(
            lr=lr,
            betas=betas,
            eps=eps,
            weight_decay=weight_decay,
            beta_utility=beta_utility,
            sigma=sigma,
            order=order,
            scope=scope,
            protecting=protecting,
            step_scale=step_scale,
            noise_clip=noise_clip,
            corrected_denominator=corrected_denominator,
            maximize=maximize,
        )
        TiledOptimizer.__init__(self, params, defaults, noise, generator, members)

    def _update_rows(self, tiles: list[Tile]) -> None:
        tile, bucket, group = tiles[0], tiles[0].bucket, tiles[0].bucket.group
        adaptive_upgd = switch.choose(
            "adaptive_upgd",
            tile.weights,
            order=group["order"],
            scope=group["scope"],
            protecting=group["protecting"],
            whole_rows=len(tiles) == 1,
            replaced=[name for name, own in _PARTS.items() if getattr(type(self), name) is not own],
        )
        if adaptive_upgd is None:
            super()._update_rows(tiles)
            return
        noise = self._noise_for(tile)
        if noise is None:
            noise = tile.scratch[-1].zero_()
        adaptive_upgd(
            tile.weights.numpy(),
            tile.gradients.numpy(),
            *(tile.state[name].numpy() for name in self.traces),
            noise.numpy(),
            *(
                np.float32(value)
                for beta in (group["beta_utility"], *group["betas"])
                for value in (beta, 1 - beta)
            ),
            np.float32(group["eps"]),
            np.float32(1.0 if group["corrected_denominator"] else correction_of(bucket)),
            *(np.float32(1 - beta**bucket.step) for beta in group["betas"]),
            np.float32(1 - float(group["lr"]) * group["weight_decay"]),
            np.float32(group["step_scale"] * float(group["lr"])),
        )

    def _direction(self, tile: Tile, noise: Tensor | None) -> Tensor:
        bucket, (beta1, beta2) = tile.bucket, tile.bucket.group["betas"]
        direction = tile.scratch[1].zero_() if noise is None else noise
        # Adam's own kernel, at the learning rate −1: direction ← direction + m̂/(√v̂ + eps), and
        # both moments, in one pass.
        torch._fused_adam_(
            [direction],
            [tile.gradients],
            [tile.state["exp_avg"]],
            [tile.state["exp_avg_sq"]],
            [],
            [bucket.scalar("step", bucket.step, torch.float32)],
            lr=-1.0,
            beta1=beta1,
            beta2=beta2,
            weight_decay=0.0,
            eps=bucket.group["eps"],
            amsgrad=False,
            maximize=False,
        )
        return direction

    def _check(self, group: Group) -> None:
        super()._check(group)
        check_betas(group["betas"])
        check_number("eps", group["eps"], low_excluded=True)


_PARTS = {
    part: getattr(AdaptiveUPGD, part)
    for part in ("_trace_utility", "_maximum", "_gate", "_direction", "_move")
}
"""The parts of a step that the kernel computes in one go."""
