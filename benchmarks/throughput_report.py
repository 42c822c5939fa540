"""The tables and the picture of `throughput.py`'s figures."""

from __future__ import annotations

import statistics
from pathlib import Path
from typing import Any

LIMIT = "physics alone"


def table(rows: list[dict[str, Any]]) -> str:
    """Medians and spread, ratios to physics alone, to SB3 and to the first optimizer, memory."""
    lines = []
    for env_id in dict.fromkeys(row["env"] for row in rows):
        own = [row for row in rows if row["env"] == env_id]
        names = [name for name in dict.fromkeys(row["name"] for row in own) if "phase" not in name]
        lines += [
            "",
            f"{env_id:22} {'steps/s':>10} {'min':>10} {'max':>10} {'÷ physics':>18} {'÷ SB3':>8}"
            f" {'÷ first':>8} {'statistics':>10} {'MB':>6}",
        ]
        for name in names:
            same = [row for row in own if row["name"] == name]
            rates = [row["steps_per_second"] for row in same]
            lines.append(
                f"{name:22} {statistics.median(rates):10,.0f} {min(rates):10,.0f}"
                f" {max(rates):10,.0f} {_spread(ratios_to_physics(own, name)):>18}"
                f" {_median(ratios(own, name, _several_processes(names)), '.2f'):>8}"
                f" {_median(ratios(own, name, _first_optimizer(name, names)), '.2f'):>8}"
                f" {_median(_all(same, 'statistics_share'), '.1%'):>10}"
                f" {_median(_all(same, 'megabytes'), '.0f'):>6}"
            )
    return "\n".join(lines)


def ratios_to_physics(rows: list[dict[str, Any]], name: str) -> list[float]:
    """The rates of `name`, each over the mean of physics alone just before and just after it."""
    found = []
    for i, row in enumerate(rows):
        if row["name"] == name != LIMIT:
            before = next(r for r in reversed(rows[:i]) if r["name"] == LIMIT)
            after = next(r for r in rows[i:] if r["name"] == LIMIT)
            limit = statistics.mean((before["steps_per_second"], after["steps_per_second"]))
            found.append(row["steps_per_second"] / limit)
    return found


def ratios(rows: list[dict[str, Any]], name: str, other: str | None) -> list[float]:
    """The rates of `name` over those of `other` in the same repetition."""
    rates = {(r["name"], r["repetition"]): r["steps_per_second"] for r in rows}
    repetitions = dict.fromkeys(r["repetition"] for r in rows)
    return [rates[name, r] / rates[other, r] for r in repetitions if other and (other, r) in rates]


def _several_processes(names: list[str]) -> str | None:
    return next((n for n in names if n.startswith("SB3") and "processes" in n), None)


def _first_optimizer(name: str, names: list[str]) -> str | None:
    """Of as many seeds."""
    seeds = name.partition(", ")[2]
    return next((n for n in names if seeds.endswith("seeds") and n.endswith(f", {seeds}")), None)


def _all(rows: list[dict[str, Any]], key: str) -> list[float]:
    return [row[key] for row in rows if key in row]


def _median(values: list[float], form: str) -> str:
    return format(statistics.median(values), form) if values else ""


def _spread(values: list[float]) -> str:
    if not values:
        return ""
    return f"{statistics.median(values):.2f} ({min(values):.2f}-{max(values):.2f})"


def breakdown(rows: list[dict[str, Any]]) -> str:
    """Where our loop spends its time, in core-microseconds per environment step."""
    lines = []
    timed = [row for row in rows if row.get("microseconds_per_step")]
    for env_id in dict.fromkeys(row["env"] for row in timed):
        own = [row for row in timed if row["env"] == env_id]
        phases = list(dict.fromkeys(phase for row in own for phase in row["microseconds_per_step"]))
        lines += ["", f"{env_id + ', µs/step':22} " + " ".join(f"{p:>13}" for p in phases)]
        for name in dict.fromkeys(row["name"] for row in own):
            same = [row["microseconds_per_step"] for row in own if row["name"] == name]
            medians = [statistics.median(t.get(phase, 0.0) for t in same) for phase in phases]
            lines.append(
                f"{name.removesuffix(', by phase'):22} "
                + " ".join(f"{median:13.2f}" for median in medians)
            )
    return "\n".join(lines)


def draw(rows: list[dict[str, Any]], path: Path) -> None:
    """A panel per environment: steps per second against the number of seeds."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    names = list(dict.fromkeys(row["env"] for row in rows))
    optimizers = dict.fromkeys(
        row["name"].split(", ")[0] for row in rows if row["name"].endswith("seeds")
    )
    styles = dict(zip(optimizers, (("#0072B2", "o"), ("#D55E00", "s"), ("#009E73", "^"))))  # noqa: B905
    figure, axes = plt.subplots(1, len(names), figsize=(4 * len(names), 3.4), squeeze=False)
    for axis, env_id in zip(axes[0], names, strict=True):
        own = [row for row in rows if row["env"] == env_id and "by phase" not in row["name"]]
        levels: dict[str, list[float]] = {}
        curves: dict[str, dict[int, list[float]]] = {}
        for row in own:
            if row["name"].endswith("seeds"):
                opt, count = row["name"].removesuffix(" seeds").split(", ")
                curves.setdefault(opt, {}).setdefault(int(count), []).append(
                    row["steps_per_second"]
                )
            else:
                levels.setdefault(row["name"], []).append(row["steps_per_second"])
        for (name, values), style in zip(levels.items(), ("-", "--", ":", "-.", (0, (1, 4)))):  # noqa: B905
            axis.axhline(statistics.median(values), color="0.4", linestyle=style, label=name)
        for opt, points in curves.items():
            color, marker = styles[opt]
            counts = sorted(points)
            medians = [statistics.median(points[count]) for count in counts]
            axis.plot(counts, medians, color=color, marker=marker, label=f"ours, {opt}")
        axis.set(title=env_id, xlabel="seeds in one process", xscale="log", ylim=(0, None))
        axis.set_xticks(counts, counts)
        axis.minorticks_off()
    axes[0][0].set_ylabel("environment steps per second")
    handles, labels = axes[0][0].get_legend_handles_labels()
    figure.tight_layout(rect=(0, 0.08, 1, 1))
    figure.legend(handles, labels, loc="lower center", ncols=len(labels), fontsize=8)
    figure.savefig(path, dpi=130)
