"""Every statistic, declared once.

Tables, TensorBoard's page, early warnings and the tests of the documentation iterate over these
declarations. A new statistic is a function, a declaration here, and a row in docs/plasticity.md.
"""

from __future__ import annotations

import enum
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from operator import itemgetter
from typing import Any, Literal

from torch import Tensor

from upgd_ppo.agents.networks.activations import Activation, activation_named
from upgd_ppo.agents.plasticity import features, optimizer_statistics, probe, spectrum, weights


class Of(enum.Enum):
    """What a statistic is of."""

    FEATURES = "a hidden layer's activations"
    WEIGHTS = "a weight matrix, or all parameters of a network"
    OPTIMIZER = "what the optimizer remembers of these"
    PROBE = "a network that is trained on something new"
    LEARNER = "the learner, which tells of it itself"


ARGUMENTS: dict[Of, tuple[str, ...]] = {
    Of.FEATURES: ("features", "activation", "gram", "singular_values", "samples"),
    Of.WEIGHTS: ("weights", "initial", "previous", "gradients", "singular_values"),
    Of.OPTIMIZER: ("utilities", "scaled_utilities", "quartiles", "directions"),
    Of.PROBE: (),
    Of.LEARNER: (),
}
"""What the functions may take, by name.

`features` are [n, batch, units] in float64, `activation` is the name of their nonlinearity, `gram`
their Gram matrices [n, k, k], `singular_values` [..., k] descend, `samples` is the size of the
batch. All others are [S, …], or several tensors that count as one; see `weight_statistics`.
`quartiles` [3, S] are those of the scaled utilities.
"""

SECTIONS = (
    "Lost units",
    "Ranks of the features",
    "Norms",
    "The optimizer",
    "Trainability",
)
"""Of TensorBoard's page under Custom Scalars, below the returns."""
DETAILS = ("Weights in detail", "Other ranks")
"""Sections that a full TensorBoard has, too."""


@dataclass(frozen=True)
class Limit:
    """Where trouble begins, as an early warning judges it.

    Attributes:
        name: the setting that moves it.
        value: by default; a rule of thumb, where a healthy run does not go.
        above: whether trouble is above it rather than below.
        meaning: what a crossing means.
        relative: it is a share of the early value.
        output_layer: whether output layers are judged, too.
        bounded: if not None, it is for layers whose nonlinearity is, or is not, bounded.
    """

    name: str
    value: float
    above: bool
    meaning: str
    relative: bool = False
    output_layer: bool = True
    bounded: bool | None = None


@dataclass(frozen=True)
class Statistic:
    """One statistic.

    Attributes:
        name: in tables, records and tags. Where there is one for each dimension of the action,
            theirs end in the dimension: "std_2".
        of: what it is of.
        formula: how it is defined, in a line.
        source: where it is from.
        compute: gives it, [...] for every leading axis; None where the learner tells of it.
        takes: the arguments of `compute`, of those in `ARGUMENTS`.
        defined_for: the nonlinearities that it is defined for; None is all.
        section: of TensorBoard's page; None leaves it out.
        brief: whether a brief TensorBoard has its curve, one for each network of a seed.
        figure: the report's figure that shows it.
        limits: of its early warnings.
    """

    name: str
    of: Of
    formula: str
    source: str = ""
    compute: Callable[..., Tensor] | None = None
    takes: tuple[str, ...] = ()
    defined_for: Callable[[Activation], bool] | None = None
    section: str | None = None
    brief: bool = False
    figure: Literal["features", "weights"] | None = None
    limits: tuple[Limit, ...] = ()

    def __post_init__(self) -> None:
        for name in self.takes:
            if name not in ARGUMENTS[self.of]:
                raise ValueError(
                    f"{self.name} takes {name!r}, but a statistic of {self.of.value} may take"
                    f" {', '.join(ARGUMENTS[self.of]) or 'nothing'}."
                )
        if self.section not in (None, *SECTIONS, *DETAILS):
            raise ValueError(
                f"{self.name} is in {self.section!r}, which is no section; sections are"
                f" {', '.join((*SECTIONS, *DETAILS))}."
            )

    def allowed_by(self, given: Mapping[str, Any]) -> bool:
        """Whether these arguments are enough, and their nonlinearity is one it is defined for."""
        if not self.takes or not given.keys() >= set(self.takes):
            return False
        return self.defined_for is None or self.defined_for(activation_named(given["activation"]))


def compute(of: Of, **given: Any) -> dict[str, Tensor]:
    """The statistics, by name, that these arguments allow."""
    return {
        statistic.name: statistic.compute(*(given[name] for name in statistic.takes))
        for statistic in CATALOGUE.values()
        if statistic.of is of and statistic.compute and statistic.allowed_by(given)
    }


def in_section(section: str) -> list[str]:
    """The names of a section's statistics."""
    return [name for name, statistic in CATALOGUE.items() if statistic.section == section]


def _features(name: str, formula: str, function: Callable[..., Tensor], **more: Any) -> Statistic:
    return Statistic(name, Of.FEATURES, formula, compute=function, **more)


def _rank(name: str, formula: str, function: Callable[..., Tensor], **more: Any) -> Statistic:
    more = {"takes": ("singular_values",), **more}
    return Statistic(name, Of.FEATURES, formula, compute=function, **more)


def _weights(name: str, formula: str, function: Callable[..., Tensor], **more: Any) -> Statistic:
    more = {"takes": ("weights",), **more}
    return Statistic(name, Of.WEIGHTS, formula, compute=function, **more)


def _optimizer(name: str, formula: str, function: Callable[..., Tensor], **more: Any) -> Statistic:
    return Statistic(name, Of.OPTIMIZER, formula, compute=function, **more)


_STATISTICS = (
    # Units of a hidden layer
    _features(
        "dormant_fraction",
        "share of units with mean |h| ≤ 0.025 of the layer's mean",
        features.dormant_fraction,
        takes=("features",),
        source="Sokar et al. (2023)",
        section="Lost units",
        brief=True,
        figure="features",
        limits=(Limit("warn_dormant_fraction", 0.3, True, "units are falling silent"),),
    ),
    _features(
        "dead_fraction",
        "share of units that are 0 on the whole batch (ReLU), or whose std is under 1e-3",
        features.dead_fraction,
        takes=("features", "activation"),
        source="Moalla et al. (2024)",
        section="Lost units",
        brief=True,
        figure="features",
    ),
    _features(
        "saturated_fraction",
        "share of entries where the nonlinearity passes almost no gradient",
        features.saturated_fraction,
        takes=("features", "activation"),
        defined_for=lambda activation: activation.saturated is not None,
        source="Elsayed & Mahmood (2024), Abbas et al. (2023)",
        section="Lost units",
        brief=True,
        figure="features",
        limits=(
            Limit("warn_saturated_fraction", 0.5, True, "little gradient passes", bounded=True),
            # Half of a ReLU's entries are 0 in good health.
            Limit("warn_inactive_fraction", 0.9, True, "little gradient passes", bounded=False),
        ),
    ),
    _features(
        "rarely_active_fraction",
        "share of units that are positive on less than 1 % of the batch",
        features.rarely_active_fraction,
        takes=("features", "activation"),
        defined_for=lambda activation: activation.dead_at_zero,
        source="Dohare et al. (2024)",
    ),
    # Ranks of a hidden layer's features
    _rank(
        "effective_rank",
        "exp(−Σ q·ln q), q = σ/Σσ",
        spectrum.effective_rank_of,
        source="Roy & Vetterli (2007)",
        section="Ranks of the features",
        brief=True,
        figure="features",
        limits=(Limit("warn_rank_fraction", 0.4, False, "features are collapsing", relative=True),),
    ),
    _rank(
        "stable_rank",
        "Σσ²/σ₁²",
        spectrum.stable_rank_of,
        source="Rudelson & Vershynin (2007)",
        section="Ranks of the features",
        figure="features",
    ),
    _rank(
        "srank",
        "smallest k with Σ_{i≤k} σᵢ ≥ 0.99·Σσ",
        spectrum.srank_of,
        source="Kumar et al. (2021)",
        section="Other ranks",
    ),
    _rank(
        "approximate_rank",
        "smallest k with Σ_{i≤k} σᵢ² ≥ 0.99·Σσ²",
        spectrum.approximate_rank_of,
        source="Yang et al. (2020)",
        section="Other ranks",
    ),
    _rank(
        "feature_rank",
        "number of σ/√batch > 0.01",
        spectrum.feature_rank_of,
        takes=("singular_values", "samples"),
        source="Lyle et al. (2022)",
        section="Ranks of the features",
    ),
    # Sizes of a hidden layer's features
    _features(
        "feature_norm",
        "mean ‖h‖₂",
        features.feature_norm,
        takes=("features",),
        section="Norms",
        figure="features",
    ),
    _features(
        "nonfinite_count",
        "NaN and infinite entries",
        features.nonfinite_count,
        takes=("features", "gram"),
    ),
    # Weight matrices, and whole networks
    _weights("weight_l2", "‖W‖₂", weights.weight_l2, section="Norms", brief=True, figure="weights"),
    _weights(
        "weight_rank",
        "effective rank of the matrix",
        spectrum.effective_rank_of,
        takes=("singular_values",),
        source="Roy & Vetterli (2007)",
        section="Weights in detail",
    ),
    _weights("weight_mean_abs", "mean |w|", weights.weight_mean_abs, section="Weights in detail"),
    _weights("weight_max_abs", "max |w|", weights.weight_max_abs, section="Weights in detail"),
    _weights(
        "distance_from_init",
        "‖W − W₀‖₂ / ‖W₀‖₂",
        weights.distance_from_init,
        takes=("weights", "initial"),
        section="Weights in detail",
        figure="weights",
    ),
    _weights(
        "update_ratio",
        "‖W after − W before the iteration‖₂ / ‖W after‖₂",
        weights.update_ratio,
        takes=("weights", "previous"),
        section="Norms",
        figure="weights",
        # An actor's output layer starts near 0: in good health it moves by its own norm at first.
        limits=(
            Limit("warn_update_ratio", 0.5, True, "updates are too large", output_layer=False),
        ),
    ),
    _weights(
        "gradient_l2",
        "‖g‖₂ of the last minibatch, before clipping",
        weights.gradient_l2,
        takes=("gradients",),
        section="Weights in detail",
        figure="weights",
    ),
    _weights(
        "gradient_zero_fraction",
        "share of gradient entries that are exactly 0",
        weights.gradient_zero_fraction,
        takes=("gradients",),
        section="Weights in detail",
    ),
    # What the optimizer does to them
    _optimizer(
        "effective_step",
        "mean |m̂/(√v̂ + eps)|",
        optimizer_statistics.effective_step,
        takes=("directions",),
        section="The optimizer",
    ),
    _optimizer(
        "protected_fraction",
        "share of weights with a scaled utility s > 0.6",
        optimizer_statistics.protected_fraction,
        takes=("scaled_utilities",),
        section="The optimizer",
    ),
    *(
        _optimizer(
            f"scaled_utility_q{percent}",
            f"the {percent} % quantile of the scaled utility s",
            itemgetter(number),
            takes=("quartiles",),
            section="The optimizer" if percent == 50 else None,
        )
        for number, percent in enumerate(optimizer_statistics.QUARTILES)
    ),
    _optimizer(
        "utility_mean",
        "mean of the bias-corrected utility trace",
        optimizer_statistics.utility_mean,
        takes=("utilities",),
        source="Elsayed & Mahmood (2024)",
    ),
    _optimizer(
        "utility_max",
        "largest bias-corrected utility",
        optimizer_statistics.utility_max,
        takes=("utilities",),
        source="Elsayed & Mahmood (2024)",
    ),
    # Whole networks, and the policy
    Statistic(
        "trainability",
        Of.PROBE,
        "final error of the network on random targets, over that of fresh networks",
        source="Lyle et al., 2022",
        compute=probe.trainability,
        section="Trainability",
        brief=True,
    ),
    Statistic(
        "std",
        Of.LEARNER,
        "standard deviation of the policy in a dimension of the action",
        limits=(
            Limit("warn_std_below", 0.05, False, "the policy no longer explores"),
            Limit("warn_std_above", 5.0, True, "actions are mostly noise"),
        ),
    ),
    Statistic(
        "approx_kl",
        Of.LEARNER,
        "approximate KL divergence of the policies before and after an iteration",
        limits=(Limit("warn_kl", 0.2, True, "the policy moves too far at once"),),
    ),
)

CATALOGUE = {statistic.name: statistic for statistic in _STATISTICS}
"""Name → statistic, in the order of tables and of TensorBoard's sections."""
