"""What is measured of the members' networks while they train, and how often."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from upgd_ppo.agents.networks.layers import Layer
from upgd_ppo.agents.networks.stacked_mlp import StackedMLP
from upgd_ppo.agents.optimizers.population_optimizer import PopulationOptimizer
from upgd_ppo.agents.optimizers.separate import SeparateOptimizers
from upgd_ppo.agents.plasticity import (
    StatisticsTable,
    population_statistics,
    select_samples,
    trainability,
)
from upgd_ppo.agents.plasticity.inspection import Inspection
from upgd_ppo.agents.plasticity.population_statistics import Key
from upgd_ppo.agents.settings.config import PlasticityConfig

HISTOGRAM_BINS = 30
"""As many as TensorBoard itself makes."""


class Inspector:
    """Measures the networks of some members whenever it is due. It reads only, and draws nothing
    from a live random stream.

    Args:
        config: what, and how often.
        seeds: the members' seeds, which the probe derives its own random networks from.
    """

    def __init__(self, config: PlasticityConfig, seeds: Sequence[int]) -> None:
        self.config = config
        self.seeds = seeds

    @torch.no_grad()
    def inspect(
        self,
        iteration: int,
        networks: Mapping[str, StackedMLP],
        optimizer: PopulationOptimizer | SeparateOptimizers,
        observations: Tensor,
        *,
        initial: Tensor,
        previous: Tensor,
        gradient: Tensor,
        own: Callable[[Tensor], Mapping[Key, Tensor]] | None = None,
        is_last: bool = False,
    ) -> Inspection | None:
        """What is due after that iteration, or None.

        Args:
            iteration: iterations done, from 1.
            networks: name → as the iteration left it; all have the same parameters.
            optimizer: what steps them.
            observations: [S, samples, O] that they have just learned from.
            initial: the flat parameters [S, D] at initialisation.
            previous: those before the iteration.
            gradient: [S, D], of the last minibatch before it was clipped.
            own: what the learner itself measures, [S] by key, of the samples that are measured.
            is_last: whether it is the last iteration of the run, at which everything is due.
        """
        # What is due
        config = self.config
        statistics = _due(config.statistics_every, iteration, is_last)
        histograms = config.tensorboard == "full" and _due(
            config.histograms_every, iteration, is_last
        )
        probe = _due(config.probe_every, iteration, is_last)
        if not (statistics or histograms or probe):
            return None
        # What the optimizer and the hidden units make of the samples
        observations = select_samples(observations, dim=1)
        parameters = next(iter(networks.values())).parameters
        memory = optimizer.describe() if statistics or histograms else {}
        layers = [layer for mlp in networks.values() for layer in mlp.all_layers]
        features: dict[Layer, Tensor] = {}
        if statistics or histograms:
            for mlp in networks.values():
                activations = mlp.hidden_activations(observations)
                features |= zip(mlp.hidden_layers, activations, strict=True)

        # Statistics of every layer, and the learner's own
        tables = []
        if statistics:
            tables = [
                population_statistics(
                    layers,
                    features,
                    parameters.views,
                    initial=parameters.named_views(initial),
                    previous=parameters.named_views(previous),
                    gradients=parameters.named_views(gradient),
                    **memory,
                )
            ]
            if own is not None:
                tables.append(StatisticsTable.from_columns(own(observations)))
        # The probe
        if probe:
            columns = {
                (name, "all", "trainability"): trainability(
                    mlp.all_layers, parameters.views, observations, self.seeds
                )
                for name, mlp in networks.items()
            }
            tables.append(StatisticsTable.from_columns(columns))
        # Histograms
        return Inspection(
            StatisticsTable.beside(tables, len(self.seeds)),
            _histograms(layers, features, parameters.views, memory) if histograms else {},
        )


def _due(every: int, iteration: int, is_last: bool) -> bool:
    """At the first iteration, regularly from there, and at the last one, so that every curve has
    its beginning and its end."""
    return every > 0 and ((iteration - 1) % every == 0 or is_last)


def _histograms(
    layers: Sequence[Layer],
    features: Mapping[Layer, Tensor],
    weights: Mapping[str, Tensor],
    memory: Mapping[str, Mapping[str, Tensor]],
) -> dict[str, NDArray]:
    tensors = {
        f"unit_activations/{layer.network}/{layer.name}": activations
        for layer, activations in features.items()
    }
    kinds = {"weights": weights}
    if "scaled_utilities" in memory:
        kinds["scaled_utilities"] = memory["scaled_utilities"]
    tensors |= {
        f"{kind}/{layer.network}/{layer.name}": named[layer.incoming]
        for kind, named in kinds.items()
        for layer in layers
    }
    return {
        name: np.stack([_histogram(values) for values in tensor.flatten(1).cpu().numpy()])
        for name, tensor in tensors.items()
    }


def _histogram(values: NDArray) -> NDArray:
    """[bins, 3] of the finite values: left edge, right edge and count."""
    # In double precision there is room for edges even between neighbours of single precision.
    values = values[np.isfinite(values)].astype(np.float64)
    counts, edges = np.histogram(values, HISTOGRAM_BINS)
    return np.stack([edges[:-1], edges[1:], counts], axis=1)
