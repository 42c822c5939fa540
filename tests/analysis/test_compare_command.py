"""`python evaluate.py compare`: the report it leaves, and how it refuses."""

import re
import subprocess
import sys
from pathlib import Path

import pandas as pd
import pytest
from PIL import Image
from synthetic_runs import climb, collapse, write_run

from analysis import report as report_module
from analysis.readers import read_arms
from evaluate import main

ROOT = Path(__file__).parents[2]


def evaluate(*arguments: object) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(ROOT / "evaluate.py"), *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, timeout=120)


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("runs")
    write_run(folder / "Ant-v4-adam", [collapse] * 5 + [climb], halted={1: 70_000})
    write_run(folder / "Ant-v4-upgd", [climb] * 6, opt="upgd<b>", epochs=15)
    return folder


@pytest.fixture(scope="module")
def report(runs: Path) -> tuple[Path, str]:
    out = runs / "report"
    done = evaluate("compare", runs / "Ant-v4-adam", runs / "Ant-v4-upgd", "--out", out)
    assert done.returncode == 0, done.stderr
    return out, done.stdout


def test_the_verdict_is_printed(report: tuple[Path, str]):
    assert "adam: 5 of 6 seeds collapsed (1 of them halted by non-finite training)" in report[1]
    assert "upgd<b> ends with higher returns than adam" in report[1]


def test_the_page_needs_no_network_and_no_script(report: tuple[Path, str]):
    page = (report[0] / "report.html").read_text()
    assert page.count("data:image/png;base64,") == 5
    assert not re.search(r'(src|href)="(?!data:)', page)
    assert "<script" not in page
    assert "http" not in re.sub(r"base64,[^\"]*", "", page)


def test_names_from_outside_are_escaped(report: tuple[Path, str]):
    page = (report[0] / "report.html").read_text()
    assert "upgd&lt;b&gt;" in page
    assert "upgd<b>" not in page


def test_the_page_says_what_the_reader_must_mind(report: tuple[Path, str]):
    page = (report[0] / "report.html").read_text()
    assert "differ in more than the optimizer: epochs (10 and 15)" in page
    assert "halted at step 70,000" in page
    assert "found on the odd episodes and read on the even ones" in " ".join(page.split())
    assert "retains more (primary)" in page
    assert "2.13.0" in page


def test_every_figure_is_there_as_png_and_pdf(report: tuple[Path, str]):
    for name in ("learning_curves", "retained", "final_returns", "layers", "training"):
        stem = report[0] / "figures" / f"Ant-v4_{name}"
        with Image.open(stem.with_suffix(".png")) as image:
            assert len(set(image.convert("L").resize((40, 40)).tobytes())) > 5
        assert stem.with_suffix(".pdf").read_bytes().startswith(b"%PDF")


def test_the_tables_hold_the_numbers_behind_the_page(report: tuple[Path, str]):
    tables = {path.stem: pd.read_csv(path) for path in (report[0] / "data").iterdir()}
    seeds = tables["seeds"]
    adam = seeds[seeds.arm == "adam"]
    assert adam.outcome.tolist() == ["collapsed", "halted", *["collapsed"] * 3, "kept"]
    expected = (adam.final - adam.start) / (adam.peak - adam.start)
    expected = expected.where(adam.outcome != "halted", -1)
    assert adam.retained.tolist() == pytest.approx(expected.tolist())

    arms = tables["arms"].set_index(["arm", "measure", "aggregate", "interval"])
    assert arms.value["adam", "final", "mean", "t"] == pytest.approx(adam.final.mean())
    fraction = arms.loc[("adam", "collapsed", "fraction", "exact")]
    assert fraction.value == pytest.approx(5 / 6)
    assert fraction.low < 5 / 6 < fraction.high
    assert (
        arms.loc[(slice(None), ["collapsed", "fell"]), :].reset_index().interval == "exact"
    ).all()
    survival = tables["survival"]
    assert survival[survival.arm == "adam"].not_fallen.iloc[[0, -1]].tolist() == pytest.approx(
        [1, 1 / 6]
    )

    curves = tables["seed_curves"]
    last = curves[(curves.arm == "adam") & (curves.step > 95_000)].groupby("seed").episode_return
    assert last.mean().tolist() == pytest.approx(adam.final.tolist())
    assert len(tables["curves"]) == 2 * 100
    pairs = tables["pairs"]
    assert pairs.probability_first_better.between(0, 1).all()
    assert pairs.measure[pairs.primary].tolist() == ["retained"]
    assert (pairs.adjusted_p >= pairs.p).all()
    assert set(tables["statistics"].layer.dropna()) == {"layer_1", "layer_2"}
    settings = tables["settings"].set_index("name")
    assert settings.loc["epochs"].tolist() == ["10", "15"]


def test_a_report_is_replaced_only_when_asked(
    report: tuple[Path, str], runs: Path, capsys: pytest.CaptureFixture[str]
):
    before = (report[0] / "report.html").read_bytes()
    assert main(["compare", str(runs / "Ant-v4-adam"), "--out", str(report[0])]) == 2
    assert "already holds a report" in capsys.readouterr().err
    assert (report[0] / "report.html").read_bytes() == before


def test_overwriting_replaces_the_whole_report(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    run = write_run(tmp_path / "runs/adam", [collapse] * 3, statistics=False)
    out = tmp_path / "out/report"
    (out / "figures").mkdir(parents=True)
    (out / "figures/old.png").touch()
    options = ["--out", str(out), "--overwrite", "--steps", "50000", "--aggregate", "iqm"]
    options += ["--primary", "time_below"]
    assert main(["compare", f"Mine={run}", *options]) == 0
    printed = capsys.readouterr().out
    assert "Mine: 0 of 3 seeds collapsed" in printed
    assert not (out / "figures/old.png").exists()
    assert [path.name for path in out.parent.iterdir()] == ["report"]
    assert "interquartile mean over seeds" in (out / "report.html").read_text()


def test_what_cannot_be_compared_is_refused_in_one_sentence_and_leaves_nothing(
    runs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    adam = runs / "Ant-v4-adam"
    (tmp_path / "notes").mkdir()
    (tmp_path / "notes/mine.txt").write_text("keep me")
    write_run(tmp_path / "empty", [climb], steps=100, statistics=False)
    write_run(tmp_path / "hopper", [climb], env="Hopper-v4", steps=10_000)
    damaged = write_run(tmp_path / "damaged", [climb]) / "records/statistics"
    next(damaged.iterdir()).write_bytes(b"PAR1")
    before = sorted(tmp_path.rglob("*"))
    for arms, out, sentence in (
        ([tmp_path / "notes"], "report", "is not a run directory"),
        ([tmp_path / "empty"], "report", "has no finished episode"),
        ([adam, tmp_path / "hopper"], "report", "No two arms share a task"),
        ([adam, tmp_path / "damaged"], "report", "is not a readable Parquet file"),
        ([adam, tmp_path / "absent"], "report", "There is no folder"),
        ([adam, f"{adam}/"], "report", "given twice"),
        ([adam], "notes", "holds other files"),
        ([adam], "notes/mine.txt", "is a file"),
    ):
        assert main(["compare", *map(str, arms), "--out", str(tmp_path / out)]) == 2
        said = capsys.readouterr().err
        assert sentence in said
        assert len(said.strip().splitlines()) == 1
        assert sorted(tmp_path.rglob("*")) == before


def test_a_refusal_reaches_the_shell_as_status_2_without_a_traceback(tmp_path: Path):
    refused = evaluate("compare", tmp_path / "absent", "--out", tmp_path / "report")
    assert refused.returncode == 2
    assert refused.stderr == f"evaluate.py: error: There is no folder {tmp_path / 'absent'}.\n"


def test_a_report_that_fails_halfway_leaves_nothing(
    runs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    def full_disk(*_: object) -> dict[str, pd.DataFrame]:
        raise OSError("No space left on device")

    monkeypatch.setattr(report_module, "figures", lambda _: iter(()))
    monkeypatch.setattr(report_module, "tables", full_disk)
    with pytest.raises(OSError, match="No space left"):
        report_module.write_report(read_arms([str(runs / "Ant-v4-adam")]), tmp_path / "report")
    assert list(tmp_path.iterdir()) == []
