"""Perturbed gradient descent without utilities: the baselines that UPGD is compared with."""

from __future__ import annotations

from typing import Any

from upgd_ppo.agents.optimizers.checks import check_choice, check_learning_rate, check_number
from upgd_ppo.agents.optimizers.noise import Generators, NoiseFunction
from upgd_ppo.agents.optimizers.tiled_optimizer import TiledOptimizer
from upgd_ppo.agents.optimizers.tiles import Group, Tile


class PGD(TiledOptimizer):
    r"""Perturbed gradient descent (Zhou et al., 2019): w ← w − α·(g + σ·ξ).

    Args:
        params: parameters or parameter groups.
        lr: α ≥ 0.
        sigma: σ ≥ 0, the scale of the noise.
        noise_clip, maximize, noise, generator, members: see `UPGD`.

    Raises:
        ValueError: for a setting out of range, a parameter that is not real and dense, or a sparse
            gradient.
    """

    def __init__(
        self,
        params: Any,
        lr: float = 1e-2,
        sigma: float = 1e-3,
        noise_clip: float | None = None,
        maximize: bool = False,
        *,
        noise: str | NoiseFunction = "normal",
        generator: Generators = None,
        members: bool = False,
    ) -> None:
        defaults = dict(lr=lr, sigma=sigma, noise_clip=noise_clip, maximize=maximize)
        super().__init__(params, defaults, noise, generator, members)

    def _update_rows(self, tiles: list[Tile]) -> None:
        for tile in tiles:
            group, noise = tile.bucket.group, self._noise_for(tile)
            direction = tile.gradients if noise is None else noise.add_(tile.gradients)
            if group.get("decay"):
                shrink = 1 - float(group["lr"]) * group["decay"]
                tile.weights.mul_(tile.bucket.scalar("shrink", shrink))
            tile.weights.add_(direction, alpha=-float(group["lr"]))

    def _check(self, group: Group) -> None:
        check_learning_rate(group["lr"])
        check_number("sigma", group["sigma"])
        if group["noise_clip"] is not None:
            check_number("noise_clip", group["noise_clip"], low_excluded=True)
        check_choice("maximize", group["maximize"], (True, False))


class ShrinkAndPerturb(PGD):
    r"""Shrink and perturb (Ash & Adams, 2020) at every step: w ← w·(1 − α·d) − α·(g + σ·ξ).

    Args:
        params: parameters or parameter groups.
        lr: α ≥ 0.
        decay: d ≥ 0.
        sigma: σ ≥ 0.
        noise_clip, maximize, noise, generator, members: see `UPGD`.

    Raises:
        ValueError: as `PGD`.
    """

    def __init__(
        self,
        params: Any,
        lr: float = 1e-2,
        decay: float = 1e-3,
        sigma: float = 1e-3,
        noise_clip: float | None = None,
        maximize: bool = False,
        *,
        noise: str | NoiseFunction = "normal",
        generator: Generators = None,
        members: bool = False,
    ) -> None:
        defaults = dict(lr=lr, decay=decay, sigma=sigma, noise_clip=noise_clip, maximize=maximize)
        TiledOptimizer.__init__(self, params, defaults, noise, generator, members)

    def _check(self, group: Group) -> None:
        super()._check(group)
        check_number("decay", group["decay"])
