"""Commands that are printed can be typed as they are."""

import sys

import pytest

from upgd_ppo import __main__ as installed
from upgd_ppo import evaluate
from upgd_ppo.agents.command_line.shell import this_command, typed


@pytest.fixture
def environment(tmp_path, monkeypatch):
    programs = tmp_path / "project" / ".venv" / "bin"
    programs.mkdir(parents=True)
    for name in ("python", "tensorboard"):
        (programs / name).touch(mode=0o755)
    monkeypatch.setattr(sys, "executable", str(programs / "python"))
    monkeypatch.chdir(tmp_path / "project")
    return programs


def test_in_an_activated_environment_a_program_has_its_name(environment, monkeypatch):
    monkeypatch.setenv("PATH", str(environment))
    assert typed("tensorboard") == "tensorboard"


@pytest.mark.parametrize("path", ["", "/usr/bin:/bin"])
def test_elsewhere_it_has_its_path(environment, monkeypatch, path):
    monkeypatch.setenv("PATH", path)
    assert typed("python") == ".venv/bin/python"
    monkeypatch.chdir("/")
    assert typed("tensorboard").endswith("project/.venv/bin/tensorboard")


def test_a_program_that_is_not_there_is_left_to_the_shell(environment):
    assert typed("nothing-of-this-name") == "nothing-of-this-name"


def test_a_command_is_named_as_it_was_begun(environment, monkeypatch):
    monkeypatch.setenv("PATH", str(environment))
    monkeypatch.setattr(sys, "argv", ["train.py"])
    assert this_command("train") == "python train.py"
    seen = []
    monkeypatch.setattr("upgd_ppo.train.main", lambda _: seen.append(this_command("train")) or 0)
    assert installed.main(["train", "--resume", "run"]) == 0
    assert seen == ["upgd-ppo train"]


def test_a_missing_package_is_named_with_a_command_that_installs_it(capsys, monkeypatch):
    def compare(_):
        raise ModuleNotFoundError("No module named 'scipy'", name="scipy")

    monkeypatch.setattr(evaluate, "compare", compare)
    assert evaluate.main(["compare", "runs/a"]) == 2
    said = capsys.readouterr().err
    assert "This needs scipy" in said
    assert "pip install '.[analysis]'" in said
    assert "Traceback" not in said
