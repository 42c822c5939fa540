"""What TensorBoard shows: tags, and the page under Custom Scalars.

TensorBoard sorts groups of tags, which end at the first slash, by their names, and opens the first
two. They are called so that the returns come first, a summary of plasticity second, and what is
computed over seeds last: `rollout`, `statistics`, `time`, `train`, `values_over_healthy_seeds`.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from tensorboard.plugins.custom_scalar.layout_pb2 import (
    Category,
    Chart,
    Layout,
    MarginChartContent,
    MultilineChartContent,
)

from upgd_ppo.agents.plasticity import StatisticsTable
from upgd_ppo.agents.plasticity.catalogue import CATALOGUE, DETAILS, SECTIONS, in_section
from upgd_ppo.agents.plasticity.population_statistics import Key

RETURN_TAG = "rollout/ep_rew_mean"

MEAN, LOWEST, HIGHEST = "mean", "min", "max"
"""What a band is made of."""


OPEN = 4
"""Sections that are unfolded when the page opens, the returns among them."""


def plasticity_tag(key: Key) -> str:
    """The tag of a statistic: `statistics/NETWORK/LAYER/STATISTIC`, without a layer where it is the
    whole network's, or `train/…` of the learner's own, which are of no layer."""
    network, layer, statistic = key
    if not layer:
        return f"train/{statistic}"
    return "/".join(("statistics", network, *([] if layer == "all" else [layer]), statistic))


def over_seeds(what: str, tag: str) -> str:
    """The tag of what is computed over the healthy members from their values under a tag.

    Args:
        what: such as "mean".
        tag: of the members' values.
    """
    return f"values_over_healthy_seeds/{what}/{tag}"


HEALTHY = over_seeds("count", "healthy_seeds")


def network_statistics(table: StatisticsTable) -> dict[str, NDArray]:
    """One number [S] for each network under each tag: the whole network's where it is measured,
    else the mean over the hidden layers."""
    found: dict[tuple[str, str], dict[str, NDArray]] = {}
    for (network, layer, statistic), values in zip(table.keys, table.values.T, strict=True):
        if statistic in CATALOGUE and CATALOGUE[statistic].brief:
            found.setdefault((network, statistic), {})[layer] = values
    return {
        plasticity_tag((network, "all", statistic)): (
            layers["all"] if "all" in layers else np.mean(list(layers.values()), axis=0)
        )
        for (network, statistic), layers in found.items()
    }


def bands(keys: Sequence[Key], full: bool) -> dict[str, dict[str, str]]:
    """The charts of bands below the returns: section → title → tag. A section is one question; the
    networks alternate, layer by layer.

    Args:
        keys: (network, layer, statistic) of each statistic that is measured.
        full: with the details.
    """
    sections = {}
    for number, section in enumerate(SECTIONS + (DETAILS if full else ())):
        # Four charts a row where there are two hidden layers; output layers are folded away.
        left_out = {"all", "output"} if number < OPEN - 1 else {"all"}
        sections[section] = {
            f"{statistic} · {network} {layer}": plasticity_tag((network, layer, statistic))
            for statistic in in_section(section)
            for layer, network in sorted(
                (layer, network)
                for network, layer, name in keys
                if name == statistic and (layer not in left_out or statistic == "trainability")
            )
        }
    return sections


def layout(performance: str, first: dict[str, str], sections: dict[str, dict[str, str]]) -> Layout:
    """The page: returns, then these sections of bands.

    Args:
        performance: what a return is, in a word.
        first: title → tag of the learner's own bands, beside the returns.
        sections: as `bands` gives them.

    Every band has one curve per arm, the mean over its healthy seeds, between the lowest and the
    highest of them. The curves of single seeds are under the same tags among the scalars.
    """
    charts_of_lines = [
        Chart(title=title, multiline=MultilineChartContent(tag=[f"^{tag}$"]))
        for title, tag in (
            (f"{performance} · every seed", RETURN_TAG),
            ("seeds still healthy: means and ranges are theirs", HEALTHY),
        )
    ]
    first = {f"{performance} · mean and range over healthy seeds": RETURN_TAG, **first}
    page = [Category(title="Returns and policy", chart=[*charts_of_lines, *_bands(first)])]
    for title, charts in sections.items():
        if charts:
            page.append(Category(title=title, chart=_bands(charts), closed=len(page) >= OPEN))
    return Layout(category=page)


def _bands(tags: dict[str, str]) -> list[Chart]:
    """TensorBoard shows a section's charts of lines first, then its bands from the last to the
    first, so that they must be listed backwards."""
    return [_band(title, tag) for title, tag in reversed(tags.items())]


def _band(title: str, tag: str) -> Chart:
    series = MarginChartContent.Series(
        value=over_seeds(MEAN, tag), lower=over_seeds(LOWEST, tag), upper=over_seeds(HIGHEST, tag)
    )
    return Chart(title=title, margin=MarginChartContent(series=[series]))
