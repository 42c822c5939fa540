"""The base class of the family: torch.optim's interface over tiles."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from itertools import chain
from typing import Any

import torch
from torch import Tensor

from upgd_ppo.agents.optimizers.noise import NOISES, Generators, NoiseFunction, fill_with_noise
from upgd_ppo.agents.optimizers.tiles import SMALL, TILE, Bucket, Group, Tile, works_in_place


class TiledOptimizer(torch.optim.Optimizer):
    """Base of optimizers whose step is elementwise passes over tiles.

    A subclass names its traces and writes `_check` and `_update_rows`.

    Args:
        params: parameters or parameter groups.
        defaults: settings of a group that does not name its own.
        noise: "normal", "cauchy" or a function parameter → standard noise of its shape.
        generator: where noise is drawn from: None (torch's default generator), a `torch.Generator`,
            or with `members` a sequence of them, one per member.
        members: axis 0 of every parameter is the member axis of a population.

    Raises:
        ValueError, TypeError: if a setting is out of range, saying which and what it may be.
    """

    traces: tuple[str, ...] = ()
    _may_stand_alone = True

    def __init__(
        self,
        params: Any,
        defaults: dict[str, Any],
        noise: str | NoiseFunction = "normal",
        generator: Generators = None,
        members: bool = False,
    ) -> None:
        if not callable(noise) and noise not in NOISES:
            raise ValueError(
                f"noise must be one of {', '.join(map(repr, NOISES))} or a function, got {noise!r}."
            )
        self.noise = noise
        self.members = members
        self.generator = generator
        self._buckets: list[Bucket] = []
        self._placed: list[tuple[Tensor, Bucket, dict[str, Tensor]]] = []
        super().__init__(params, defaults)
        self._check_generators()

    # ── What a subclass says ────────────────────────────────────────────────────────────────────

    def _check(self, group: Group) -> None:
        """Raise ValueError if one of the group's settings is out of range."""

    def _needs_curvature(self, group: Group) -> bool:
        return False

    def _splits_rows(self, group: Group) -> bool:
        """Whether a row may be cut in several tiles."""
        return True

    def _update_rows(self, tiles: list[Tile]) -> None:
        """Update all weights of some members, given all of their tiles."""
        raise NotImplementedError

    # ── torch.optim's interface ─────────────────────────────────────────────────────────────────

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """Update every parameter that has a gradient.

        Args:
            closure: recomputes the loss and its gradients; called once, first.

        Returns:
            What the closure returned, or None.
        """
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        self._step()
        return loss

    def zero_grad(self, set_to_none: bool = True) -> None:
        """Reset gradients, as every optimizer does, and forget `p.curvature`."""
        super().zero_grad(set_to_none)
        for p in self._parameters():
            if getattr(p, "curvature", None) is not None:
                p.curvature = None  # type: ignore[attr-defined]

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """Add a group of parameters with settings of its own.

        Raises:
            ValueError: if a setting is out of range or a parameter is not a real floating-point
                tensor (or, in a population, has no member axis of the common length).
        """
        self._check({**self.defaults, **param_group})
        super().add_param_group(param_group)
        try:
            for p in self.param_groups[-1]["params"]:
                self._check_parameter(p)
        except ValueError:
            self.param_groups.pop()
            raise

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Load what `state_dict` gave; traces of bfloat16 parameters stay float32."""
        super().load_state_dict(state_dict)
        saved_ids = chain.from_iterable(group["params"] for group in state_dict["param_groups"])
        for p, saved_id in zip(self._parameters(), saved_ids, strict=True):
            for name, value in state_dict["state"].get(saved_id, {}).items():
                if isinstance(value, Tensor):
                    self.state[p][name] = value.to(p.device)

    def __getstate__(self) -> dict[str, Any]:
        own = ("noise", "members", "generator")
        return {**super().__getstate__(), **{name: self.__dict__[name] for name in own}}

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)
        self._buckets, self._placed = [], []

    # ── The step ────────────────────────────────────────────────────────────────────────────────

    @torch.compiler.disable
    def _step(self) -> None:
        self._lay_out(self._stepped())
        for bucket in self._buckets:
            self._load(bucket)
        for bucket in self._buckets:
            bucket.step += 1
            for p in bucket.params:
                self.state[p]["step"] = bucket.step
        for tiles in self._tiles_by_row():
            self._update_rows(tiles)
        for bucket in self._buckets:
            bucket.store()

    def _stepped(self) -> list[tuple[Group, Tensor]]:
        """The parameters that have gradients, with their groups."""
        stepped = []
        for group in self.param_groups:
            for p in group["params"]:
                if p.grad is None or not p.numel():
                    continue
                if p.grad.layout is not torch.strided:
                    raise ValueError(
                        f"{type(self).__name__} needs dense gradients, but a parameter of shape "
                        f"{tuple(p.shape)} has one of layout {p.grad.layout}; "
                        "use nn.Embedding(sparse=False) or torch.optim.SparseAdam."
                    )
                stepped.append((group, p))
        return stepped

    def _tiles_by_row(self) -> Iterable[list[Tile]]:
        """For each of the row tiles, all tiles of all buckets."""
        for tiles in zip(*[bucket.tiles_by_row() for bucket in self._buckets], strict=True):
            yield list(chain.from_iterable(tiles))

    def _load(self, bucket: Bucket) -> None:
        group, params = bucket.group, bucket.params
        gradients = [p.grad for p in params if p.grad is not None]
        bucket.load("weights", params)
        if group["maximize"]:
            gradients = list(torch._foreach_neg(gradients))
        bucket.load("gradients", gradients)
        if self._needs_curvature(group):
            curvatures = [_curvature(p) for p in params]
            if group["maximize"]:
                curvatures = list(torch._foreach_neg(curvatures))
            bucket.load("curvature", curvatures)
        if callable(self.noise) and group["sigma"]:
            bucket.load("noise", [_own_noise(self.noise, p) for p in params])

    def _noise_for(self, tile: Tile) -> Tensor | None:
        """σ·ξ for a tile, in its last scratch tensor; None if the group has no noise."""
        group, out = tile.bucket.group, tile.scratch[-1]
        sigma, clip = group["sigma"], group["noise_clip"]
        if not sigma:
            return None
        if isinstance(self.noise, str):
            fill_with_noise(out, self.noise, sigma, tile.generators)
        else:
            torch.mul(tile.noise, sigma, out=out)
        return out if clip is None else out.clamp_(-clip * sigma, clip * sigma)

    # ── Layout ──────────────────────────────────────────────────────────────────────────────────

    def _lay_out(self, active: list[tuple[Group, Tensor]]) -> None:
        """Put these parameters in buckets, unless they already are."""
        if len(active) == len(self._placed) and all(
            p is placed
            and bucket.holds(group, p, self.state[p].get("step", 0))
            and all(self.state[p].get(name) is view for name, view in views.items())
            for (group, p), (placed, bucket, views) in zip(active, self._placed, strict=True)
        ):
            return
        self._check_generators()
        self._buckets = self._make_buckets(active)
        columns = sum(bucket.columns for bucket in self._buckets)
        on_cpu = any(p.device.type == "cpu" for _, p in active)
        for bucket in self._buckets:
            traces = self._move_traces(bucket)
            one = self.generator
            generators = one if isinstance(one, Sequence) else [one] * bucket.rows
            # Rows of all buckets are cut alike, so that a member's tiles can be found together.
            rows_per_tile = max(1, TILE // columns) if on_cpu else bucket.rows
            splits_rows = self._splits_rows(bucket.group)
            bucket.make_tiles(traces, generators, rows_per_tile, splits_rows)
        home = {p: bucket for bucket in self._buckets for p in bucket.params}
        self._placed = [
            (p, home[p], {name: self.state[p][name] for name in self.traces}) for _, p in active
        ]

    def _make_buckets(self, active: list[tuple[Group, Tensor]]) -> list[Bucket]:
        together: dict[tuple[Any, ...], tuple[Group, list[Tensor]]] = {}
        for index, (group, p) in enumerate(active):
            columns = p.numel() // (p.shape[0] if self.members else 1)
            # A population's tensors are views of a longer row, contiguous only where there is one
            # member: those of a group stay together, so that noise is drawn in the same order.
            alone = not self.members or sum(other is group for other, _ in active) == 1
            alone &= self._may_stand_alone and columns >= SMALL
            alone &= works_in_place(p, self.members)
            step = self.state[p].get("step", 0)
            key = (index,) if alone else (id(group), p.dtype, p.device, step)
            together.setdefault(key, (group, []))[1].append(p)
        return [
            Bucket(group, params, self.state[params[0]].get("step", 0), self.members)
            for group, params in together.values()
        ]

    def _move_traces(self, bucket: Bucket) -> dict[str, Tensor]:
        """Move the traces of a bucket's parameters into rows: name → [rows, columns]."""
        traces = {name: bucket.zeros(bucket.rows, bucket.columns) for name in self.traces}
        for name, rows in traces.items():
            for p, view in zip(bucket.params, bucket.views(rows), strict=True):
                if name in self.state[p]:
                    view.copy_(self.state[p][name])
                self.state[p][name] = view
        return traces

    # ── Checks ──────────────────────────────────────────────────────────────────────────────────

    def _parameters(self) -> Iterable[Tensor]:
        return chain.from_iterable(group["params"] for group in self.param_groups)

    def _check_parameter(self, p: Tensor) -> None:
        name = type(self).__name__
        if not p.is_floating_point() or p.layout is not torch.strided:
            raise ValueError(
                f"{name} needs dense parameters of a real floating-point type, got {p.dtype} with "
                f"layout {p.layout}."
            )
        if self.members:
            first = next(iter(self._parameters()))
            if p.ndim == 0 or p.shape[0] != first.shape[0]:
                raise ValueError(
                    f"{name}(members=True) needs the member axis first in every parameter, with "
                    f"one length; got shapes {tuple(first.shape)} and {tuple(p.shape)}."
                )

    def _check_generators(self) -> None:
        if isinstance(self.generator, Sequence) != self.members:
            if self.members and not callable(self.noise) and self._is_noisy():
                raise ValueError(
                    f"{type(self).__name__}(members=True) needs a sequence of generators, one per "
                    f"member, got {self.generator!r}."
                )
            if not self.members:
                raise ValueError(
                    f"{type(self).__name__} takes a sequence of generators only with members=True; "
                    "give one torch.Generator."
                )
        elif isinstance(self.generator, Sequence):
            members = next((p.shape[0] for p in self._parameters()), len(self.generator))
            if len(self.generator) != members:
                raise ValueError(
                    f"{type(self).__name__} needs one generator per member: {members} members, "
                    f"{len(self.generator)} generators."
                )

    def _is_noisy(self) -> bool:
        return any(group["sigma"] for group in self.param_groups)


def _curvature(p: Tensor) -> Tensor:
    curvature = getattr(p, "curvature", None)
    if not isinstance(curvature, Tensor) or curvature.shape != p.shape:
        found = "none" if curvature is None else f"one of shape {tuple(curvature.shape)}"
        raise ValueError(
            f"order='second' needs p.curvature, the diagonal of the loss's Hessian, beside p.grad: "
            f"a parameter of shape {tuple(p.shape)} has {found}. Call hesscale(model, inputs, "
            "targets, loss) in place of loss.backward(), or set it from another source."
        )
    return curvature


def _own_noise(function: NoiseFunction, p: Tensor) -> Tensor:
    noise = function(p)
    if noise.shape != p.shape:
        raise ValueError(
            f"noise(parameter) must have the parameter's shape {tuple(p.shape)}, "
            f"got {tuple(noise.shape)}."
        )
    return noise
