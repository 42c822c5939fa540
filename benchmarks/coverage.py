"""How often the intervals of a comparison cover, and how often its statements are false.

    python benchmarks/coverage.py

Everything is drawn from known distributions with one fixed seed; the tables are those of
docs/compare.md. The Hopper finals are of the runs in results/hopper_accelerated_collapse. About a
quarter of an hour on one core.
"""

from __future__ import annotations

import argparse
import csv
import sys
from collections.abc import Callable, Iterable
from dataclasses import replace
from pathlib import Path

import numpy as np
from scipy import stats

sys.path.insert(0, str(Path(__file__).parents[1]))

import checkout  # noqa: F401  # isort: split
from upgd_ppo.analysis import collapse
from upgd_ppo.analysis.comparison import COMPARED, equal_fractions, improvement_in
from upgd_ppo.analysis.intervals import (
    LEVEL,
    Improvement,
    fraction,
    holm,
    improvement,
    interquartile_mean,
    interval,
    mean,
    newcombe,
)
from upgd_ppo.analysis.survival import log_rank
from upgd_ppo.analysis.verdict import SIGNIFICANCE, is_supported

ROOT = Path(__file__).parents[1]
SEED = 2024
SIZES = (3, 5, 10, 30)
STUDY_SIZES = (5, 10, 30)
RANDOM = np.random.default_rng(SEED)
Draw = Callable[[tuple[int, ...]], np.ndarray]
BOUNDS = [(1 - LEVEL) / 2, (1 + LEVEL) / 2]


def hopper_finals() -> np.ndarray:
    """The final returns of the twenty seeds whose records are in results/."""
    with (ROOT / "results/hopper_accelerated_collapse/seeds.csv").open() as file:
        return np.array([float(row["final"]) for row in csv.DictReader(file)])


def two_modes(share_low: float) -> Draw:
    """Seeds that collapsed, with probability `share_low`, and seeds that did not."""
    return lambda shape: (
        np.where(RANDOM.random(shape) < share_low, 0.0, 3.0) + 0.3 * RANDOM.normal(size=shape)
    )


def table(title: str, header: Iterable[str], rows: Iterable[Iterable[str]]) -> None:
    """Print a Markdown table."""
    header = list(header)
    print(f"\n{title}\n\n| {' | '.join(header)} |\n|{' --- |' * len(header)}")
    for row in rows:
        print(f"| {' | '.join(row)} |", flush=True)


def share(flags: np.ndarray | list[bool]) -> str:
    """A share of trials, in per cent."""
    value = 100 * float(np.mean(flags))
    return f"{value:.0f} %" if value >= 9.95 or value == 0 else f"{value:.2g} %"


def covered(low: np.ndarray, high: np.ndarray, truth: float) -> np.ndarray:
    """Whether the intervals hold the truth; one that is not defined does not."""
    return (low <= truth) & (truth <= high)


def student(x: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Student's t interval of the mean of each row."""
    n = x.shape[1]
    margin = stats.t.ppf(BOUNDS[1], n - 1) * x.std(axis=1, ddof=1) / np.sqrt(n)
    return x.mean(axis=1) - margin, x.mean(axis=1) + margin


def studentised(x: np.ndarray, resamples: int = 999) -> tuple[np.ndarray, np.ndarray]:
    """Bootstrap-t interval of the mean of each row."""
    n = x.shape[1]
    drawn = np.take_along_axis(x[:, None], RANDOM.integers(n, size=(len(x), resamples, n)), axis=-1)
    deviation = x.std(axis=1, ddof=1) / np.sqrt(n)
    spread = drawn.std(axis=-1, ddof=1) / np.sqrt(n)
    spread = np.where(spread > 1e-12, spread, np.nan)
    ratio = (drawn.mean(axis=-1) - x.mean(axis=1)[:, None]) / spread
    low, high = np.nanquantile(ratio, BOUNDS, axis=1)
    return x.mean(axis=1) - high * deviation, x.mean(axis=1) - low * deviation


def bootstrap(x: np.ndarray, statistic: Callable, method: str) -> tuple[np.ndarray, np.ndarray]:
    """SciPy's bootstrap of each row."""
    found = stats.bootstrap(
        (x,), statistic, axis=-1, n_resamples=999, method=method, batch=100, rng=RANDOM
    ).confidence_interval
    return found.low, found.high


def trimmed(x: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Tukey and McLaughlin's interval of the interquartile mean of each row."""
    n = x.shape[1]
    cut = n // 4
    kept = n - 2 * cut
    ordered = np.sort(x, axis=1)
    winsorised = np.clip(ordered, ordered[:, [cut]], ordered[:, [n - 1 - cut]])
    spread = winsorised.std(axis=1, ddof=1) * np.sqrt((n - 1) / (kept * (kept - 1)))
    centre = ordered[:, cut : n - cut].mean(axis=1)
    margin = stats.t.ppf(BOUNDS[1], kept - 1) * spread
    return centre - margin, centre + margin


def means(repetitions: int) -> None:
    """Candidates for the interval of a mean and of an interquartile mean."""
    finals = hopper_finals()
    draws: dict[str, Draw] = {
        "normal": lambda shape: RANDOM.normal(size=shape),
        "two modes, 30 % low": two_modes(0.3),
        "log-normal": lambda shape: RANDOM.lognormal(size=shape),
        "Hopper finals": lambda shape: RANDOM.choice(finals, shape),
    }
    of_mean = {
        "**Student's t**": student,
        "percentile": lambda x: bootstrap(x, np.mean, "percentile"),
        "BCa": lambda x: bootstrap(x, np.mean, "BCa"),
        "studentised": studentised,
    }

    def iqm(x: np.ndarray, axis: int = -1) -> np.ndarray:
        return stats.trim_mean(x, 0.25, axis=axis)

    of_iqm = {
        "**percentile**": lambda x: bootstrap(x, iqm, "percentile"),
        "trimmed t": trimmed,
    }
    for what, candidates in (("mean", of_mean), ("interquartile mean", of_iqm)):
        rows = []
        for name, draw in draws.items():
            many = np.sort(draw((1_000_000,)))
            truth = float(many.mean() if what == "mean" else iqm(many))
            samples = {n: draw((repetitions, n)) for n in SIZES}
            for method, bounds in candidates.items():
                cells, width = [], {}
                for n in SIZES:
                    with np.errstate(all="ignore"):
                        low, high = bounds(samples[n])
                        width[n] = np.nanmedian(high - low)
                    cells.append(share(covered(low, high, truth)))
                rows.append([name, method, *cells, f"{width[5]:.3g}"])
        table(
            f"Coverage of nominal 95 % intervals of the {what}",
            ["seeds drawn from", "interval", *(f"n = {n}" for n in SIZES), "width at 5"],
            rows,
        )
    # What is printed must be what the comparison uses.
    x = draws["normal"]((1, 10))
    found = interval([x[0]], mean)
    assert np.allclose([found.low, found.high], np.ravel(student(x)))
    assert interval([x[0]], interquartile_mean).value == iqm(x[0])


def fractions(repetitions: int) -> None:
    """The exact interval of a fraction beside the bootstrap."""
    rows = []
    for truth in (0.1, 0.3, 0.5):
        for method in ("**Clopper–Pearson**", "percentile"):
            cells = []
            for n in SIZES:
                count = RANDOM.binomial(n, truth, size=repetitions)
                if method == "percentile":
                    low, high = (stats.binom.ppf(q, n, count / n) / n for q in BOUNDS)
                else:
                    found = [fraction(np.arange(n) < k) for k in range(n + 1)]
                    low = np.array([one.low for one in found])[count]
                    high = np.array([one.high for one in found])[count]
                cells.append(share(covered(low, high, truth)))
            rows.append([f"{truth}", method, *cells])
    table(
        "Coverage of nominal 95 % intervals of a fraction",
        ["fraction", "interval", *(f"n = {n}" for n in SIZES)],
        rows,
    )


def improvements(repetitions: int) -> None:
    """The interval of the probability of improvement."""
    cases: dict[str, tuple[Draw, Draw]] = {
        "equal normal arms": (lambda s: RANDOM.normal(size=s), lambda s: RANDOM.normal(size=s)),
        "the same, one with 5 times the spread": (
            lambda s: RANDOM.normal(0, 5, size=s),
            lambda s: RANDOM.normal(size=s),
        ),
        "one standard deviation apart": (
            lambda s: RANDOM.normal(1, 1, size=s),
            lambda s: RANDOM.normal(size=s),
        ),
        "two modes, 30 % and 60 % low": (two_modes(0.3), two_modes(0.6)),
    }
    rows = []
    for name, (first, second) in cases.items():
        truth = float(improvement(first((4000,)), second((4000,))))
        samples = {n: [(first((n,)), second((n,))) for _ in range(repetitions)] for n in SIZES}
        ours, theirs = [], []
        for n in SIZES:
            found = [newcombe(float(improvement(*pair)), [(n, n)]) for pair in samples[n]]
            ours.append(share(covered(*np.array(found).T, truth)))
            found = [_percentile(*pair) for pair in samples[n]]
            theirs.append(share(covered(*np.array(found).T, truth)))
        rows.append([f"{name} ({truth:.2f})", "**Newcombe**", *ours])
        rows.append(["", "percentile", *theirs])
    table(
        "Coverage of nominal 95 % intervals of the probability of improvement",
        ["arms (truth)", "interval", *(f"n = {n}" for n in SIZES)],
        rows,
    )


def _percentile(x: np.ndarray, y: np.ndarray) -> tuple[float, float]:
    drawn = improvement(
        x[RANDOM.integers(len(x), size=(499, len(x)))],
        y[RANDOM.integers(len(y), size=(499, len(y)))],
    )
    low, high = np.quantile(drawn, BOUNDS)
    return low, high


def wandering(shape: tuple[int, int], correlation: float) -> np.ndarray:
    """Stationary noise of unit variance whose neighbouring bins are correlated."""
    noise = RANDOM.normal(size=shape)
    for t in range(1, shape[1]):
        noise[:, t] *= np.sqrt(1 - correlation**2)
        noise[:, t] += correlation * noise[:, t - 1]
    return noise


def binned(
    curves: np.ndarray, noise: float, episodes: int, draw: Draw | None = None
) -> collapse.Bins:
    """Bins of seeds with known curves [S, 100] and so many episodes a bin, of known spread."""
    draw = draw or (lambda shape: RANDOM.normal(size=shape))
    returns = curves[..., None] + noise * draw((*curves.shape, episodes))
    odd, even = returns[..., ::2], returns[..., 1::2]
    return collapse.Bins(
        mean=returns.mean(axis=-1),
        odd=odd.mean(axis=-1),
        even=even.mean(axis=-1),
        even_count=np.full(curves.shape, float(even.shape[-1])),
        even_spread=((even - even.mean(axis=-1, keepdims=True)) ** 2).sum(axis=-1),
    )


def outcomes(found: collapse.Collapse) -> list[str]:
    """Shares of what became of the seeds."""
    kinds = (collapse.NEVER_LEARNED, collapse.KEPT, collapse.COLLAPSED)
    fell = found.fell == 1
    return [*(share(found.outcome == kind) for kind in kinds), share(fell)]


def single_seeds(seeds: int) -> None:
    """What is said of seeds to which nothing ever happened."""
    flat = np.zeros((seeds, collapse.BINS))
    progress = (np.arange(collapse.BINS) + 0.5) / collapse.BINS
    plateau = np.minimum(progress / 0.3, 1)

    def heavy(shape: tuple[int, ...]) -> np.ndarray:
        return RANDOM.standard_t(2, size=shape)

    cases: dict[str, Callable[[], collapse.Bins]] = {
        "no learning, independent bins, 2 episodes each": lambda: binned(flat, 1, 2),
        "the same, 20 episodes": lambda: binned(flat, 1, 20),
        "the same, heavy tails (Student's t, 2 degrees of freedom)": lambda: binned(
            flat, 1, 2, heavy
        ),
        "bins correlated 0.5": lambda: binned(wandering(flat.shape, 0.5), 0.0, 2),
        "bins correlated 0.9": lambda: binned(wandering(flat.shape, 0.9), 0.0, 2),
        "bins correlated 0.9, and as much noise of the episodes": lambda: binned(
            wandering(flat.shape, 0.9), np.sqrt(2), 2
        ),
    }
    for rise in (1, 2, 3, 4, 5, 10, 20):
        cases[f"rise of {rise} times the spread of a bin, kept"] = lambda rise=rise: binned(
            np.tile(rise * plateau, (seeds, 1)), np.sqrt(2), 2
        )
    cases["rise of 20, kept, bins correlated 0.9"] = lambda: binned(
        20 * plateau + wandering(flat.shape, 0.9), 0.0, 2
    )
    cases["rise of 20, lost at 60 %"] = lambda: binned(
        np.tile(np.where(progress < 0.6, 20 * plateau, 2.0), (seeds, 1)), np.sqrt(2), 2
    )
    rows = ([name, *outcomes(collapse.measure(bins()))] for name, bins in cases.items())
    table(
        f"What is said of {seeds:,} seeds whose truth is known",
        ["truth", "never learned", "kept", "collapsed", "ever fell"],
        rows,
    )


def collapsing(seeds: int, shift: float = 0.0) -> np.ndarray:
    """Seeds as met in practice: peaks differ, three in ten lose most of it, policies wander."""
    progress = (np.arange(collapse.BINS) + 0.5) / collapse.BINS
    height = np.maximum(1000 + 300 * RANDOM.normal(size=(seeds, 1)) + 300 * shift, 100)
    speed = RANDOM.uniform(0.1, 0.5, size=(seeds, 1))
    falls = RANDOM.random((seeds, 1)) < 0.3
    when = RANDOM.uniform(0.4, 1.0, size=(seeds, 1))
    kept = np.where(falls & (progress > when), RANDOM.uniform(0.1, 0.4, size=(seeds, 1)), 1.0)
    return height * np.minimum(progress / speed, 1) * kept + 40 * wandering(
        (seeds, collapse.BINS), 0.9
    )


def equal_curves(seeds: int) -> np.ndarray:
    """Every seed rises to 1000 and stays there."""
    progress = (np.arange(collapse.BINS) + 0.5) / collapse.BINS
    return np.tile(1000 * np.minimum(progress / 0.3, 1), (seeds, 1))


def stated(first: collapse.Collapse, second: collapse.Collapse) -> dict[str, bool]:
    """What a page of these two arms would state, by measure, as `compare` does."""
    found: dict[str, Improvement] = {
        name: improvement_in(name, [(first, second)]) for name in COMPARED
    }
    fisher = equal_fractions(first, second)
    adjusted = holm(np.array([*(one.p_value for one in found.values()), fisher]))
    result = {}
    for (name, one), p_value in zip(found.items(), adjusted, strict=False):
        result[f"{name}, uncorrected"] = is_supported(one)
        result[name] = is_supported(replace(one, adjusted_p=p_value))
    result["collapsed, uncorrected"] = fisher < SIGNIFICANCE
    result["collapsed"] = adjusted[-1] < SIGNIFICANCE
    result["anything"] = any(result[name] for name in (*COMPARED, "collapsed"))
    result["anything, uncorrected"] = any(
        result[f"{name}, uncorrected"] for name in (*COMPARED, "collapsed")
    )
    return result


def studies(trials: int) -> None:
    """Whole comparisons of two arms: how often something is stated."""
    cases: dict[str, Callable[[int], tuple[collapse.Bins, collapse.Bins]]] = {
        "equal arms": lambda n: (binned(collapsing(n), 100, 4), binned(collapsing(n), 100, 4)),
        "equal curves, episodes' spread 100 and 500": lambda n: (
            binned(equal_curves(n), 100, 2),
            binned(equal_curves(n), 500, 2),
        ),
        "equal but for returns one standard deviation apart": lambda n: (
            binned(collapsing(n, 1.0), 100, 4),
            binned(collapsing(n), 100, 4),
        ),
    }
    columns = ("anything", "anything, uncorrected", *COMPARED, "collapsed")
    rows = []
    for name, draw in cases.items():
        for n in STUDY_SIZES:
            found = [stated(*map(collapse.measure, draw(n))) for _ in range(trials)]
            rows.append(
                [f"{name}, {n} seeds", *(share([one[c] for one in found]) for c in columns)]
            )
    table(
        f"How often a page of two arms states a difference ({trials} studies; after Holm's "
        "correction unless it says otherwise)",
        ["arms", *(column.replace("_", " ") for column in columns)],
        rows,
    )


def log_ranks(repetitions: int) -> None:
    """False positives of the log-rank test, which is asymptotic."""
    cells = []
    for n in SIZES:
        time = np.minimum(np.ceil(RANDOM.exponential(100, size=(repetitions, 2, n))), 100)
        happened = (time < 100).astype(float)
        p_values = [log_rank(x, dx, y, dy) for (x, y), (dx, dy) in zip(time, happened, strict=True)]
        cells.append(share(np.array(p_values) < SIGNIFICANCE))
    table(
        "Log-rank test of equal arms, 63 % of which fall: p < 0.05",
        ["", *(f"n = {n}" for n in SIZES)],
        [["false positives", *cells]],
    )


def main() -> None:
    """Print every table."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="a tenth of the trials")
    scale = 10 if parser.parse_args().quick else 1
    single_seeds(20_000 // scale)
    means(2000 // scale)
    fractions(20_000 // scale)
    improvements(2000 // scale)
    log_ranks(2000 // scale)
    studies(200 // scale)


if __name__ == "__main__":
    main()
