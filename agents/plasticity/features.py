"""Statistics of a layer's features: H [..., batch, units] → [...], any leading axes.

A member, a layer or a seed is a leading axis; nothing is ever mixed across them. Results are
float64 on the device of the features.

Degenerate features are defined: an all-zero layer has every rank 0 and is wholly dormant; a
constant one has rank 1; a layer with a NaN or an infinite entry (or one beyond 1e150, whose square
is infinite) gives NaN there and nowhere else.
"""

from __future__ import annotations

import torch
from torch import Tensor

from upgd_ppo.agents.networks.activations import activation_named
from upgd_ppo.agents.plasticity import spectrum

MAX_SAMPLES = 1024
"""More samples than this move no statistic that a person would act on."""

DEAD_STD = 1e-3

RARELY = 0.01
"""A unit is rarely active when it is so on less than this share of the batch."""

_GOLDEN = (5**0.5 - 1) / 2


def select_samples(batch: Tensor, dim: int = 0, limit: int = MAX_SAMPLES) -> Tensor:
    """At most `limit` samples along an axis, spread evenly, drawing no random number.

    One is taken of each of `limit` equal stretches. Where in its stretch follows the golden ratio:
    a fixed stride would see one environment alone where samples of several alternate.
    """
    available = batch.shape[dim]
    if available <= limit:
        return batch
    bounds = torch.arange(limit + 1) * available // limit
    shares = torch.arange(limit, dtype=torch.float64) * _GOLDEN % 1
    chosen = bounds[:-1] + (shares * bounds.diff()).long()
    return batch.index_select(dim, chosen.to(batch.device))


def dormant_fraction(features: Tensor, threshold: float = 0.025) -> Tensor:
    """Fraction of units whose mean |h|, over the layer's mean |h|, is at most the threshold.

    Source: Sokar et al. (2023), "The dormant neuron phenomenon", definition 3.1.
    """
    activity = checked(features).abs().mean(-2)
    layer = activity.mean(-1, keepdim=True)
    return _fraction(activity <= threshold * layer, witness=layer.squeeze(-1))


def dead_fraction(features: Tensor, activation: str) -> Tensor:
    """Fraction of dead units: 0 on the whole batch (ReLU, ReLU6, CReLU); else std < 1e-3.

    The standard deviation is over the batch, uncorrected, so that one sample has one (0).

    Source: Moalla et al. (2024), "No representation, no trust", for ReLU and tanh. LeakyReLU, ELU
    and their like never rest at 0; judging them by their deviation is this project's extension
    (that paper's code calls a LeakyReLU unit dead when it is negative on the whole batch).
    """
    features = checked(features)
    if activation_named(activation).dead_at_zero:
        peak = features.abs().amax(-2)
        return _fraction(peak == 0, witness=peak.sum(-1))
    deviation = (features - features.mean(-2, keepdim=True)).square_().mean(-2).sqrt()
    return _fraction(deviation < DEAD_STD, witness=deviation.sum(-1))


def rarely_active_fraction(features: Tensor, activation: str) -> Tensor:
    """Fraction of units that are positive on less than 1 % of the batch, dead ones included.

    One active sample revives a dead unit; it takes 1 % of them to revive a rarely active one.

    Source: Dohare et al. (2024), "Loss of plasticity in deep continual learning", Methods: units
    that are active less than 1 % of the time.

    Raises:
        ValueError: if the activation does not rest at 0.
    """
    if not activation_named(activation).dead_at_zero:
        raise ValueError(
            f"Rarely active units are not defined for '{activation}'; they are for ReLU, ReLU6 and "
            "CReLU, whose units rest at 0."
        )
    features = checked(features)
    active = (features > 0).double().mean(-2)
    return _fraction(active < RARELY, witness=features.sum((-2, -1)))


def saturated_fraction(features: Tensor, activation: str) -> Tensor:
    """Fraction of entries where the nonlinearity passes almost no gradient; for ReLU the share of
    zeros, which is 1 − the share of active entries and about ½ in good health.

    |h| > 0.99 (tanh), h < 0.01 or > 0.99 (sigmoid), exactly 0 (ReLU).

    Source: Elsayed & Mahmood (2024); Abbas et al. (2023), "Loss of plasticity in continual deep
    reinforcement learning".

    Raises:
        ValueError: if the activation has no definition of saturation.
    """
    saturated = activation_named(activation).saturated
    if saturated is None:
        raise ValueError(
            f"Saturation is not defined for '{activation}'; it is for tanh, sigmoid, ReLU and "
            "their piecewise linear variants, so leave saturated_fraction out for this network."
        )
    features = checked(features)
    return _fraction(saturated(features).double().mean(-2), witness=features.sum((-2, -1)))


def feature_norm(features: Tensor) -> Tensor:
    """Mean over the batch of ‖h‖₂."""
    norm = torch.linalg.vector_norm(checked(features), dim=-1).mean(-1)
    return torch.where(norm.isfinite(), norm, torch.nan)


def nonfinite_count(features: Tensor, gram: Tensor) -> Tensor:
    """Number of NaN and infinite entries of each of features [n, batch, units]: [n].

    A finite Gram matrix [n, k, k] proves the features finite; only the others are looked at.
    """
    suspect = ~gram.isfinite().flatten(1).all(1)
    count = torch.zeros(len(features), dtype=torch.float64, device=features.device)
    if suspect.any():
        count[suspect] = (~features[suspect].isfinite()).double().sum((-2, -1))
    return count


def effective_rank(features: Tensor) -> Tensor:
    """exp of the entropy of the normalised singular values (Roy & Vetterli, 2007)."""
    return spectrum.effective_rank_of(spectrum.singular_values(checked(features)))


def stable_rank(features: Tensor) -> Tensor:
    """Σσ²/σ₁² (Rudelson & Vershynin, 2007). Not `srank`, which some projects call so."""
    return spectrum.stable_rank_of(spectrum.singular_values(checked(features)))


def srank(features: Tensor) -> Tensor:
    """Smallest k whose k largest singular values hold 99 % of their sum (Kumar et al., 2021)."""
    return spectrum.srank_of(spectrum.singular_values(checked(features)))


def approximate_rank(features: Tensor) -> Tensor:
    """Smallest k whose k largest σ² hold 99 % of their sum (Yang et al., 2020)."""
    return spectrum.approximate_rank_of(spectrum.singular_values(checked(features)))


def feature_rank(features: Tensor, threshold: float = 0.01) -> Tensor:
    """Number of singular values with σ/√batch > threshold (Lyle et al., 2022)."""
    values = spectrum.singular_values(checked(features))
    return spectrum.feature_rank_of(values, features.shape[-2], threshold)


def checked(features: Tensor, convert: bool = True) -> Tensor:
    """Features in float64, or as they are.

    Raises:
        ValueError: if they are no features.
    """
    if features.ndim < 2 or not features.is_floating_point() or features.numel() == 0:
        raise ValueError(
            f"Features must be a non-empty floating-point tensor [..., batch, units], but a tensor "
            f"of {features.dtype} with shape {tuple(features.shape)} was given."
        )
    return features.double() if convert else features


def _fraction(flags: Tensor, witness: Tensor) -> Tensor:
    """Mean of flags [..., units] over units, NaN where the witness [...] is not finite."""
    return torch.where(witness.isfinite(), flags.double().mean(-1), torch.nan)
