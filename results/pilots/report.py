"""The table and the curves of the pilots whose records are here, written into README.md.

    python results/pilots/report.py

Records come here by `python results/collect.py runs/pilots/NAME --out results/pilots/records`.
"""

from __future__ import annotations

import sys
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import yaml

sys.path.insert(0, str(Path(__file__).resolve().parent.parent.parent))

import checkout  # noqa: F401  # isort: split
from upgd_ppo.analysis.collapse import BINS, smooth
from upgd_ppo.analysis.comparison import ArmResult, EnvironmentResult, compare
from upgd_ppo.analysis.readers import read_arm

HERE = Path(__file__).parent
RECORDS = HERE / "records"
MARK = "<!-- what follows is written by report.py -->\n"
BEFORE = 3
"""Bins before a fall that are averaged."""
SEEN = {
    "dead units, actor 2": ("actor", "layer_2", "dead_fraction"),
    "effective rank, actor 2": ("actor", "layer_2", "effective_rank"),
    "effective rank, critic 2": ("critic", "layer_2", "effective_rank"),
    "weight norm, actor": ("actor", "all", "weight_l2"),
    "KL of an iteration": ("ppo", "", "approx_kl"),
    "std of the policy": ("ppo", "", "std"),
}


def main() -> None:
    names = [
        name
        for name in yaml.safe_load((HERE / "pilots.yaml").read_text())["pilots"]
        if (RECORDS / name).is_dir()
    ]
    results = {}
    for name in names:
        [environment] = compare([read_arm(str(RECORDS / name))]).environments
        results[name] = environment
    page = HERE / "README.md"
    head = page.read_text(encoding="utf-8").partition(MARK)[0]
    body = (
        f"{table(results)}\n\n![Every seed of every pilot](curves.png)\n\n{before_falls(results)}\n"
    )
    page.write_text(f"{head}{MARK}\n{body}", encoding="utf-8")
    draw(results)


def table(results: dict[str, EnvironmentResult]) -> str:
    lines = [
        "| pilot | steps | rose | ever fell | collapsed at the end | retained | time below |"
        " first fall, million steps | peak | final |",
        "| --- | --- | --- | --- | --- | --- | --- | --- | --- | --- |",
    ]
    for name, environment in results.items():
        [result] = environment.arms
        collapse, seeds = result.collapse, len(result.seeds)
        judged = np.isfinite(collapse.fell)
        fell = collapse.first_fall[collapse.fell == 1] / BINS * environment.horizon / 1e6
        lines.append(
            f"| {name} | {environment.horizon / 1e6:.1f} M | {judged.sum()} of {seeds} "
            f"| {int(np.nansum(collapse.fell))} | {int(np.nansum(collapse.collapsed))} "
            f"| {_each(collapse.retained, '.2f')} | {_mean(collapse.time_below, '.0%')} "
            f"| {_each(np.sort(fell), '.1f')} | {_each(collapse.peak, '.0f')} "
            f"| {_each(collapse.final, '.0f')} |"
        )
    return "\n".join(lines)


def before_falls(results: dict[str, EnvironmentResult]) -> str:
    """What statistics were early on, and in the three bins before the first falls."""
    lines = [
        "What statistics were in the first tenth of a seed's run → in the three bins before its"
        " first fall (medians over the seeds that fell):",
        "",
        f"| pilot | seeds | {' | '.join(SEEN)} |",
        "| --- " * (2 + len(SEEN)) + "|",
    ]
    for name, environment in results.items():
        [result] = environment.arms
        fallen = np.flatnonzero(result.collapse.fell == 1)
        if len(fallen):
            cells = [_around(result, fallen, key) for key in SEEN.values()]
            lines.append(f"| {name} | {len(fallen)} | {' | '.join(cells)} |")
    return "\n".join(lines)


def _around(result: ArmResult, fallen: np.ndarray, key: tuple[str, str, str]) -> str:
    if key not in result.statistics:
        return "–"
    values, early, late = result.statistics[key], [], []
    for seed in fallen:
        at = int(result.collapse.first_fall[seed])
        with np.errstate(invalid="ignore"):
            early.append(np.nanmean(values[seed, : BINS // 10]))
            late.append(np.nanmean(values[seed, max(0, at - BEFORE) : max(1, at)]))
    return f"{np.nanmedian(early):.3g} → {np.nanmedian(late):.3g}"


def draw(results: dict[str, EnvironmentResult]) -> None:
    columns = 3
    rows = -(-len(results) // columns)
    figure, axes = plt.subplots(
        rows, columns, figsize=(12, 2.4 * rows), squeeze=False, layout="constrained"
    )
    for axis in axes.flat:
        axis.set_visible(False)
    for axis, (name, environment) in zip(axes.flat, results.items(), strict=False):
        [result] = environment.arms
        axis.set_visible(True)
        for seed, curve in zip(result.seeds, smooth(result.collapse.curve), strict=True):
            axis.plot(environment.steps / 1e6, curve, linewidth=1, label=f"seed {seed}")
        axis.set_title(name.replace("_", " "), fontsize=9)
        axis.set_xlabel("million steps", fontsize=8)
        axis.set_ylabel("return", fontsize=8)
    axes[0, 0].legend(fontsize=7, frameon=False)
    figure.savefig(HERE / "curves.png", dpi=110)


def _each(values: np.ndarray, form: str) -> str:
    return ", ".join("–" if np.isnan(value) else f"{value:{form}}" for value in values) or "–"


def _mean(values: np.ndarray, form: str) -> str:
    return f"{np.nanmean(values):{form}}" if np.isfinite(values).any() else "–"


if __name__ == "__main__":
    main()
