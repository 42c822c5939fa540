"""How able a network still is to learn: statistics per layer, early warnings, a trainability probe.

Statistics take plain tensors [..., batch, units] and any leading axes; `measure` takes any
`torch.nn.Module`; `population_statistics` takes a whole population at once. Nothing here changes
a network or draws from a live random stream.
"""

from upgd_ppo.agents.optimizers.memory import adam_direction
from upgd_ppo.agents.plasticity.catalogue import CATALOGUE, Statistic
from upgd_ppo.agents.plasticity.early_warnings import EarlyWarning, EarlyWarningMonitor
from upgd_ppo.agents.plasticity.features import (
    approximate_rank,
    dead_fraction,
    dormant_fraction,
    effective_rank,
    feature_norm,
    feature_rank,
    rarely_active_fraction,
    saturated_fraction,
    select_samples,
    srank,
    stable_rank,
)
from upgd_ppo.agents.plasticity.layer_statistics import feature_statistics, weight_statistics
from upgd_ppo.agents.plasticity.measure import Measurement, measure
from upgd_ppo.agents.plasticity.optimizer_statistics import (
    effective_step,
    plasticity,
    protected_fraction,
    utility_max,
    utility_mean,
    utility_quartiles,
)
from upgd_ppo.agents.plasticity.population_statistics import StatisticsTable, population_statistics
from upgd_ppo.agents.plasticity.probe import module_trainability, trainability
from upgd_ppo.agents.plasticity.rows import Row
from upgd_ppo.agents.plasticity.weights import (
    distance_from_init,
    gradient_l2,
    gradient_zero_fraction,
    update_ratio,
    weight_l2,
    weight_max_abs,
    weight_mean_abs,
    weight_rank,
)

__all__ = [
    "CATALOGUE",
    "EarlyWarning",
    "EarlyWarningMonitor",
    "Measurement",
    "Row",
    "Statistic",
    "StatisticsTable",
    "adam_direction",
    "approximate_rank",
    "dead_fraction",
    "distance_from_init",
    "dormant_fraction",
    "effective_rank",
    "effective_step",
    "feature_norm",
    "feature_rank",
    "feature_statistics",
    "gradient_l2",
    "gradient_zero_fraction",
    "measure",
    "module_trainability",
    "plasticity",
    "population_statistics",
    "protected_fraction",
    "rarely_active_fraction",
    "saturated_fraction",
    "select_samples",
    "srank",
    "stable_rank",
    "trainability",
    "update_ratio",
    "utility_max",
    "utility_mean",
    "utility_quartiles",
    "weight_l2",
    "weight_max_abs",
    "weight_mean_abs",
    "weight_rank",
    "weight_statistics",
]
