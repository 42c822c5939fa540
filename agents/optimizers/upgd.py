"""Utility-based perturbed gradient descent (Elsayed & Mahmood, ICLR 2024)."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import torch
from torch import Tensor

from upgd_ppo.agents.optimizers.checks import check_choice, check_learning_rate, check_number
from upgd_ppo.agents.optimizers.noise import Generators, NoiseFunction
from upgd_ppo.agents.optimizers.tiled_optimizer import TiledOptimizer
from upgd_ppo.agents.optimizers.tiles import Bucket, Group, Tile

NORM_FLOOR = 1e-12
"""The floor of the norm in the local scope, that of `torch.nn.functional.normalize`."""


class UPGD(TiledOptimizer):
    r"""Gradient descent that protects useful weights and perturbs useless ones.

    For every weight w with gradient g, curvature h and standard noise ξ, at its t-th step::

        u = −g·w                      order "first"
        u = ½·h·w² − g·w              order "second"
        ū ← β_u·ū + (1 − β_u)·u,      û = ū / (1 − β_uᵗ)
        s = sigmoid(û / max ū)        scope "global": over all weights of all global groups
        s = sigmoid(û / ‖û‖₂)         scope "local": over the tensor's last dimension
        w ← w·(1 − α·λ) − c·α·(g + σ·ξ)·(1 − s)        protecting
        w ← w·(1 − α·λ) − c·α·(g + σ·ξ·(1 − s))        not protecting

    The global denominator is the maximum of the uncorrected trace, as published; early on s
    therefore saturates. `corrected_denominator=True` takes the maximum of û instead. Where the
    maximum is not positive and finite, or the norm not finite, s = ½ (published code divides by it
    and can write NaN). A weight of no utility has s = ½ and moves at the rate c·α/2.

    With order "second" every parameter needs `p.curvature` beside `p.grad`: a tensor of its shape
    holding the Hessian's diagonal. `hesscale` sets it; any other source may. `zero_grad` clears it.

    bfloat16 and float16 parameters are updated in float32 and rounded; their traces are float32.

    Args:
        params: parameters or parameter groups. Every setting below down to `maximize` may differ
            between groups.
        lr: α ≥ 0.
        beta_utility: β_u in [0, 1).
        sigma: σ ≥ 0, the scale of the noise; 0 draws none.
        weight_decay: λ ≥ 0, decoupled from the gradient.
        order: "first" or "second".
        scope: "global" or "local".
        protecting: whether useful weights are protected from the gradient too.
        step_scale: c > 0; 2 is the snippet that the method's authors print, with which a weight of
            no utility moves at the rate α.
        noise_clip: cap on |ξ|, None for none.
        corrected_denominator: see above.
        maximize: ascend instead of descend.
        noise: "normal"; "cauchy", heavy-tailed: no moments exist, so consider `noise_clip`; or a
            function parameter → ξ of its shape, called once for each parameter in order.
        generator: source of the noise: None for torch's default one, a `torch.Generator`, or, with
            `members`, a sequence with one per member.
        members: axis 0 of every parameter is the member axis of a population: the maximum is taken
            and the noise drawn for each member alone.

    Raises:
        ValueError: for a setting out of range, a parameter that is not real and dense, a sparse
            gradient, or a missing curvature.
    """

    traces: tuple[str, ...] = ("utility",)

    def __init__(
        self,
        params: Any,
        lr: float = 1e-2,
        beta_utility: float = 0.999,
        sigma: float = 1e-3,
        weight_decay: float = 1e-3,
        order: str = "first",
        scope: str = "global",
        protecting: bool = True,
        step_scale: float = 1.0,
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
            beta_utility=beta_utility,
            sigma=sigma,
            weight_decay=weight_decay,
            order=order,
            scope=scope,
            protecting=protecting,
            step_scale=step_scale,
            noise_clip=noise_clip,
            corrected_denominator=corrected_denominator,
            maximize=maximize,
        )
        super().__init__(params, defaults, noise, generator, members)

    @torch.no_grad()
    def utilities(self) -> dict[Tensor, Tensor]:
        """The scaled utility s of every weight: parameter → new tensor of its shape, in [0, 1].

        ½ for parameters that have not been stepped yet.
        """
        result = {p: torch.full_like(p, 0.5) for p in self._parameters()}
        traced = [
            (group, p)
            for group in self.param_groups
            for p in group["params"]
            if "utility" in self.state[p]
        ]
        self._lay_out(traced)
        scaled = {}
        for tiles in self._tiles_by_row():
            largest = _largest([self._maximum(tile) for tile in tiles])
            for tile in tiles:
                scaled[tile] = 1 - self._gate(tile, largest)
        for bucket in self._buckets:
            rows = bucket.zeros(bucket.rows, bucket.columns)
            for tile, piece in zip(bucket.tiles, bucket.pieces(rows), strict=True):
                piece.copy_(scaled[tile])
            for p, view in zip(bucket.params, bucket.views(rows), strict=True):
                result[p].copy_(view)
        return result

    # ── The step ────────────────────────────────────────────────────────────────────────────────

    def _update_rows(self, tiles: list[Tile]) -> None:
        for tile in tiles:
            self._trace_utility(tile)
        largest = _largest([self._maximum(tile) for tile in tiles])
        for tile in tiles:
            self._move(tile, self._gate(tile, largest))

    def _trace_utility(self, tile: Tile) -> None:
        """Update the trace ū."""
        bucket, group = tile.bucket, tile.bucket.group
        trace, beta = tile.state["utility"], group["beta_utility"]
        trace.mul_(bucket.scalar("beta_utility", beta))
        if group["order"] == "first":
            trace.addcmul_(tile.gradients, tile.weights, value=beta - 1)
        else:
            slope = torch.mul(tile.curvature, tile.weights, out=tile.scratch[0])
            slope.mul_(0.5).sub_(tile.gradients)
            trace.addcmul_(slope, tile.weights, value=1 - beta)

    def _maximum(self, tile: Tile) -> Tensor | None:
        """What a tile contributes to the global denominator, [rows, 1]."""
        group = tile.bucket.group
        if group["scope"] == "local":
            return None
        maximum = tile.state["utility"].amax(1, keepdim=True)
        return maximum / correction_of(tile.bucket) if group["corrected_denominator"] else maximum

    def _gate(self, tile: Tile, largest: Tensor | None) -> Tensor:
        """1 − s."""
        if largest is None or tile.bucket.group["scope"] == "local":
            return self._local_gate(tile)
        trace, denominators = tile.state["utility"], _usable(largest, correction_of(tile.bucket))
        ratio = torch.div(trace, denominators.neg_().to(trace), out=tile.scratch[0])
        gate = ratio.sigmoid_()
        # An infinite utility makes ∞/∞ at its weight. Looking is cheaper than a pass, on a CPU.
        seen_finite = largest.device.type == "cpu" and np.isfinite(largest.numpy()).all()
        return gate if seen_finite else gate.nan_to_num_(nan=0.5)

    def _local_gate(self, tile: Tile) -> Tensor:
        bucket, gate = tile.bucket, tile.scratch[0]
        for index in range(len(bucket.params)):
            vectors = bucket.part(tile.state["utility"], index)
            norms = norms_of(vectors, correction_of(bucket))
            torch.div(vectors, norms.neg_(), out=bucket.part(gate, index))
        return gate.sigmoid_().nan_to_num_(nan=0.5)

    def _direction(self, tile: Tile, noise: Tensor | None) -> Tensor:
        """What to descend along, with the noise added to it; it may use scratch[1]."""
        return tile.gradients if noise is None else noise.add_(tile.gradients)

    def _move(self, tile: Tile, gate: Tensor) -> None:
        bucket, group = tile.bucket, tile.bucket.group
        lr, protecting = float(group["lr"]), group["protecting"]
        noise = self._noise_for(tile)
        if noise is not None and not protecting:
            noise.mul_(gate)
        direction = self._direction(tile, noise)
        if group["weight_decay"]:
            tile.weights.mul_(bucket.scalar("shrink", 1 - lr * group["weight_decay"]))
        if protecting:
            tile.weights.addcmul_(direction, gate, value=-group["step_scale"] * lr)
        else:
            tile.weights.add_(direction, alpha=-group["step_scale"] * lr)

    # ── Settings ────────────────────────────────────────────────────────────────────────────────

    def _check(self, group: Group) -> None:
        check_learning_rate(group["lr"])
        check_number("beta_utility", group["beta_utility"], high=1.0)
        check_number("sigma", group["sigma"])
        check_number("weight_decay", group["weight_decay"])
        check_choice("order", group["order"], ("first", "second"))
        check_choice("scope", group["scope"], ("global", "local"))
        check_number("step_scale", group["step_scale"], low_excluded=True)
        if group["noise_clip"] is not None:
            check_number("noise_clip", group["noise_clip"], low_excluded=True)
        for flag in ("protecting", "corrected_denominator", "maximize"):
            check_choice(flag, group[flag], (True, False))

    def _needs_curvature(self, group: Group) -> bool:
        return group["order"] == "second"

    def _splits_rows(self, group: Group) -> bool:
        return group["scope"] == "global"


def correction_of(bucket: Bucket) -> float:
    """1 − β_uᵗ."""
    return 1 - bucket.group["beta_utility"] ** bucket.step


def _largest(maxima: list[Tensor | None]) -> Tensor | None:
    known = [maximum for maximum in maxima if maximum is not None]
    if len(known) < 2:
        return known[0] if known else None
    device, dtype = known[0].device, max((m.dtype for m in known), key=lambda d: d.itemsize)
    return torch.stack([m.to(device, dtype) for m in known]).amax(0)


def _usable(maxima: Tensor, correction: float) -> Tensor:
    """max ū · (1 − β_uᵗ), but infinity, which makes s = ½, where it is not positive and finite."""
    least = torch.finfo(maxima.dtype).tiny
    if maxima.device.type == "cpu":  # a handful of numbers: NumPy has the quicker calls
        numbers = maxima.numpy() * correction
        return torch.from_numpy(np.where((numbers >= least) & (numbers < np.inf), numbers, np.inf))
    products = maxima * correction
    return torch.where((products >= least) & (products < math.inf), products, math.inf)


def norms_of(vectors: Tensor, correction: float) -> Tensor:
    """‖ū‖₂ over the last dimension, floored as if it were ‖û‖₂."""
    norms = torch.linalg.vector_norm(vectors, dim=-1, keepdim=True)
    return norms.clamp_(min=NORM_FLOOR * correction)
