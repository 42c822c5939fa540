"""From arms to a folder: one HTML page, PNG and PDF figures, and CSV files."""

import io
import tempfile
from collections.abc import Sequence
from datetime import datetime
from pathlib import Path

import matplotlib.pyplot as plt

from upgd_ppo.analysis.arm import Arm, InputError
from upgd_ppo.analysis.collapse import BINS, FEWEST_BINS, TOO_FEW
from upgd_ppo.analysis.comparison import PRIMARY, Study, compare
from upgd_ppo.analysis.figures import figures
from upgd_ppo.analysis.folders import appearing_whole
from upgd_ppo.analysis.page import Picture, page
from upgd_ppo.analysis.tables import tables

PAGE = "report.html"
CONTENTS = {PAGE, "figures", "data"}


def check_destination(out: Path, overwrite: bool) -> None:
    """Refuse a place where a report cannot go.

    Raises:
        InputError: `out` is a file, holds something else, or holds a report not to be overwritten.
    """
    if not out.exists():
        nearest = next(folder for folder in out.absolute().parents if folder.exists())
        try:
            tempfile.TemporaryDirectory(dir=nearest).cleanup()
        except OSError as error:
            raise InputError(
                f"Cannot write {out} ({nearest}: {error.strerror}); give another --out."
            ) from error
        return
    if not out.is_dir():
        raise InputError(f"{out} is a file: --out names the folder that the report goes to.")
    held = {entry.name for entry in out.iterdir()}
    if not held <= CONTENTS:
        raise InputError(f"{out} holds other files: give --out a new or empty folder.")
    if held and not overwrite:
        raise InputError(f"{out} already holds a report: give another --out, or --overwrite.")


def write_report(
    arms: Sequence[Arm],
    out: Path,
    steps: int | None = None,
    aggregate: str = "mean",
    overwrite: bool = False,
    command: str = "",
    primary: str = PRIMARY,
) -> Study:
    """Compare arms and write the report; `out` appears whole or not at all.

    Args:
        steps, aggregate, primary: see `compare`.
        overwrite: replace a report that is there.
        command: how it was asked for, for the page's foot.

    Raises:
        InputError: the arms cannot be compared, `steps` are too few to measure anything, or `out`
            cannot take the report.
    """
    check_destination(out, overwrite)
    if steps is not None and steps < 1:
        raise InputError(f"--steps is {steps}; it must be at least 1.")
    study = compare(arms, steps, aggregate, primary)
    if steps is not None:
        _check_measured(study)
    with appearing_whole(out) as folder:
        pictures: dict[str, list[Picture]] = {}
        (folder / "figures").mkdir()
        for result in study.environments:
            pictures[result.environment] = []
            stem = result.environment.replace("/", "_")
            for name, caption, figure in figures(result):
                path = folder / "figures" / f"{stem}_{name}"
                figure.draw_without_rendering()
                figure.set_layout_engine("none")  # laid out once, not for each format
                figure.savefig(path.with_name(path.name + ".pdf"))
                png = io.BytesIO()
                figure.savefig(png, format="png")
                plt.close(figure)
                path.with_name(path.name + ".png").write_bytes(png.getvalue())
                pictures[result.environment].append(
                    Picture(name, caption, png.getvalue(), figure.get_figwidth())
                )
        data = tables(study)
        (folder / "data").mkdir()
        for name, table in data.items():
            table.to_csv(folder / "data" / f"{name}.csv", index=False)
        made = f"Made {datetime.now():%Y-%m-%d %H:%M}{' by ' + command if command else ''}."
        (folder / PAGE).write_text(page(study, pictures, data, made), encoding="utf-8")
    return study


def _check_measured(study: Study) -> None:
    """Refuse a report in which nothing can be said of an environment."""
    for result in study.environments:
        if all((arm.collapse.outcome == TOO_FEW).all() for arm in result.arms):
            raise InputError(
                f"No seed on {result.environment} has episodes in {FEWEST_BINS} of the {BINS} bins "
                f"of the first {result.horizon:,} steps, so nothing can be measured: give more "
                "--steps."
            )
