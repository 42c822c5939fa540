"""Compare what `train.py` left: `python evaluate.py compare ARM… --out report/`."""

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import tyro

from analysis.arm import InputError


@dataclass(frozen=True)
class Compare:
    """Compare arms: collapse, returns and layers, with intervals and a verdict.

    An arm is a run directory of train.py, or a folder with the TensorBoard logs (Stable-Baselines3,
    CleanRL) or the monitor.csv files (Stable-Baselines3) of several seeds. NAME=FOLDER names it.
    """

    arms: tyro.conf.Positional[tuple[str, ...]]
    """Folders to compare; arms of several environments are grouped by environment."""
    out: Path = Path("report")
    """Folder for the report: report.html, figures/ and data/."""
    aggregate: Literal["mean", "iqm"] = "mean"
    """What the learning curves show over seeds: the mean, or the interquartile mean (which leaves
    out the worst quarter, and with it a quarter of the collapses)."""
    steps: int | None = None
    """Measure the first so many steps; by default as many as all seeds reached."""
    env: str | None = None
    """Environment of the logs that do not name theirs."""
    overwrite: bool = False
    """Replace the report that is in the folder."""


def compare(arguments: Compare) -> None:
    """Write the report and print its verdicts."""
    from analysis.readers import read_arms

    arms = read_arms(list(arguments.arms), arguments.env)

    # Plotting takes seconds to import: not before the arms are known to be readable.
    from analysis.report import PAGE, write_report
    from analysis.verdict import suite_verdict, verdict

    study = write_report(
        arms,
        arguments.out,
        arguments.steps,
        arguments.aggregate,
        arguments.overwrite,
        f"evaluate.py compare {' '.join(arguments.arms)}",
    )
    for result in study.environments:
        _print_verdict(f"{result.environment}, first {result.horizon:,} steps", verdict(result))
    if study.suite_pairs:
        _print_verdict("All environments", suite_verdict(study))
    print(f"Report: {arguments.out / PAGE}")


def _print_verdict(title: str, verdict: dict[str, list[str]]) -> None:
    print(title)
    for about, sentences in verdict.items():
        print(f"  {about}")
        for sentence in sentences:
            print(f"  - {sentence}")
    print()


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line; returns the exit status, 2 for anything a person can mend."""
    argv = list(sys.argv[1:] if argv is None else argv)
    if argv[:1] != ["compare"]:
        print("Usage: python evaluate.py compare ARM… --out FOLDER", file=sys.stderr)
        return 0 if argv[:1] in (["-h"], ["--help"]) else 2
    arguments = tyro.cli(Compare, args=argv[1:], prog="evaluate.py compare")
    try:
        compare(arguments)
    except ModuleNotFoundError as error:
        print(f"Comparing needs {error.name}: pip install 'upgd-ppo[analysis]'.", file=sys.stderr)
        return 2
    except (InputError, OSError) as error:
        print(error, file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
