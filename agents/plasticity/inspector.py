"""What is measured of the members' networks while they train, and how often."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from upgd_ppo.agents.networks.actor_critic import ActorCritic
from upgd_ppo.agents.networks.stacked_mlp import StackedMLP
from upgd_ppo.agents.optimizers.population_optimizer import PopulationOptimizer
from upgd_ppo.agents.optimizers.separate import SeparateOptimizers
from upgd_ppo.agents.plasticity import (
    StatisticsTable,
    population_statistics,
    select_samples,
    trainability,
)
from upgd_ppo.agents.settings.config import PlasticityConfig

HISTOGRAM_BINS = 30
"""As many as TensorBoard itself makes."""


@dataclass(frozen=True)
class Inspection:
    """What was measured of S members after one iteration.

    Attributes:
        table: every statistic of every layer.
        histograms: "weights/NETWORK/LAYER", "unit_activations/…", "scaled_utilities/…" →
            [S, bins, 3]: left edge, right edge and count.
    """

    table: StatisticsTable
    histograms: dict[str, NDArray]

    @staticmethod
    def concatenate(inspections: Sequence[Inspection | None]) -> Inspection | None:
        """Those of blocks of members, measured at the same iteration, as one."""
        measured = [inspection for inspection in inspections if inspection is not None]
        if not measured:
            return None
        return Inspection(
            StatisticsTable.concatenate([inspection.table for inspection in measured]),
            {
                name: np.concatenate([inspection.histograms[name] for inspection in measured])
                for name in measured[0].histograms
            },
        )


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
        networks: ActorCritic,
        optimizer: PopulationOptimizer | SeparateOptimizers,
        observations: Tensor,
        *,
        initial: Tensor,
        previous: Tensor,
        gradient: Tensor,
        is_last: bool = False,
    ) -> Inspection | None:
        """What is due after that iteration, or None.

        Args:
            iteration: iterations done, from 1.
            networks: as the iteration left them.
            optimizer: what steps them.
            observations: [S, samples, O] of the latest rollout.
            initial: the flat parameters [S, D] at initialisation.
            previous: those before the iteration.
            gradient: [S, D], of the last minibatch before it was clipped.
            is_last: whether it is the last iteration of the run, at which everything is due.
        """
        config = self.config
        statistics = _due(config.statistics_every, iteration, is_last)
        histograms = config.tensorboard == "full" and _due(
            config.histograms_every, iteration, is_last
        )
        probe = _due(config.probe_every, iteration, is_last)
        if not (statistics or histograms or probe):
            return None
        observations = select_samples(observations, dim=1)
        mlps = {"actor": networks.actor, "critic": networks.critic}
        memory = optimizer.describe() if statistics or histograms else {}
        features: dict[str, list[Tensor]] = {}
        if statistics or histograms:
            features = {name: mlp.hidden_activations(observations) for name, mlp in mlps.items()}

        tables = []
        if statistics:
            parameters = networks.parameters
            tables = [
                population_statistics(
                    features,
                    networks.activation_name,
                    parameters.views,
                    initial=parameters.named_views(initial),
                    previous=parameters.named_views(previous),
                    gradients=parameters.named_views(gradient),
                    **memory,
                ),
                _action_std(networks, observations),
            ]
        if probe:
            columns = {
                (name, "all", "trainability"): self._probe(networks, mlp, observations)
                for name, mlp in mlps.items()
            }
            tables.append(StatisticsTable.from_columns(columns))
        return Inspection(
            StatisticsTable.beside(tables, len(self.seeds)),
            _histograms(features, networks, memory) if histograms else {},
        )

    def _probe(self, networks: ActorCritic, mlp: StackedMLP, observations: Tensor) -> Tensor:
        views = networks.parameters.views
        layers = [*mlp.layers, mlp.output_layer]
        return trainability(
            [views[f"{layer}.weight"] for layer in layers],
            [views[f"{layer}.bias"] for layer in layers],
            networks.activation_name,
            observations,
            self.seeds,
            norms=[
                (views[f"{layer}.norm_weight"], views[f"{layer}.norm_bias"])
                for layer in mlp.layers
                if mlp.layer_norm
            ],
        )


def _due(every: int, iteration: int, is_last: bool) -> bool:
    """At the first iteration, regularly from there, and at the last one, so that every curve has
    its beginning and its end."""
    return every > 0 and ((iteration - 1) % every == 0 or is_last)


def _action_std(networks: ActorCritic, observations: Tensor) -> StatisticsTable:
    """The policy's standard deviation in each dimension of the action."""
    if networks.state_dependent_std:
        std = networks.mean_stds(observations).double()
    else:
        std = networks.log_std.double().exp()
    return StatisticsTable.from_columns(
        {("ppo", "", f"std_{dimension}"): std[:, dimension] for dimension in range(std.shape[1])}
    )


def _histograms(
    features: dict[str, list[Tensor]],
    networks: ActorCritic,
    memory: dict[str, dict[str, Tensor]],
) -> dict[str, NDArray]:
    tensors = {
        f"unit_activations/{network}/layer_{i}": layer
        for network, layers in features.items()
        for i, layer in enumerate(layers, start=1)
    }
    kinds = {"weights": networks.parameters.views}
    if "scaled_utilities" in memory:
        kinds["scaled_utilities"] = memory["scaled_utilities"]
    tensors |= {
        f"{kind}/{name.removesuffix('.weight').replace('.', '/')}": tensor
        for kind, named in kinds.items()
        for name, tensor in named.items()
        if name.endswith(".weight")
    }
    return {
        name: np.stack([_histogram(values) for values in tensor.flatten(1).cpu().numpy()])
        for name, tensor in tensors.items()
    }


def _histogram(values: NDArray) -> NDArray:
    """[bins, 3] of the finite values: left edge, right edge and count."""
    counts, edges = np.histogram(values[np.isfinite(values)], HISTOGRAM_BINS)
    return np.stack([edges[:-1], edges[1:], counts], axis=1)
