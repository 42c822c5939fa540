"""Utility-based perturbed gradient descent (Elsayed & Mahmood, ICLR 2024)."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from agents.optimizers.block_optimizer import BlockOptimizer
from agents.optimizers.blocks import Bucket, Group, Tile
from agents.optimizers.checks import check_choice, check_learning_rate, check_number
from agents.optimizers.noise import Generators, NoiseFunction

NORM_FLOOR = 1e-12
"""The floor of the norm in the local scope, that of `torch.nn.functional.normalize`."""


class UPGD(BlockOptimizer):
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
        **further_defaults: Any,
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
            **further_defaults,
        )
        super().__init__(params, defaults, noise, generator, members)

    @torch.no_grad()
    def utilities(self) -> dict[Tensor, Tensor]:
        """The scaled utility s of every weight: parameter → new tensor of its shape, in [0, 1].

        ½ for parameters that have not been stepped yet.
        """
        result = {p: torch.full_like(p, 0.5) for p in self._parameters()}
        stepped = [
            (group, p, self.state[p]["utility"], 1 - group["beta_utility"] ** self.state[p]["step"])
            for group in self.param_groups
            for p in group["params"]
            if "utility" in self.state[p]
        ]
        maxima = [
            self._as_rows(trace).amax(1) / (correction if group["corrected_denominator"] else 1.0)
            for group, _, trace, correction in stepped
            if group["scope"] == "global"
        ]
        for group, p, trace, correction in stepped:
            if group["scope"] == "global":
                largest = torch.stack([m.to(trace) for m in maxima]).amax(0)
                ratio = self._as_rows(trace) / _usable(largest * correction)[:, None]
            else:
                vectors = trace.unsqueeze(-1) if trace.ndim == int(self.members) else trace
                ratio = vectors / _norms(vectors, correction)
            # By tanh rather than sigmoid: its bits do not depend on where an element stands.
            scaled = (0.5 * ratio).tanh_().add_(1.0).mul_(0.5).nan_to_num_(nan=0.5)
            result[p] = scaled.view(p.shape).to(p.dtype)
        return result

    # ── The step ────────────────────────────────────────────────────────────────────────────────

    def _update_rows(self, tiles: list[Tile]) -> None:
        maxima = [self._trace_utility(tile) for tile in tiles]
        largest = _largest([m for m in maxima if m is not None])
        for tile in tiles:
            self._move(tile, self._gate(tile, largest))

    def _trace_utility(self, tile: Tile) -> Tensor | None:
        """Update the trace ū; its maximum [rows, 1] in the global scope."""
        bucket, group = tile.bucket, tile.bucket.group
        trace, beta = tile.state["utility"], group["beta_utility"]
        trace.mul_(bucket.scalar("beta_utility", beta))
        if group["order"] == "first":
            trace.addcmul_(tile.gradients, tile.weights, value=beta - 1)
        else:
            slope = torch.mul(tile.curvature, tile.weights, out=tile.scratch[0])
            slope.mul_(0.5).sub_(tile.gradients)
            trace.addcmul_(slope, tile.weights, value=1 - beta)
        if group["scope"] == "local":
            return None
        largest = trace.amax(1, keepdim=True)
        return largest / _correction(bucket) if group["corrected_denominator"] else largest

    def _gate(self, tile: Tile, largest: Tensor | None) -> Tensor:
        """1 − s."""
        out, trace, bucket = tile.scratch[0], tile.state["utility"], tile.bucket
        if largest is not None and bucket.group["scope"] == "global":
            denominators = _usable(largest.to(trace) * _correction(bucket))
            torch.div(trace, denominators.neg_(), out=out).sigmoid_()
            finite = trace.device.type == "cpu" and bool(largest.isfinite().all())
        else:
            for shape, (start, end) in zip(bucket.row_shapes, bucket.spans, strict=True):
                vectors = trace[:, start:end].unflatten(1, shape)
                ratio = out[:, start:end].unflatten(1, shape)
                torch.div(vectors, _norms(vectors, _correction(bucket)).neg_(), out=ratio)
            out.sigmoid_()
            finite = False
        return out if finite else out.nan_to_num_(nan=0.5)

    def _direction(self, tile: Tile) -> tuple[Tensor, float]:
        """What to descend along, as a tensor and a factor; it may use scratch[1]."""
        return tile.gradients, 1.0

    def _move(self, tile: Tile, gate: Tensor) -> None:
        bucket, group = tile.bucket, tile.bucket.group
        lr, protecting = float(group["lr"]), group["protecting"]
        direction, factor = self._direction(tile)
        if group["sigma"]:
            noise = self._noise_for(tile)
            if not protecting:
                noise.mul_(gate)
            direction = torch.add(direction, noise, alpha=group["sigma"] / factor, out=noise)
        if group["weight_decay"]:
            tile.weights.mul_(bucket.scalar("shrink", 1 - lr * group["weight_decay"]))
        if protecting:
            tile.weights.addcmul_(direction, gate, value=-group["step_scale"] * lr * factor)
        else:
            tile.weights.add_(direction, alpha=-group["step_scale"] * lr * factor)

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

    def _as_rows(self, tensor: Tensor) -> Tensor:
        return tensor.reshape(tensor.shape[0] if self.members else 1, -1)


def _correction(bucket: Bucket) -> float:
    """1 − β_uᵗ."""
    return 1 - bucket.group["beta_utility"] ** bucket.step


def _largest(maxima: list[Tensor]) -> Tensor | None:
    if len(maxima) < 2:
        return maxima[0] if maxima else None
    device, dtype = maxima[0].device, max((m.dtype for m in maxima), key=lambda d: d.itemsize)
    return torch.stack([m.to(device, dtype) for m in maxima]).amax(0)


def _usable(denominators: Tensor) -> Tensor:
    """Denominators that are not positive and finite replaced by infinity, which makes s = ½."""
    return torch.where((denominators > 0) & (denominators < math.inf), denominators, math.inf)


def _norms(vectors: Tensor, correction: float) -> Tensor:
    """‖ū‖₂ over the last dimension, floored as if it were ‖û‖₂."""
    norms = torch.linalg.vector_norm(vectors, dim=-1, keepdim=True)
    return norms.clamp_(min=NORM_FLOOR * correction)
