"""`python evaluate.py compare`: the report it leaves, and how it refuses."""

import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
import pytest
from PIL import Image
from synthetic_runs import climb, collapse, write_parts, write_run

from upgd_ppo.analysis import report as report_module
from upgd_ppo.analysis.arm import InputError
from upgd_ppo.analysis.comparison import compare
from upgd_ppo.analysis.figures import figures
from upgd_ppo.analysis.page import page
from upgd_ppo.analysis.readers import read_arms
from upgd_ppo.analysis.tables import tables
from upgd_ppo.evaluate import main

ROOT = Path(__file__).parents[2]
FIGURES = (
    *("learning_curves", "every_seed", "falls", "retained", "final_returns"),
    *("layers", "weights", "training"),
)


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
    assert page.count("data:image/png;base64,") == len(FIGURES)
    assert not re.search(r'(src|href)="(?!data:|#)', page)
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


def test_the_contents_lead_to_every_section(report: tuple[Path, str]):
    page = (report[0] / "report.html").read_text()
    targets = re.findall(r'href="#([^"]+)"', page)
    assert len(targets) >= 8
    assert sorted(targets) == sorted(re.findall(r' id="([^"]+)"', page))


def test_nothing_is_folded_or_cut_in_print(report: tuple[Path, str]):
    page = (report[0] / "report.html").read_text()
    assert "<details" not in page
    print_rules = page[page.index("@media print") : page.index("</style>")]
    assert re.search(r"\.scroll, figure \{ overflow: visible; \}", print_rules)
    assert re.search(r"th, td \{ white-space: normal;", print_rules)


def test_what_is_not_known_is_a_dash_and_never_nan(tmp_path: Path):
    flat = write_run(tmp_path / "flat", [lambda p: 0 * p] * 2, noise=0.0)
    rising = write_run(tmp_path / "rising", [climb], opt="upgd", statistics=False)
    short = write_run(tmp_path / "short", [climb] * 2, opt="sgd", episode_length=10_000)
    written = written_page(flat, rising, short)
    body = re.sub(r"<[^>]*>", " ", written[written.index("<body>") :])
    assert "–" in body
    assert not re.search(r"\b(nan|NaN|None|inf)\b", body)


def written_page(*runs: Path) -> str:
    """The page on those runs, without its figures."""
    study = compare(read_arms([str(run) for run in runs]))
    return page(study, {result.environment: [] for result in study.environments}, tables(study), "")


def warn(run: Path, rows: list[tuple[int, int, str, str]]) -> None:
    """Add events (seed, step, kind, message) to a run's records."""
    seed, step, kind, message = zip(*rows, strict=True)
    member = [number - 1 for number in seed]
    columns = {"member": member, "seed": seed, "step": step, "kind": kind, "message": message}
    write_parts(run / "records/events", pa.table(columns), max(step), 1)


def test_early_warnings_are_counted_and_listed_apart(tmp_path: Path):
    run = write_run(tmp_path / "adam", [climb] * 3)
    far = "ppo approx_kl is {}, above 0.2: the policy moves too far at once"
    rank = "{} effective_rank fell to 39% of its early value, below 40%: features are collapsing"
    warn(
        run,
        [
            *((1, 1000 * k, "warning", far.format(0.3 + k)) for k in range(1, 41)),
            (3, 900, "warning", far.format(9)),
            (2, 5000, "warning", rank.format("actor layer_2")),
            (2, 6000, "warning", rank.format("critic layer_1")),
            (1, 7000, "warning", "actor std_0 is not finite"),
        ],
    )
    written = written_page(run)
    table = written[written.index("Early warnings</h3>") : written.index("Every seed</h3>")]
    rows = [re.sub(r"\s*<[^>]*>\s*", "|", row) for row in table.split("<tr>")[2:]]
    assert [re.sub(r"\|+", "|", row).strip("|").split("|")[:6] for row in rows] == [
        line.split("|")
        for line in (
            "adam|approx_kl above 0.2: the policy moves too far at once|2 of 3|41|900|ppo",
            "adam|effective_rank below 40% of its early value: features are collapsing|1 of 3|2|"
            "5,000|actor layer_2, critic layer_1",
            "adam|std not finite|1 of 3|1|7,000|actor",
        )
    ]
    assert "moves too far" not in written.replace(table, "")
    assert len(tables(compare(read_arms([str(run)])))["warnings"]) == 44


def test_a_run_that_was_changed_while_it_trained_is_shown_to_be(tmp_path: Path):
    run = write_run(tmp_path / "adam", [climb] * 2)
    warn(run, [(1, 50_000, "changed", "--opt upgd → adam")])
    written = written_page(run)
    mind = written[written.index("<b>Mind</b>") : written.index("Collapse</h3>")]
    assert "at step 50,000 it was continued with --opt upgd → adam" in mind


def test_curves_over_the_living_seeds_say_so(tmp_path: Path):
    run = write_run(tmp_path / "adam", [climb] * 3, halted={1: 40_000})
    (result,) = compare(read_arms([str(run)])).environments
    found = {name: (caption, figure) for name, caption, figure in figures(result)}
    for name in ("layers", "weights", "training"):
        caption, figure = found[name]
        assert "over the seeds that still live" in caption
        labels = [text.get_text() for text in figure.legends[0].get_texts()]
        assert labels == [
            "adam (3 seeds, 2 at the end)",
            "halted: one seed fewer from here on",
        ]
        crosses = [
            line.get_xdata().tolist()
            for axes in figure.axes
            for line in axes.lines
            if line.get_marker() == "x"
        ]
        assert crosses
        assert all(cross == pytest.approx([39_500]) for cross in crosses)


def test_layers_are_drawn_so_that_they_can_be_read(tmp_path: Path):
    run = write_run(tmp_path / "adam", [climb] * 2)
    (result,) = compare(read_arms([str(run)])).environments
    arm = result.arms[0]
    ones = np.ones((2, 100))
    growing = ones * np.geomspace(0.01, 100, 100)
    for layer in ("layer_1", "output"):
        arm.statistics["actor", layer, "distance_from_init"] = growing
        arm.statistics["critic", layer, "dead_fraction"] = 0.3 * ones
    arm.statistics["ppo", "", "learning_rate"] = ones
    found = {name: figure for name, _, figure in figures(result)}
    panels = {
        name: {axes.get_title(): axes for axes in figure.axes if axes.get_visible()}
        for name, figure in found.items()
    }
    assert all(found[name].get_figwidth() <= 8 for name in found)
    assert "learning rate" not in panels["training"]
    assert "outputs" not in found  # an actor's output begins near zero
    titles = [axes.get_title() for axes in found["layers"].axes if axes.get_title()]
    assert titles == ["actor, layer 1", "actor, layer 2", "critic, layer 1", "critic, layer 2"]
    by_label = {axes.get_ylabel(): axes for axes in found["weights"].axes}
    assert by_label["distance\nfrom init"].get_yscale() == "log"
    by_label = {axes.get_ylabel(): axes for axes in found["layers"].axes}
    assert by_label["dead fraction"].get_ylim()[0] == 0


def test_every_figure_is_there_as_png_and_pdf(report: tuple[Path, str]):
    for name in FIGURES:
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
    options = ["--out", str(out), "--overwrite", "--steps", "50e3", "--aggregate", "iqm"]
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
    damaged = write_run(tmp_path / "damaged", [climb])
    (damaged / "config.yaml").write_text("env: [Ant-v4")
    before = sorted(tmp_path.rglob("*"))
    for arms, out, sentence in (
        ([tmp_path / "notes"], "report", "is not a run directory"),
        ([tmp_path / "empty"], "report", "has no finished episode"),
        ([adam, tmp_path / "hopper"], "report", "No two arms share a task"),
        ([adam, damaged], "report", "config.yaml is damaged"),
        ([adam, tmp_path / "absent"], "report", "There is no folder"),
        ([adam, f"{adam}/"], "report", "given twice"),
        ([adam], "notes", "holds other files"),
        ([adam], "notes/mine.txt", "is a file"),
        ([adam], "/proc/report", "Cannot write /proc/report"),
        ([adam, "--steps", "5"], "report", "nothing can be measured: give more --steps"),
        ([adam, "--steps=-5"], "report", "must be at least 1"),
        ([adam, "--env", "Hopper-v4"], "report", "is for logs that do not name their task"),
        ([], "report", "Name at least one arm"),
        (["="], "report", "names no folder"),
        ([tmp_path / "notes/mine.txt"], "report", "is a file, but an arm is a folder"),
    ):
        assert main(["compare", *map(str, arms), "--out", str(tmp_path / out)]) == 2
        said = capsys.readouterr().err
        assert sentence in said
        assert len(said.strip().splitlines()) == 1
        assert sorted(tmp_path.rglob("*")) == before


def test_a_misspelt_command_is_recognized(capsys: pytest.CaptureFixture[str]):
    assert main(["comapre", "A", "B"]) == 2
    assert "Did you mean evaluate.py compare?" in capsys.readouterr().err


def test_a_folder_of_runs_is_compared_run_by_run(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(report_module, "figures", lambda _: iter(()))
    for name in ("adam", "upgd"):
        write_run(tmp_path / "runs" / name, [climb] * 2, opt=name, statistics=False)
    assert main(["compare", str(tmp_path / "runs"), "--out", str(tmp_path / "report")]) == 0
    printed = capsys.readouterr().out
    assert f"adam on Ant-v4: 2 seeds in {tmp_path / 'runs/adam'}" in printed
    assert "upgd against adam" in printed


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
    with pytest.raises(InputError, match=r"Cannot write .*report: No space left"):
        report_module.write_report(read_arms([str(runs / "Ant-v4-adam")]), tmp_path / "report")
    assert list(tmp_path.iterdir()) == []
