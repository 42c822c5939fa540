"""The figures, for screen and print: colour-blind-safe colours, and a line style per arm.

Colours are those of Okabe & Ito (2008), in an order in which neighbours also differ in lightness,
so that together with line styles and markers the arms can be told apart in grey. Figures are as
wide as a printed page, so that their type keeps its size there.
"""

import matplotlib

matplotlib.use("Agg")

from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullFormatter

from upgd_ppo.analysis.arm import StatisticKey
from upgd_ppo.analysis.collapse import BINS, HALTED, THRESHOLD
from upgd_ppo.analysis.comparison import ArmResult, Band, EnvironmentResult, averaged
from upgd_ppo.analysis.intervals import interval, pointwise_band

COLOURS = ("#0072B2", "#E69F00", "#000000", "#009E73", "#CC79A7", "#D55E00", "#56B4E9")
LINES: tuple[Any, ...] = ("-", "--", "-.", ":", (0, (5, 1, 1, 1, 1, 1)), (0, (8, 3)), (0, (1, 3)))
FEW_POINTS = 15
"""A curve of so few points is drawn with markers: a line alone would not show a single one."""
MARKERS = ("o", "s", "^", "D", "v", "P", "X")
WIDTH = 7.5
"""In inches: a letter or A4 page between its margins."""
LEGEND_LETTERS, HANDLE_LETTERS = 95, 9
"""How many letters the legend has room for in a line, and those that a line's sample takes."""
TALLEST = 7.0
"""In inches, for the rows of all seeds."""

FEATURE_STATISTICS = (
    *("dormant_fraction", "dead_fraction", "saturated_fraction", "effective_rank", "stable_rank"),
    "feature_norm",
)
WEIGHT_STATISTICS = ("weight_l2", "distance_from_init", "update_ratio", "gradient_l2")
"""What the figures of layers show; everything recorded is in the CSV."""
PPO_STATISTICS = (
    *("entropy", "std", "approx_kl", "clip_fraction", "max_ratio", "explained_variance"),
    *("policy_loss", "value_loss", "gradient_norm", "learning_rate"),
)
LOGARITHMIC = frozenset(
    [
        *("feature_norm", "weight_l2", "distance_from_init", "update_ratio", "gradient_l2"),
        *("std", "approx_kl", "max_ratio", "value_loss", "gradient_norm"),
    ]
)
"""Positive and of many sizes: on a linear axis one seed's outburst would hide all the others."""
DECADE = 10.0
"""Values that span less are drawn on a linear axis all the same."""
WORDS = {"l2": "L2", "kl": "KL", "std": "action std"}

STYLE: dict[Any, Any] = {
    "font.size": 9,
    "axes.titlesize": 9,
    "figure.titlesize": 11,
    "figure.titleweight": "bold",
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
SURVIVORS = (
    "From a halt (×) on, an arm's curve is over the seeds that still live, so it may look better "
    "for having lost one."
)


def figures(result: EnvironmentResult) -> Iterator[tuple[str, str, Figure]]:
    """Draw everything of one environment: (short name, caption, figure)."""
    with plt.rc_context(STYLE):
        aggregate = AGGREGATE_NAMES[result.aggregate]
        yield (
            "learning_curves",
            f"Episodic return: {aggregate} over seeds with its 95 % interval; thin lines are "
            "single seeds, × marks where a seed was halted.",
            _learning_curves(result),
        )
        yield (
            "every_seed",
            "Every seed over time, a row each, those that spent most time below half at the top. "
            "Colour: where its curve stands between its start (0) and its own peak so far (1); the "
            "stronger, the more it has lost of what it had gained. Grey: nothing gained yet, or "
            "halted (×).",
            _every_seed(result),
        )
        yield (
            "falls",
            "Left: the share of seeds that have never yet fallen below half of their rise (to stay "
            "there for three bins, or halted), with its 95 % interval (Kaplan–Meier). Right: the "
            "share of the last 80 % of training that a seed spent below half.",
            _falls(result),
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
        yield from _statistics_figures(result)


def _statistics_figures(result: EnvironmentResult) -> Iterator[tuple[str, str, Figure]]:
    bands = "mean over seeds with 95 % interval, the geometric mean where the axis is logarithmic."
    if any(arm.halted for arm in result.arms):
        bands += " " + SURVIVORS
    networks = ("actor", "critic")
    for name, title, statistics in (
        ("layers", "Features of the hidden layers", FEATURE_STATISTICS),
        ("weights", "Weights of the hidden layers", WEIGHT_STATISTICS),
    ):
        keys = _present(result, statistics, networks)
        hidden = [key for key in keys if key[1] not in ("all", "output")]
        keys = hidden or [key for key in keys if key[1] == "all"]
        if keys:
            caption = f"{title}, actor and critic side by side, axes shared along a row: {bands}"
            yield name, caption, _layers(result, title, keys)
    # An actor's output begins near zero, so its distance from there says nothing.
    outputs = [
        key
        for key in _present(result, WEIGHT_STATISTICS, networks)
        if key[1] == "output" and key[::2] != ("actor", "distance_from_init")
    ]
    if outputs:
        caption = f"Weights of the output layers, each on an axis of its own: {bands}"
        yield "outputs", caption, _panels(result, "Weights of the output layers", outputs)
    scalars = [key for key in _present(result, PPO_STATISTICS, ("ppo",)) if _varies(result, key)]
    if scalars:
        caption = f"Statistics of PPO's updates, those that never change left out: {bands}"
        yield "training", caption, _panels(result, "PPO's updates", scalars)


def _learning_curves(result: EnvironmentResult) -> Figure:
    figure, axes = plt.subplots(figsize=(WIDTH, 4.2))
    for index, arm in enumerate(result.arms):
        _seed_lines(axes, index, arm, result.steps)
        _draw_band(axes, index, result.steps, arm.curve)
    _steps_axis(axes, result.horizon)
    axes.set(ylabel="episodic return")
    _title_and_legend(figure, result, "Episodic return")
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


def _every_seed(result: EnvironmentResult) -> Figure:
    """A row of colours for each seed, a panel for each arm."""
    seeds = [len(arm.rows) for arm in result.arms]
    row_height = min(0.17, TALLEST / sum(seeds))
    figure, grid = plt.subplots(
        len(seeds),
        1,
        figsize=(WIDTH, 0.9 + 0.35 * len(seeds) + row_height * sum(seeds)),
        sharex=True,
        squeeze=False,
        height_ratios=seeds,
    )
    # Pale where all is well, so that falls stand out, also where a page is shown dark.
    colours = plt.get_cmap("OrRd_r").with_extremes(bad="0.78")
    edges = np.linspace(0, result.horizon, BINS + 1)
    for axes, arm in zip(grid.flat, result.arms, strict=True):
        collapse = arm.collapse
        order = np.argsort(np.nan_to_num(collapse.time_below, nan=-1.0), kind="stable")
        share = collapse.share_of_running_peak()[order]
        share[np.arange(BINS) >= collapse.halted[order, None]] = np.nan
        mesh = axes.pcolormesh(
            edges, np.arange(len(order) + 1), share, cmap=colours, vmin=0, vmax=1, rasterized=True
        )
        for row, halted in enumerate(collapse.halted[order]):
            if halted < BINS:
                axes.plot(result.steps[halted], row + 0.5, "kx", ms=4)
        axes.set_yticks(np.arange(len(order)) + 0.5, arm.seeds[order])
        axes.tick_params(axis="y", labelsize=min(8, 60 * row_height), length=0)
        axes.grid(visible=False)
        axes.set(ylabel="seed", title=arm.name)
    _steps_axis(grid[-1, 0], result.horizon)
    figure.colorbar(mesh, ax=grid, label="share of its peak so far", aspect=30, pad=0.02)
    figure.suptitle(f"Every seed on {result.environment}")
    return figure


def _falls(result: EnvironmentResult) -> Figure:
    figure, (left, right) = plt.subplots(1, 2, figsize=(WIDTH, 3.6), width_ratios=(3, 2))
    for index, arm in enumerate(result.arms):
        survival = arm.survival
        if not survival.seeds:
            continue
        steps = np.append(survival.time, result.horizon)
        value, low, high = (
            np.append(bound, bound[-1]) for bound in (survival.value, survival.low, survival.high)
        )
        style: dict[str, Any] = {"color": COLOURS[index % 7]}
        left.step(steps, value, where="post", linestyle=LINES[index % 7], **style)
        left.fill_between(steps, low, high, step="post", alpha=0.18, lw=0, **style)
    _steps_axis(left, result.horizon)
    left.set(ylabel="share of seeds not yet fallen", ylim=(0, 1.02))
    _seed_dots(right, result, "time_below")
    right.set(ylabel="share of time below half")
    right.set_ylim(bottom=0)
    _title_and_legend(figure, result, "Falls below half of the running peak")
    return figure


def _retained(result: EnvironmentResult) -> Figure:
    figure, (left, right) = plt.subplots(1, 2, figsize=(WIDTH, 3.6), width_ratios=(3, 2))
    for index, arm in enumerate(result.arms):
        share = arm.collapse.share_of_peak()
        _draw_band(left, index, result.steps, Band(*pointwise_band(share)))
    left.axhline(THRESHOLD, color="0.4", linewidth=0.8)
    _steps_axis(left, result.horizon)
    left.set(ylabel="share of the rise to its peak")
    right.axhline(THRESHOLD, color="0.4", linewidth=0.8)
    _seed_dots(right, result, "retained")
    right.set(ylabel="retained at the end")
    _title_and_legend(figure, result, "Retained performance")
    return figure


def _final_returns(result: EnvironmentResult) -> Figure:
    figure, (left, right) = plt.subplots(1, 2, figsize=(WIDTH, 3.6), width_ratios=(2, 3))
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
    right.set(xlabel="return", ylabel="share of seeds that end above it", ylim=(0, 1.02))
    _title_and_legend(figure, result, "Final returns")
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
    return sorted(
        (key for key in keys if key[2] in names), key=lambda key: (names.index(key[2]), key)
    )


def _varies(result: EnvironmentResult, key: StatisticKey) -> bool:
    values = [arm.statistics[key].ravel() for arm in result.arms if key in arm.statistics]
    return bool(np.ptp(np.concatenate([v[np.isfinite(v)] for v in values])) > 0)


def _layers(result: EnvironmentResult, title: str, keys: list[StatisticKey]) -> Figure:
    """A row per statistic, a column per layer."""
    statistics = list(dict.fromkeys(key[2] for key in keys))
    columns = sorted({key[:2] for key in keys})
    figure, grid = plt.subplots(
        len(statistics),
        len(columns),
        figsize=(max(WIDTH, 1.7 * len(columns)), 0.9 + 1.25 * len(statistics)),
        sharex=True,
        sharey="row",
        squeeze=False,
    )
    for row, statistic in zip(grid, statistics, strict=True):
        _draw_statistic(row, result, [(*column, statistic) for column in columns])
        _first_drawn(row).set_ylabel(_phrase(statistic).replace(" from ", "\nfrom "))
    for column, (network, layer) in zip(grid.T, columns, strict=True):
        _first_drawn(column).set_title(f"{network}, {_phrase(layer)}")
    for axes in grid[-1]:
        _steps_axis(axes, result.horizon)
    _title_and_legend(figure, result, title, halts=True)
    return figure


def _panels(result: EnvironmentResult, title: str, keys: list[StatisticKey]) -> Figure:
    """A panel per statistic, each with its own axis of values."""
    columns = min(3, len(keys))
    rows = -(-len(keys) // columns)
    figure, grid = plt.subplots(
        rows, columns, figsize=(WIDTH, 0.9 + 1.8 * rows), sharex=True, squeeze=False
    )
    for axes, key in zip(grid.flat, keys, strict=False):
        _draw_statistic([axes], result, [key])
        where = "" if key[0] == "ppo" else f"{key[0]}, "
        axes.set_title(where + _phrase(key[2]))
        _steps_axis(axes, result.horizon)
        axes.tick_params(labelbottom=True)
    _hide(grid.flat[len(keys) :])
    _title_and_legend(figure, result, title, halts=True)
    return figure


def _draw_statistic(
    panels: Sequence[Axes], result: EnvironmentResult, keys: Sequence[StatisticKey]
) -> None:
    """Draw one statistic of several places in panels that share their axis of values.

    On a logarithmic axis the mean is the geometric one, which no single seed can carry away.
    """
    statistic = keys[0][2]
    logarithmic = _is_logarithmic(result, keys)
    for axes, key in zip(panels, keys, strict=True):
        for index, arm in enumerate(result.arms):
            if key not in arm.statistics:
                continue
            values = arm.statistics[key]
            band = pointwise_band(np.log(values) if logarithmic else values)
            _draw_band(
                axes, index, result.steps, Band(*map(np.exp if logarithmic else np.array, band))
            )
            halts = arm.collapse.halted[arm.collapse.halted < BINS]
            foot = axes.get_xaxis_transform()
            axes.plot(
                result.steps[halts],
                np.full(len(halts), 0.05),
                "x",
                color=COLOURS[index % 7],
                ms=5,
                transform=foot,
            )
        axes.set_visible(axes.has_data())
        if logarithmic:
            axes.set_yscale("log")
    if logarithmic:
        _plain_logarithmic_ticks(panels)
    elif statistic.endswith("_fraction"):
        panels[0].set_ylim(0, max(panels[0].get_ylim()[1], 0.05))


def _is_logarithmic(result: EnvironmentResult, keys: Sequence[StatisticKey]) -> bool:
    """Whether the statistic is of that kind, positive throughout, and spans a decade."""
    found = [arm.statistics[key] for arm in result.arms for key in keys if key in arm.statistics]
    values = np.concatenate([curves[np.isfinite(curves)] for curves in found])
    return bool(
        keys[0][2] in LOGARITHMIC
        and len(values)
        and values.min() > 0
        and values.max() > DECADE * values.min()
    )


def _plain_logarithmic_ticks(panels: Sequence[Axes]) -> None:
    low, high = panels[0].get_ylim()
    subs = (1.0, 2.0, 5.0) if high < 100 * low else (1.0,)
    for axes in panels:
        axes.yaxis.set_major_locator(LogLocator(subs=subs, numticks=6))
        axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
        axes.yaxis.set_minor_formatter(NullFormatter())


def _phrase(name: str) -> str:
    return " ".join(WORDS.get(word, word) for word in name.split("_"))


def _first_drawn(panels: Iterable[Axes]) -> Axes:
    return next(axes for axes in panels if axes.get_visible())


def _hide(panels: Iterable[Axes]) -> None:
    for axes in panels:
        axes.set_visible(False)


def _title_and_legend(
    figure: Figure, result: EnvironmentResult, title: str, halts: bool = False
) -> None:
    """The title above all panels and the arms below them, where they hide no curve.

    Args:
        halts: say of an arm how many of its seeds are left at the end.
    """
    handles = [
        plt.Line2D(
            [],
            [],
            color=COLOURS[index % 7],
            linestyle=LINES[index % 7],
            label=f"{arm.name} ({_seeds(arm, halts)})",
        )
        for index, arm in enumerate(result.arms)
    ]
    if halts and any(arm.halted for arm in result.arms):
        note = "halted: one seed fewer from here on"
        handles.append(plt.Line2D([], [], color="0.4", marker="x", linestyle="", label=note))
    figure.suptitle(f"{title} on {result.environment}")
    longest = max(len(str(handle.get_label())) for handle in handles)
    columns = min(3, len(handles), max(1, LEGEND_LETTERS // (longest + HANDLE_LETTERS)))
    figure.legend(handles=handles, loc="outside lower center", ncols=columns)


def _seeds(arm: ArmResult, halts: bool) -> str:
    seeds = f"{len(arm.rows)} seed{'s' if len(arm.rows) > 1 else ''}"
    return f"{seeds}, {len(arm.rows) - arm.halted} at the end" if halts and arm.halted else seeds


def _steps_axis(axes: Axes, horizon: int) -> None:
    axes.set_xlim(0, horizon)
    axes.set_xlabel("steps per seed")
    axes.xaxis.set_major_locator(MaxNLocator(4, steps=[1, 2, 2.5, 5, 10]))
    axes.xaxis.set_major_formatter(FuncFormatter(_in_one_unit(horizon)))


def _in_one_unit(horizon: int) -> Callable[[float, int | None], str]:
    """Steps as "0.5M", "1M", "1.5M": all in the unit of the axis."""
    unit, letter = next(
        pair for pair in ((1e9, "B"), (1e6, "M"), (1e3, "k"), (1, "")) if horizon >= pair[0]
    )
    return lambda step, _: f"{step / unit:g}{letter if step else ''}"
