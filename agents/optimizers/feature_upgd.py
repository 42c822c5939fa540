"""UPGD by feature: utilities of hidden units rather than of weights."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

from torch import Tensor

from upgd_ppo.agents.networks.layers import Layer
from upgd_ppo.agents.optimizers.noise import Generators, NoiseFunction
from upgd_ppo.agents.optimizers.tiles import Bucket, Tile
from upgd_ppo.agents.optimizers.upgd import UPGD, correction_of, norms_of


@dataclass
class HiddenLayer:
    """Where in a bucket a layer's tensors lie: indices into its parameters."""

    incoming: int
    per_unit: list[int]
    outgoing: list[int]


class FeatureUPGD(UPGD):
    r"""UPGD on the hidden units of feed-forward networks.

    Think of every hidden unit's output as multiplied by a gate fixed at 1. The utility of a unit is
    what first- or second-order Taylor expansion says the loss would gain if its gate closed::

        u = −∂L/∂gate  (+ ½·∂²L/∂gate²)

    traced, corrected and scaled to s as in `UPGD`: the global maximum is over all units, the local
    norm over the units of a layer. s of a unit applies to all its incoming weights and its bias.
    The output layer, and whatever belongs to no hidden unit, takes plain gradient steps without
    noise, as published.

    No gate is needed in the network: closing the gate of unit j scales the weights W[:, j] that
    leave it, so ∂L/∂gate_j = Σ_i W[i, j]·∂L/∂W[i, j], and its curvature under HesScale is
    Σ_i W[i, j]²·h[i, j]. So the unit's output must go to one linear layer and nowhere else.

    Each parameter group holds one network's tensors from input to output, as `parameters()` of an
    `nn.Sequential` gives them: a matrix [out, in] is a layer; it is hidden if the next matrix takes
    as many inputs as it has outputs; vectors of that length between the two (its bias, a layer
    norm) belong to its units. Groups are needed only where one network has as many outputs as the
    next has inputs.

    Where `layers` are given, they say what belongs to a unit instead, whatever the order of the
    parameters and however many linear layers its output goes to::

        FeatureUPGD(model.named_parameters(), layers=layers_of(model, inputs))

    Args:
        params, lr, beta_utility, sigma, weight_decay, order, scope, protecting, noise_clip,
            corrected_denominator, maximize, noise, generator, members: see `UPGD`.
        layers: the hidden layers, whose parameters are then given with their names; those whose
            units go to no linear layer count as none.

    Raises:
        ValueError: as `UPGD`; if a layer's parameters are not in one group by their names.
    """

    unitwise = ("utility",)
    """What every weight keeps of the unit that it enters; see `optimizers.memory.Memory.clear`."""
    _may_stand_alone = False

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
        noise_clip: float | None = None,
        corrected_denominator: bool = False,
        maximize: bool = False,
        *,
        noise: str | NoiseFunction = "normal",
        generator: Generators = None,
        members: bool = False,
        layers: Sequence[Layer] | None = None,
    ) -> None:
        self.layers = layers
        super().__init__(
            params,
            lr=lr,
            beta_utility=beta_utility,
            sigma=sigma,
            weight_decay=weight_decay,
            order=order,
            scope=scope,
            protecting=protecting,
            noise_clip=noise_clip,
            corrected_denominator=corrected_denominator,
            maximize=maximize,
            noise=noise,
            generator=generator,
            members=members,
        )
        self._check_layers()

    def __getstate__(self) -> dict[str, Any]:
        return {**super().__getstate__(), "layers": self.layers}

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__({"layers": None, **state})

    def _check_layers(self) -> None:
        groups = [set(group.get("param_names", ())) for group in self.param_groups]
        for layer in self.layers or ():
            names = {layer.incoming, *layer.own, *_outgoing(layer)}
            if not any(names <= group for group in groups):
                raise ValueError(
                    f"{layer.name} of {layer.network} is made of {', '.join(sorted(names))}, but no"
                    " parameter group has parameters of all these names; give them as"
                    " model.named_parameters()."
                )

    def _hidden_layers(self, bucket: Bucket) -> list[HiddenLayer]:
        """The hidden layers among a bucket's parameters."""
        if self.layers is None:
            return _layers_by_shape(bucket)
        group = bucket.group
        names = {id(p): name for p, name in zip(group["params"], group["param_names"], strict=True)}
        place = {names[id(p)]: index for index, p in enumerate(bucket.params)}
        return [
            HiddenLayer(
                place[layer.incoming],
                [place[name] for name in layer.own if name in place],
                [place[name] for name in _outgoing(layer)],
            )
            for layer in self.layers
            if layer.outgoing and {layer.incoming, *_outgoing(layer)} <= place.keys()
        ]

    def _unitless(self, bucket: Bucket) -> list[int]:
        """The parameters that belong to no hidden unit."""
        layers = self._hidden_layers(bucket)
        owned = {index for layer in layers for index in (layer.incoming, *layer.per_unit)}
        return [index for index in range(len(bucket.params)) if index not in owned]

    def _trace_utility(self, tile: Tile) -> None:
        bucket, beta = tile.bucket, tile.bucket.group["beta_utility"]
        trace = tile.state["utility"].mul_(beta)
        for layer in self._hidden_layers(bucket):
            utility = self._utility(tile, layer.outgoing[0])
            for index in layer.outgoing[1:]:
                utility += self._utility(tile, index)
            # Every weight holds its unit's trace, so that traces and utilities have its shape.
            bucket.part(trace, layer.incoming).add_(utility.unsqueeze(-1), alpha=1 - beta)
            for index in layer.per_unit:
                bucket.part(trace, index).add_(utility, alpha=1 - beta)

    @staticmethod
    def _utility(tile: Tile, outgoing: int) -> Tensor:
        """What the loss would gain, through one of the next layers, if a unit's gate closed."""
        bucket = tile.bucket
        weights = bucket.part(tile.weights, outgoing)
        utility = -(weights * bucket.part(tile.gradients, outgoing)).sum(-2)
        if bucket.group["order"] == "second":
            curvature = bucket.part(tile.curvature, outgoing)
            utility += (weights * weights * curvature).sum(-2).mul_(0.5)
        return utility

    def _gate(self, tile: Tile, largest: Tensor | None) -> Tensor:
        gate = super()._gate(tile, largest)
        for index in self._unitless(tile.bucket):
            tile.bucket.part(gate, index).fill_(1.0)
        return gate

    def _local_gate(self, tile: Tile) -> Tensor:
        bucket, gate = tile.bucket, tile.scratch[0].zero_()
        for layer in self._hidden_layers(bucket):
            trace = bucket.part(tile.state["utility"], layer.incoming)[..., 0]
            ratio = trace / norms_of(trace, correction_of(bucket)).neg_()
            bucket.part(gate, layer.incoming).copy_(ratio.unsqueeze(-1))
            for index in layer.per_unit:
                bucket.part(gate, index).copy_(ratio)
        return gate.sigmoid_().nan_to_num_(nan=0.5)

    def _noise_for(self, tile: Tile) -> Tensor | None:
        noise = super()._noise_for(tile)
        if noise is not None:
            for index in self._unitless(tile.bucket):
                tile.bucket.part(noise, index).zero_()
        return noise

    def _splits_rows(self, group: dict[str, Any]) -> bool:
        return False


def _layers_by_shape(bucket: Bucket) -> list[HiddenLayer]:
    """See `FeatureUPGD`."""
    shapes = bucket.row_shapes
    matrices = [index for index, shape in enumerate(shapes) if len(shape) == 2]
    return [
        HiddenLayer(
            incoming,
            [i for i in range(incoming + 1, outgoing) if shapes[i] == (shapes[incoming][0],)],
            [outgoing],
        )
        for incoming, outgoing in pairwise(matrices)
        if shapes[incoming][0] == shapes[outgoing][1]
    ]


def _outgoing(layer: Layer) -> list[str]:
    return [name for name in (layer.outgoing, *layer.also_outgoing) if name is not None]
