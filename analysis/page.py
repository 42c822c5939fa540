"""The report as one HTML page that needs nothing else: no network, no script, images inside."""

import base64
import math
from dataclasses import dataclass

import pandas as pd
from jinja2 import Environment, StrictUndefined

from analysis.collapse import THRESHOLD
from analysis.comparison import Study
from analysis.intervals import Interval
from analysis.notices import notices
from analysis.verdict import BETTER, suite_verdict, verdict


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


def page(
    study: Study, pictures: dict[str, list[Picture]], data: dict[str, pd.DataFrame], made: str
) -> str:
    """Render the report.

    Args:
        pictures: by environment.
        data: the tables, by name.
        made: when and how the report was made, for its foot.
    """
    environment = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True)
    environment.filters |= {"bounds": with_bounds, "share": share, "number": number}
    return environment.from_string(TEMPLATE).render(
        study=study,
        pictures=pictures,
        seeds=data["seeds"],
        settings=_records(data.get("settings")),
        versions=_records(data.get("versions")),
        verdict=verdict,
        suite_verdict=suite_verdict(study),
        notices=lambda result: list(dict.fromkeys(notices(result))),
        comparisons=study.comparisons,
        files=sorted(data),
        threshold=THRESHOLD,
        better=BETTER,
        made=made,
    )


def _records(table: pd.DataFrame | None) -> tuple[list[str], list[tuple[list[str], bool]]]:
    """Header and rows of a table; a row is marked where the arms differ."""
    if table is None:
        return [], []
    rows = [["–" if pd.isna(cell) else str(cell) for cell in row] for row in table.to_numpy()]
    return list(table.columns), [(row, len(set(row[1:])) > 1) for row in rows]


TEMPLATE = """<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>Comparison: {{ study.environments | map(attribute="environment") | join(", ") }}</title>
<style>
body { font: 15px/1.5 system-ui, sans-serif; color: #1a1a1a; background: #fff;
       max-width: 66rem; margin: 2rem auto; padding: 0 1rem; }
h1 { font-size: 1.6rem; } h2 { margin-top: 2.5rem; border-bottom: 1px solid #bbb; }
h3 { margin: 1.6rem 0 .4rem; } h4 { margin: .7rem 0 0; font-size: 1rem; }
.verdict { background: #eef4fa; border-left: 4px solid #0072B2; padding: .6rem 1.2rem; }
.notice { background: #fdf3e7; border-left: 4px solid #D55E00; padding: .6rem 1.2rem;
          margin-top: .8rem; }
.verdict ul, .notice ul { margin: .2rem 0; padding-left: 1.1rem; }
.scroll { overflow-x: auto; }
table { border-collapse: collapse; margin: .4rem 0; font-size: 14px;
        font-variant-numeric: tabular-nums; }
th, td { padding: .25rem .6rem; text-align: right; border-bottom: 1px solid #ddd;
         white-space: nowrap; }
th { font-weight: 600; } th:first-child, td:first-child, .text { text-align: left; }
tr.differs td { background: #fdf3e7; }
.settings td { white-space: normal; overflow-wrap: anywhere; text-align: left; }
.small { color: #555; font-size: .87rem; }
figure { margin: 1.2rem 0; } figure img { max-width: 100%; height: auto; }
figcaption { color: #555; font-size: .87rem; }
@media print { body { margin: 0; max-width: none; } figure { break-inside: avoid; } }
</style>
</head>
<body>
<h1>Comparison of {{ study.environments | map(attribute="arms") | sum(start=[]) | length }} arms
on {{ study.environments | map(attribute="environment") | join(", ") }}</h1>

{% for result in study.environments %}
<h2>{{ result.environment }}</h2>
<div class="verdict"><b>Verdict</b>, on the first {{ "{:,}".format(result.horizon) }} steps a seed
{% for about, sentences in verdict(result).items() %}
<h4>{{ about }}</h4>
<ul>{% for sentence in sentences %}<li>{{ sentence }}</li>{% endfor %}</ul>
{% endfor %}</div>
{% set found = notices(result) %}
{% if found %}
<div class="notice"><b>Mind</b>
<ul>{% for sentence in found %}<li>{{ sentence }}</li>{% endfor %}</ul></div>
{% endif %}

<h3>Collapse</h3>
<div class="scroll"><table>
<tr><th>arm</th><th>seeds</th><th>collapsed<br>[exact 95 %]</th><th>ever fell<br>[exact 95 %]</th>
<th>time below,<br>mean</th><th>retained,<br>mean</th><th>retained,<br>IQM</th>
<th>halted</th><th>never<br>learned</th></tr>
{% for arm in result.arms %}
<tr><td>{{ arm.name }}</td><td>{{ arm.rows | length }}</td>
<td>{{ arm.collapsed | share }}</td><td>{{ arm.fell | share }}</td>
<td>{{ arm.estimates["time_below", "mean"] | bounds }}</td>
<td>{{ arm.estimates["retained", "mean"] | bounds }}</td>
<td>{{ arm.estimates["retained", "iqm"] | bounds }}</td>
<td>{{ arm.halted }}</td><td>{{ arm.never_learned }}</td></tr>
{% endfor %}
</table></div>
<h3>Returns</h3>
<div class="scroll"><table>
<tr><th>arm</th><th>final, mean</th><th>final, IQM</th><th>peak, mean</th><th>peak, IQM</th>
<th>whole training, mean</th></tr>
{% for arm in result.arms %}
<tr><td>{{ arm.name }}</td><td>{{ arm.estimates["final", "mean"] | bounds }}</td>
<td>{{ arm.estimates["final", "iqm"] | bounds }}</td>
<td>{{ arm.estimates["peak", "mean"] | bounds }}</td>
<td>{{ arm.estimates["peak", "iqm"] | bounds }}</td>
<td>{{ arm.estimates["area", "mean"] | bounds }}</td></tr>
{% endfor %}
</table></div>
<p class="small">Brackets are 95 % intervals over seeds: Student's t for means, exact
(Clopper–Pearson) for fractions, bootstrap for interquartile means. With fewer than ten seeds they
cover less often than they say wherever seeds fall into two groups. “Whole training” is the area
under the learning curve divided by its length. In means <i>retained</i> is clipped to −1 … 1 and a
halted seed counts as −1 there, as worth its start in <i>final</i>.</p>

{% if result.pairs %}
<h3>Arm against arm</h3>
<div class="scroll"><table>
<tr><th>arms</th><th class="text">a seed of the first</th><th>probability<br>[95 %]</th>
<th>p</th><th>p after<br>Holm's correction</th></tr>
{% for pair in result.pairs %}{% for name, found in pair.improvement.items() %}
<tr><td>{{ pair.first }} over {{ pair.second }}</td>
<td class="text">{{ better[name] }}{{ " (primary)" if name == result.primary else "" }}</td>
<td>{{ found.probability | bounds }}</td><td>{{ found.p_value | number }} ({{ found.test }})</td>
<td>{{ found.adjusted_p | number }}</td></tr>
{% endfor %}{% endfor %}
</table></div>
{% endif %}

{% for picture in pictures[result.environment] %}
<figure><img src="{{ picture.uri }}" style="width: {{ picture.width }}in"
alt="{{ picture.caption }}">
<figcaption>{{ picture.caption }}</figcaption></figure>
{% endfor %}

<details><summary>Every seed on {{ result.environment }}</summary>
<div class="scroll"><table>
<tr><th>arm</th><th>seed</th><th class="text">outcome</th><th>start</th><th>peak</th><th>final</th>
<th>retained</th><th>steps reached</th></tr>
{% for seed in seeds[seeds.environment == result.environment].to_dict("records") %}
<tr><td>{{ seed.arm }}</td><td>{{ seed.seed }}</td><td class="text">{{ seed.outcome }}</td>
<td>{{ seed.start | number }}</td><td>{{ seed.peak | number }}</td>
<td>{{ seed.final | number }}</td><td>{{ seed.retained | number }}</td>
<td>{{ "{:,}".format(seed.steps_reached) }}</td></tr>
{% endfor %}
</table></div></details>
{% endfor %}

{% if study.suite_arms %}
<h2>All environments</h2>
{% if suite_verdict %}
<div class="verdict"><b>Verdict</b>
{% for about, sentences in suite_verdict.items() %}
<h4>{{ about }}</h4>
<ul>{% for sentence in sentences %}<li>{{ sentence }}</li>{% endfor %}</ul>
{% endfor %}</div>
{% endif %}
<div class="scroll"><table>
<tr><th>arm</th><th class="text">environments</th><th>collapsed<br>[exact 95 %]</th>
<th>retained, IQM</th></tr>
{% for arm in study.suite_arms %}
<tr><td>{{ arm.name }}</td><td class="text">{{ arm.environments | join(", ") }}</td>
<td>{{ arm.collapsed | share }}</td><td>{{ arm.retained | bounds }}</td></tr>
{% endfor %}
</table></div>
<p class="small">Each environment is a stratum: its seeds are resampled among themselves. Returns of
different tasks are on different scales and are not averaged.</p>
{% endif %}

<h2>What the numbers mean</h2>
<p>Per seed, episodic returns are averaged in 100 equal bins of training steps (an empty bin takes
the previous value) and smoothed by a 5-bin centred mean; they are averages over episodes, not over
steps. <i>Start</i> is the first bin, <i>final</i> the mean of the last five. The <i>peak</i> is
found on the odd episodes and read on the even ones, so that noise does not raise it. A seed whose
rise (peak − start) is no more than five standard errors of a smoothed bin <i>never learned</i>: it
is neither kept nor collapsed, and is counted as such. <i>Retained</i> = (final − start) / (peak −
start), and a seed <i>collapsed</i> when it retained less than {{ threshold }}. The <i>first
fall</i> is where the smoothed curve first drops below half of its rise so far to stay there for
three bins; <i>time below</i> is the share of training after the first 20 % that it spends there. A
seed whose training became non-finite collapsed, fell when it halted, and ranks below every seed
that lived. With episodes in fewer than 20 bins a seed is not judged.</p>
<p>A difference between arms is stated only where the 95 % interval of the probability that a seed
of one is better leaves out one half and p &lt; 0.05 after Holm's correction over the {{
comparisons }} comparison{{ "" if comparisons == 1 else "s" }} of this page: between equal arms one
page in twenty states anything at all. The primary measure is the one that was named before the
study was run (--primary); whatever else is stated is exploratory. “Open” does not mean
“equal”.</p>

<h2>Settings and versions</h2>
<p class="small">Shaded rows differ between arms.</p>
{% for title, (header, rows) in [("Settings", settings), ("Versions", versions)] %}
{% if rows %}
<details{{ " open" if title == "Settings" else "" }}><summary>{{ title }}</summary>
<div class="scroll"><table class="settings">
<tr>{% for cell in header %}<th class="text">{{ cell }}</th>{% endfor %}</tr>
{% for row, differs in rows %}
<tr{% if differs %} class="differs"{% endif %}>
{% for cell in row %}<td>{{ cell }}</td>{% endfor %}</tr>
{% endfor %}
</table></div></details>
{% endif %}
{% endfor %}
<h3>Records read</h3>
<ul>
{% for result in study.environments %}{% for arm in result.arms %}
<li>{{ arm.name }} on {{ result.environment }}: {{ arm.arm.path }} ({{ arm.arm.source }},
{{ arm.arm.members | length }} seed{{ "" if arm.arm.members | length == 1 else "s" }})</li>
{% endfor %}{% endfor %}
</ul>
<p class="small">All numbers are in data/:
{% for file in files %}{{ file }}.csv{{ "" if loop.last else ", " }}{% endfor %}. The figures are in
figures/ as PNG and PDF. {{ made }}</p>
</body>
</html>
"""
