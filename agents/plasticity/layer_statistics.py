"""The catalogue's statistics of one layer or network, by name."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from upgd_ppo.agents.plasticity import catalogue, spectrum
from upgd_ppo.agents.plasticity.catalogue import Of
from upgd_ppo.agents.plasticity.features import MAX_SAMPLES, checked, select_samples
from upgd_ppo.agents.plasticity.optimizer_statistics import utility_quartiles
from upgd_ppo.agents.plasticity.weights import Tensors

# Entries processed at a time by `elementwise_statistics`: 4 MB in float64, so that they stay in
# cache.
_CHUNK_ENTRIES = 2**19


@torch.no_grad()
def feature_statistics(features: Tensor, activation: str) -> dict[str, Tensor]:
    """Every statistic of features [..., batch, units] by name, with one batched decomposition.

    Beyond `MAX_SAMPLES` samples, evenly spread ones are used. `saturated_fraction` is left out
    where the activation has no definition of saturation, `rarely_active_fraction` where its units
    do not rest at 0.
    """
    results, gram = elementwise_statistics(features, activation)
    [values] = spectrum.singular_values_from_grams([gram])
    batch = min(features.shape[-2], MAX_SAMPLES)
    return {**results, **rank_statistics(values, batch)}


def rank_statistics(values: Tensor, batch: int) -> dict[str, Tensor]:
    """The ranks by name, of the singular values [..., k] of features with that many samples."""
    return catalogue.compute(Of.FEATURES, singular_values=values, samples=batch)


def elementwise_statistics(features: Tensor, activation: str) -> tuple[dict[str, Tensor], Tensor]:
    """The statistics that need no decomposition, by name, and the Gram matrix for those that do.

    So that a caller with many layers can decompose the Gram matrices [..., k, k] of all together.
    """
    features = select_samples(checked(features, convert=False), dim=-2)
    *leading, batch, units = features.shape
    flat = features.reshape(-1, batch, units)
    parts: dict[str, list[Tensor]] = {}
    for chunk in flat.split(max(1, _CHUNK_ENTRIES // (batch * units))):
        chunk = chunk.double()
        gram = spectrum.gram_matrix(chunk)
        values = catalogue.compute(Of.FEATURES, features=chunk, activation=activation, gram=gram)
        for name, value in [*values.items(), ("gram", gram)]:
            parts.setdefault(name, []).append(value)
    joined = {name: torch.cat(values) for name, values in parts.items()}
    gram = joined.pop("gram")
    results = {name: value.reshape(leading) for name, value in joined.items()}
    return results, gram.reshape(*leading, *gram.shape[-2:])


@torch.no_grad()
def weight_statistics(
    weights: Tensors | None = None,
    initial: Tensors | None = None,
    previous: Tensors | None = None,
    gradients: Tensors | None = None,
    *,
    utilities: Tensors | None = None,
    scaled_utilities: Tensors | None = None,
    directions: Tensors | None = None,
) -> dict[str, Tensor]:
    """Every statistic of parameters by name that the given tensors allow, `weight_rank` aside.

    Args:
        weights: [S, …], or several such tensors for a whole network, as are all others.
        initial: the same at initialisation, for `distance_from_init`.
        previous: the same before the iteration, for `update_ratio`.
        gradients: the last minibatch's, before clipping.
        utilities: UPGD's (bias-corrected) utility traces.
        scaled_utilities: UPGD's scaled utilities s.
        directions: Adam's m̂/(√v̂ + eps), see `optimizers.memory.adam_direction`.
    """
    of_weights: dict[str, Any] = {
        "weights": weights,
        "initial": initial,
        "previous": previous,
        "gradients": gradients,
    }
    of_optimizer: dict[str, Any] = {
        "utilities": utilities,
        "scaled_utilities": scaled_utilities,
        # All three at once: selecting them is what takes time.
        "quartiles": None if scaled_utilities is None else utility_quartiles(scaled_utilities),
        "directions": directions,
    }
    return catalogue.compute(Of.WEIGHTS, **_given(of_weights)) | catalogue.compute(
        Of.OPTIMIZER, **_given(of_optimizer)
    )


def weight_rank_statistics(values: Tensor) -> dict[str, Tensor]:
    """The statistics of a weight matrix that its singular values [..., k] give, by name."""
    return catalogue.compute(Of.WEIGHTS, singular_values=values)


def _given(arguments: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in arguments.items() if value is not None}
