"""The page that TensorBoard shows under Custom Scalars: what to look at first, in order.

Every chart has one curve per arm, the mean over its seeds, with a band from the lowest to the
highest of them. The curves of single seeds are under the same tags in the Scalars tab.
"""

from __future__ import annotations

from collections.abc import Sequence

from tensorboard.plugins.custom_scalar.layout_pb2 import (
    Category,
    Chart,
    Layout,
    MarginChartContent,
    MultilineChartContent,
)

from agents.plasticity.population import Key

MEAN, LOWEST, HIGHEST = "seeds_mean", "seeds_min", "seeds_max"
"""What stands before a tag for the curves of a band. The mean is there under its plain tag too, but
a seed's run has that as well, and TensorBoard complains of a run that has only part of a band."""

FIRST_BANDS = {
    "return · mean and range over seeds": "rollout/ep_rew_mean",
    "policy std": "train/std",
    "approximate KL of an iteration, mean over its epochs": "train/approx_kl_mean",
}

SECTIONS: dict[str, tuple[str, ...]] = {
    "Lost units": ("dormant_fraction", "dead_fraction", "saturated_fraction"),
    "Ranks of the features": ("effective_rank", "stable_rank", "feature_rank"),
    "Norms": ("feature_norm", "weight_l2", "update_ratio"),
    "The optimizer": ("effective_step", "protected_fraction", "scaled_utility_q50"),
    "Trainability": ("trainability",),
    "Weights in detail": (
        "weight_rank",
        "weight_mean_abs",
        "weight_max_abs",
        "distance_from_init",
        "gradient_l2",
        "gradient_zero_fraction",
    ),
    "Other ranks": ("srank", "approximate_rank"),
}
OPEN = 4
"""Sections that are unfolded when the page opens, the returns among them."""


def plasticity_tag(key: Key) -> str:
    """The tag of a statistic: `plasticity/NETWORK/LAYER/STATISTIC`, or `train/…` of PPO's own."""
    network, layer, statistic = key
    return f"train/{statistic}" if network == "ppo" else f"plasticity/{network}/{layer}/{statistic}"


def layout(keys: Sequence[Key]) -> Layout:
    """The page for the statistics that are measured: returns, then one section per question.

    The networks stand side by side: actor and critic alternate, layer by layer.

    Args:
        keys: (network, layer, statistic) of each.
    """
    every_seed = MultilineChartContent(tag=["rollout/ep_rew_mean$"])
    first = [_band(title, tag) for title, tag in FIRST_BANDS.items()]
    sections = [
        Category(
            title="Returns and policy",
            chart=[Chart(title="return · every seed", multiline=every_seed), *_shown(first)],
        )
    ]
    for title, statistics in SECTIONS.items():
        # Four charts a row where there are two hidden layers; output layers are folded away.
        left_out = {"all", "output"} if len(sections) < OPEN else {"all"}
        charts = [
            _band(f"{statistic} · {network} {layer}", plasticity_tag((network, layer, statistic)))
            for statistic in statistics
            for layer, network in sorted(
                (layer, network)
                for network, layer, name in keys
                if name == statistic and (layer not in left_out or statistic == "trainability")
            )
        ]
        if charts:
            sections.append(
                Category(title=title, chart=_shown(charts), closed=len(sections) >= OPEN)
            )
    return Layout(category=sections)


def _band(title: str, tag: str) -> Chart:
    series = MarginChartContent.Series(
        value=f"{MEAN}/{tag}", lower=f"{LOWEST}/{tag}", upper=f"{HIGHEST}/{tag}"
    )
    return Chart(title=title, margin=MarginChartContent(series=[series]))


def _shown(bands: list[Chart]) -> list[Chart]:
    """TensorBoard shows a section's charts of lines first, then its bands from the last to the
    first, so that they must be listed backwards."""
    return bands[::-1]
