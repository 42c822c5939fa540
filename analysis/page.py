"""The report as one HTML page that needs nothing else: no network, no script, images inside."""

import base64
import math
from dataclasses import dataclass
from pathlib import Path

import pandas as pd
from jinja2 import Environment, FileSystemLoader, StrictUndefined

from upgd_ppo.analysis.collapse import THRESHOLD, TOO_FEW
from upgd_ppo.analysis.comparison import Study
from upgd_ppo.analysis.intervals import Interval
from upgd_ppo.analysis.notices import notices
from upgd_ppo.analysis.verdict import BETTER, suite_verdict, verdict
from upgd_ppo.analysis.warning_counts import summarize

TEMPLATE = "report.html.j2"


@dataclass(frozen=True)
class Picture:
    """A figure as PNG bytes."""

    name: str
    caption: str
    png: bytes
    width: float
    """In inches."""

    @property
    def uri(self) -> str:
        """The image as a data URI."""
        return "data:image/png;base64," + base64.b64encode(self.png).decode()


def number(value: float) -> str:
    """A number as a person writes it: four digits, no exponent for ordinary returns."""
    if not math.isfinite(value):
        return "–"
    if value == 0 or 0.01 <= abs(value) < 1e6:
        digits = 0 if abs(value) >= 1000 else 1 if abs(value) >= 100 else 2
        return f"{value:,.{digits}f}".replace("-", "−")
    return f"{value:.3g}".replace("-", "−")


def with_bounds(interval: Interval) -> str:
    """Value [low, high]; equal values are no certainty, so no empty interval is shown as one."""
    if not interval.n:
        return "–"
    if not math.isfinite(interval.low):
        return f"{number(interval.value)} (one seed)"
    if interval.low == interval.high:
        return f"{number(interval.value)} [no width]"
    return f"{number(interval.value)} [{number(interval.low)}, {number(interval.high)}]"


def share(interval: Interval) -> str:
    """A fraction as k of n, with its interval in per cent."""
    if not interval.n:
        return "–"
    bounds = f" [{interval.low:.0%}, {interval.high:.0%}]" if math.isfinite(interval.low) else ""
    return f"{round(interval.value * interval.n)} of {interval.n}{bounds}"


def steps(value: float) -> str:
    """A training step; a dash where there is none."""
    return "–" if pd.isna(value) else f"{int(value):,}"


def p_value(value: float) -> str:
    """The p-value of a test; a dash where there was nothing to test."""
    if math.isnan(value):
        return "–"
    return f"{value:.3f}" if value >= 0.001 else "< 0.001"


def page(
    study: Study, pictures: dict[str, list[Picture]], data: dict[str, pd.DataFrame], made: str
) -> str:
    """Render the report.

    Args:
        pictures: by environment.
        data: the tables, by name.
        made: when and how the report was made, for its foot.
    """
    environment = Environment(
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        loader=FileSystemLoader(Path(__file__).parent),
    )
    environment.filters |= {
        "bounds": with_bounds,
        "share": share,
        "number": number,
        "p": p_value,
        "steps": steps,
    }
    return environment.get_template(TEMPLATE).render(
        study=study,
        pictures=pictures,
        seeds=data["seeds"],
        settings=_records(data.get("settings")),
        versions=_records(data.get("versions")),
        verdict=verdict,
        suite_verdict=suite_verdict(study),
        notices=lambda result: list(dict.fromkeys(notices(result))),
        better=BETTER,
        early_warnings=summarize,
        files=sorted(data),
        threshold=THRESHOLD,
        too_few=TOO_FEW,
        made=made,
    )


def _records(table: pd.DataFrame | None) -> tuple[list[str], list[tuple[list[str], bool]]]:
    """Header and rows of a table; a row is marked where the arms differ."""
    if table is None:
        return [], []
    rows = [["–" if pd.isna(cell) else str(cell) for cell in row] for row in table.to_numpy()]
    return list(table.columns), [(row, len(set(row[1:])) > 1) for row in rows]
