"""The figures, for screen and print: colour-blind-safe colours, and a line style per arm.

Colours are those of Okabe & Ito (2008), in an order in which neighbours also differ in lightness,
so that together with line styles and markers the arms can be told apart in grey.
"""

import matplotlib

matplotlib.use("Agg")

from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import EngFormatter

from analysis.arm import StatisticKey
from analysis.collapse import HALTED, THRESHOLD
from analysis.comparison import ArmResult, Band, EnvironmentResult, averaged
from analysis.intervals import interval, pointwise_band

COLOURS = ("#0072B2", "#E69F00", "#000000", "#009E73", "#CC79A7", "#D55E00", "#56B4E9")
LINES: tuple[Any, ...] = ("-", "--", "-.", ":", (0, (5, 1, 1, 1, 1, 1)), (0, (8, 3)), (0, (1, 3)))
FEW_POINTS = 15
"""A curve of so few points is drawn with markers: a line alone would not show a single one."""
MARKERS = ("o", "s", "^", "D", "v", "P", "X")

LAYER_STATISTICS = (
    *("dormant_fraction", "dead_fraction", "saturated_fraction", "effective_rank", "stable_rank"),
    *("feature_norm", "weight_l2", "distance_from_init", "update_ratio", "gradient_l2"),
)
"""What the figure of layers shows; everything recorded is in the CSV."""
PPO_STATISTICS = (
    *("entropy", "std", "approx_kl", "clip_fraction", "max_ratio", "explained_variance"),
    *("policy_loss", "value_loss", "gradient_norm", "learning_rate"),
)

STYLE: dict[Any, Any] = {
    "font.size": 9,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "grid.alpha": 0.25,
    "grid.linewidth": 0.6,
    "lines.linewidth": 1.6,
    "legend.frameon": False,
    "legend.handlelength": 3.2,
    "figure.constrained_layout.use": True,
    "pdf.fonttype": 42,
    "savefig.dpi": 160,
}
AGGREGATE_NAMES = {"mean": "mean", "iqm": "interquartile mean"}


def figures(result: EnvironmentResult) -> Iterator[tuple[str, str, Figure]]:
    """Draw everything of one environment: (short name, caption, figure)."""
    with plt.rc_context(STYLE):
        aggregate = AGGREGATE_NAMES[result.aggregate]
        yield (
            "learning_curves",
            f"Episodic return: {aggregate} over seeds with its 95 % interval; "
            "thin lines are single seeds, × marks where a seed was halted.",
            _learning_curves(result),
        )
        yield (
            "retained",
            "Retained performance. Left: where a seed stands between its start (0) and its peak "
            "(1), mean and 95 % interval; seeds peak at different times. Right: every seed at the "
            "end, with mean and 95 % interval, × for a halted seed; below the line a seed counts "
            "as collapsed. The peak is found on odd episodes and read on even ones.",
            _retained(result),
        )
        yield (
            "final_returns",
            "Final returns (mean of the last five of 100 bins). Left: every seed, with mean and "
            "95 % interval. Right: the share of seeds that end above a return.",
            _final_returns(result),
        )
        keys = _layer_keys(result)
        if keys:
            yield (
                "layers",
                "Statistics per layer, actor and critic side by side: mean over seeds with 95 % "
                "interval. A halted seed is in it up to its halt only.",
                _layers(result, keys),
            )
        scalars = _present(result, PPO_STATISTICS, ("ppo",))
        if scalars:
            yield (
                "training",
                "Statistics of PPO's updates: mean over seeds with 95 % interval.",
                _training(result, scalars),
            )


def _learning_curves(result: EnvironmentResult) -> Figure:
    figure, axes = plt.subplots(figsize=(6.4, 3.8))
    for index, arm in enumerate(result.arms):
        _seed_lines(axes, index, arm, result.steps)
        _draw_band(axes, index, result.steps, arm.curve)
    _steps_axis(axes, result.horizon)
    axes.set(ylabel="episodic return")
    _legend(figure, result)
    return figure


def _seed_lines(axes: Axes, index: int, arm: ArmResult, steps: np.ndarray) -> None:
    colour = COLOURS[index % 7]
    for halted, curve in zip(arm.collapse.halted, arm.collapse.curve, strict=True):
        axes.plot(steps[:halted], curve[:halted], color=colour, alpha=0.35, lw=0.6, zorder=1)
        if 0 < halted < len(steps):
            axes.plot(steps[halted - 1], curve[halted - 1], "x", color=colour, zorder=4)


def _draw_band(axes: Axes, index: int, steps: np.ndarray, band: Band) -> None:
    known = np.isfinite(band.value)
    steps, low, high = steps[known], band.low[known], band.high[known]
    style: dict[str, Any] = {"color": COLOURS[index % 7], "linestyle": LINES[index % 7]}
    if len(steps) <= FEW_POINTS:
        style |= {"marker": MARKERS[index % 7], "markersize": 3}
    axes.plot(steps, band.value[known], zorder=3, **style)
    axes.fill_between(steps, low, high, color=style["color"], alpha=0.18, lw=0)
    if len(steps) == 1:  # an area has no width there
        axes.vlines(steps, low, high, color=style["color"], lw=0.8)


def _retained(result: EnvironmentResult) -> Figure:
    figure, (left, right) = plt.subplots(1, 2, figsize=(7.6, 3.4), width_ratios=(3, 2))
    for index, arm in enumerate(result.arms):
        share = arm.collapse.share_of_peak()
        _draw_band(left, index, result.steps, Band(*pointwise_band(share)))
    left.axhline(THRESHOLD, color="0.4", linewidth=0.8)
    _steps_axis(left, result.horizon)
    left.set(ylabel="share of the rise to its peak")
    right.axhline(THRESHOLD, color="0.4", linewidth=0.8)
    _seed_dots(right, result, "retained")
    right.set(ylabel="retained at the end")
    _legend(figure, result)
    return figure


def _final_returns(result: EnvironmentResult) -> Figure:
    figure, (left, right) = plt.subplots(1, 2, figsize=(7.6, 3.4), width_ratios=(2, 3))
    _seed_dots(left, result, "final")
    left.set(ylabel="final return")
    for index, arm in enumerate(result.arms):
        final = np.sort(arm.collapse.final[np.isfinite(arm.collapse.final)])
        if len(final):
            right.stairs(
                np.append(1 - np.arange(len(final)) / len(final), 0.0),
                np.concatenate([[min(final[0], 0)], final, [final[-1]]]),
                baseline=None,
                color=COLOURS[index % 7],
                linestyle=LINES[index % 7],
                linewidth=1.6,
            )
    right.set(xlabel="return", ylabel="share of seeds that end above it", ylim=(-0.03, 1.05))
    _legend(figure, result)
    return figure


def _seed_dots(axes: Axes, result: EnvironmentResult, name: str) -> None:
    """Every seed as a dot, and the mean with its interval beside it."""
    spread = np.random.default_rng(0)
    for index, arm in enumerate(result.arms):
        values = averaged(arm.collapse, name)
        known = np.isfinite(values)
        halted = arm.collapse.outcome == HALTED
        place = index + spread.uniform(-0.18, 0.06, size=len(values))
        colour, marker = COLOURS[index % 7], MARKERS[index % 7]
        alive = known & ~halted
        axes.plot(place[alive], values[alive], marker, color=colour, alpha=0.5, ms=4, mew=0)
        axes.plot(place[known & halted], values[known & halted], "x", color=colour, ms=5)
        estimate = interval([values])
        if estimate.n:
            margins = [[estimate.value - estimate.low], [estimate.high - estimate.value]]
            axes.errorbar(
                index + 0.25,
                estimate.value,
                np.nan_to_num(margins),
                fmt=marker,
                color=colour,
                capsize=4,
                ms=6,
            )
    axes.set_xticks(range(len(result.arms)), [arm.name for arm in result.arms])
    axes.set_xlim(-0.5, len(result.arms) - 0.5)
    if max(len(arm.name) for arm in result.arms) * len(result.arms) > 30:
        axes.tick_params(axis="x", rotation=25)


def _present(
    result: EnvironmentResult, names: Sequence[str], networks: Sequence[str]
) -> list[StatisticKey]:
    keys = {key for arm in result.arms for key in arm.statistics if key[0] in networks}
    return sorted((key for key in keys if key[2] in names), key=lambda key: names.index(key[2]))


def _layer_keys(result: EnvironmentResult) -> list[StatisticKey]:
    return _present(result, LAYER_STATISTICS, ("actor", "critic"))


def _layers(result: EnvironmentResult, keys: list[StatisticKey]) -> Figure:
    """A row per statistic, a column per layer; whole-network values only where no layer has one."""
    statistics = list(dict.fromkeys(key[2] for key in keys))
    columns = sorted({key[:2] for key in keys if key[1] != "all"}) or sorted(
        {key[:2] for key in keys}
    )
    columns.sort(key=lambda column: (column[0], column[1] == "output", column[1]))
    figure, grid = plt.subplots(
        len(statistics),
        len(columns),
        figsize=(1.0 + 2.1 * len(columns), 0.8 + 1.45 * len(statistics)),
        sharex=True,
        sharey="row",
        squeeze=False,
    )
    for row, statistic in zip(grid, statistics, strict=True):
        for axes, (network, layer) in zip(row, columns, strict=True):
            _statistic(axes, result, (network, layer, statistic))
        _first_drawn(row).set_ylabel(statistic.replace("_", " "))
    for column, (network, layer) in zip(grid.T, columns, strict=True):
        _first_drawn(column).set_title(f"{network}, {layer.replace('_', ' ')}")
    for axes in grid[-1]:
        _steps_axis(axes, result.horizon)
    _legend(figure, result)
    return figure


def _first_drawn(panels: Iterable[Axes]) -> Axes:
    return next(axes for axes in panels if axes.get_visible())


def _training(result: EnvironmentResult, keys: list[StatisticKey]) -> Figure:
    columns = min(4, len(keys))
    rows = -(-len(keys) // columns)
    figure, grid = plt.subplots(
        rows, columns, figsize=(1 + 2.4 * columns, 0.8 + 1.9 * rows), sharex=True, squeeze=False
    )
    for axes, key in zip(grid.flat, keys, strict=False):
        _statistic(axes, result, key)
        axes.set_title(key[2].replace("_", " "))
        _steps_axis(axes, result.horizon)
        axes.tick_params(labelbottom=True)
    for axes in grid.flat[len(keys) :]:
        axes.set_visible(False)
    _legend(figure, result)
    return figure


def _statistic(axes: Axes, result: EnvironmentResult, key: StatisticKey) -> None:
    for index, arm in enumerate(result.arms):
        if key in arm.statistics:
            _draw_band(axes, index, result.steps, Band(*pointwise_band(arm.statistics[key])))
    axes.set_visible(axes.has_data())


def _legend(figure: Figure, result: EnvironmentResult) -> None:
    """The environment and its arms above all panels, where they hide no curve."""
    handles = [
        plt.Line2D(
            [],
            [],
            color=COLOURS[index % 7],
            linestyle=LINES[index % 7],
            label=f"{arm.name} ({len(arm.rows)} seed{'s' if len(arm.rows) > 1 else ''})",
        )
        for index, arm in enumerate(result.arms)
    ]
    figure.legend(
        handles=handles,
        title=result.environment,
        loc="outside upper center",
        ncols=min(3, len(handles)),
    )


def _steps_axis(axes: Axes, horizon: int) -> None:
    axes.set_xlim(0, horizon)
    axes.set_xlabel("steps per seed")
    axes.xaxis.set_major_formatter(EngFormatter(sep=""))
    axes.xaxis.set_major_locator(plt.MaxNLocator(5))
