"""All statistics of a whole population in one flat table."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from upgd_ppo.agents.networks.layers import Layer
from upgd_ppo.agents.plasticity import spectrum
from upgd_ppo.agents.plasticity.features import MAX_SAMPLES
from upgd_ppo.agents.plasticity.layer_statistics import (
    elementwise_statistics,
    rank_statistics,
    weight_rank_statistics,
    weight_statistics,
)
from upgd_ppo.agents.plasticity.rows import Row

Key = tuple[str, str, str]
"""(network, layer, statistic)."""

NamedTensors = Mapping[str, Tensor]


@dataclass(frozen=True)
class StatisticsTable:
    """Statistics of S members at one moment.

    Attributes:
        keys: (network, layer, statistic) of each column, in a stable order.
        values: float64 [S, len(keys)].
    """

    keys: list[Key]
    values: NDArray[np.float64]

    def of(self, members: Sequence[int] | NDArray) -> StatisticsTable:
        """The table of these members alone."""
        return StatisticsTable(self.keys, self.values[members])

    def rows(
        self, step: int | Sequence[int], members: Sequence[int] | NDArray | None = None
    ) -> Iterator[Row]:
        """One row per member and statistic; `step` is common or one per member."""
        members = range(len(self.values)) if members is None else members
        steps = np.broadcast_to(np.asarray(step), len(self.values))
        for member, member_step, values in zip(members, steps, self.values, strict=True):
            for key, value in zip(self.keys, values, strict=True):
                yield Row(int(member), int(member_step), *key, float(value))

    def columns(
        self, step: int | Sequence[int], members: Sequence[int] | NDArray | None = None
    ) -> dict[str, NDArray[Any]]:
        """The same rows as arrays by column: member, step, network, layer, statistic, value."""
        count = len(self.values)
        members = range(count) if members is None else members
        network, layer, statistic = np.array(self.keys, dtype=object).reshape(-1, 3).T
        width = len(self.keys)
        return {
            "member": np.repeat(np.asarray(members, dtype=np.int32), width),
            "step": np.repeat(np.broadcast_to(np.asarray(step, dtype=np.int64), count), width),
            "network": np.tile(network, count),
            "layer": np.tile(layer, count),
            "statistic": np.tile(statistic, count),
            "value": self.values.reshape(-1),
        }

    @staticmethod
    def from_columns(columns: Mapping[Key, Tensor]) -> StatisticsTable:
        """A table of the statistics [S] by (network, layer, statistic)."""
        values = [value.double().cpu().numpy() for value in columns.values()]
        return StatisticsTable(list(columns), np.stack(values, axis=1))

    @staticmethod
    def beside(tables: Sequence[StatisticsTable], members: int) -> StatisticsTable:
        """Different statistics of the same members as one table, empty if there are none."""
        keys = [key for table in tables for key in table.keys]
        empty = np.empty((members, 0))
        return StatisticsTable(
            keys, np.concatenate([empty, *(table.values for table in tables)], axis=1)
        )

    @staticmethod
    def concatenate(tables: Sequence[StatisticsTable]) -> StatisticsTable:
        """Blocks of members, each measured on its own thread, as one table."""
        keys = tables[0].keys
        if any(table.keys != keys for table in tables):
            raise ValueError("Tables of different statistics cannot be concatenated by member.")
        return StatisticsTable(keys, np.concatenate([table.values for table in tables]))


@torch.no_grad()
def population_statistics(
    layers: Sequence[Layer],
    features: Mapping[Layer, Tensor],
    parameters: NamedTensors,
    *,
    initial: NamedTensors | None = None,
    previous: NamedTensors | None = None,
    gradients: NamedTensors | None = None,
    utilities: NamedTensors | None = None,
    scaled_utilities: NamedTensors | None = None,
    directions: NamedTensors | None = None,
) -> StatisticsTable:
    """Every statistic of every layer of every member, with one decomposition per size of matrix.

    On a CPU members are measured one after the other: what a reduction or a product over several
    of them rounds to depends on how many there are.

    Tensors are stacked, axis 0 the members. Every parameter whose name starts with "actor." counts
    in the statistics of the whole actor, whose layer is "all". What is not given is not reported.

    Args:
        layers: of every network, output layers included.
        features: of the hidden ones, activations [S, batch, units]; beyond `MAX_SAMPLES` samples,
            evenly spaced ones are used.
        parameters: the current parameters by name.
        initial: those at initialisation.
        previous: those before the iteration.
        gradients: of the last minibatch, before clipping.
        utilities: UPGD's (bias-corrected) utility traces.
        scaled_utilities: UPGD's scaled utilities s.
        directions: Adam's m̂/(√v̂ + eps), see `optimizers.memory.adam_direction`.

    Raises:
        ValueError: if the activation is unknown or shapes do not fit.
    """
    sources = {
        "initial": initial,
        "previous": previous,
        "gradients": gradients,
        "utilities": utilities,
        "scaled_utilities": scaled_utilities,
        "directions": directions,
    }
    first = next(iter(parameters.values()))
    width = 1 if first.device.type == "cpu" else len(first)

    def measured(start: int) -> StatisticsTable:
        span = slice(start, start + width)

        def own(named: NamedTensors) -> NamedTensors:
            return {name: tensor[span] for name, tensor in named.items()}

        return _statistics(
            layers,
            {layer: activations[span] for layer, activations in features.items()},
            own(parameters),
            **{name: None if named is None else own(named) for name, named in sources.items()},
        )

    return StatisticsTable.concatenate([measured(s) for s in range(0, len(first), width)])


def _statistics(
    layers: Sequence[Layer],
    features: Mapping[Layer, Tensor],
    parameters: NamedTensors,
    **sources: NamedTensors | None,
) -> StatisticsTable:
    """Those of some members, all together."""
    table: dict[tuple[str, str], dict[str, Tensor]] = {}
    matrices = {(layer.network, layer.name): layer.incoming for layer in layers}
    grams: dict[tuple[str, str], Tensor] = {}
    batches: dict[tuple[str, str], int] = {}
    for layer, activations in features.items():
        place = (layer.network, layer.name)
        table[place], grams[place] = elementwise_statistics(activations, layer.activation)
        batches[place] = min(activations.shape[1], MAX_SAMPLES)

    values = spectrum.singular_values_from_grams(
        [*grams.values(), *(spectrum.gram_matrix(parameters[name]) for name in matrices.values())]
    )
    for place, layer_values in zip(grams, values, strict=False):
        table[place] |= rank_statistics(layer_values, batches[place])
    weight_values = dict(zip(matrices, values[len(grams) :], strict=True))

    def describe(names: list[str]) -> dict[str, Tensor]:
        given = {"weights": parameters, **sources}
        return weight_statistics(
            **{
                kind: None if named is None else [named[name] for name in names]
                for kind, named in given.items()
            }
        )

    for place, name in matrices.items():
        table.setdefault(place, {}).update(
            describe([name]) | weight_rank_statistics(weight_values[place])
        )
    for network in dict.fromkeys(network for network, _ in matrices):
        names = [name for name in parameters if name.startswith(f"{network}.")]
        table[network, "all"] = describe(names)
    return _flatten(table)


def _flatten(table: dict[tuple[str, str], dict[str, Tensor]]) -> StatisticsTable:
    return StatisticsTable.from_columns(
        {
            (*place, statistic): value
            for place, statistics in table.items()
            for statistic, value in statistics.items()
        }
    )
