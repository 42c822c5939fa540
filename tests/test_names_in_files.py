"""Importing a module runs its code: only what is typed on the command line is imported, never what
a preset, a run or a saved model names."""

import json
import shutil
import sys
import zipfile
from pathlib import Path

import pytest

from upgd_ppo import evaluate, train

QUICK = [
    *("--rollout-steps", "64", "--steps", "64", "--minibatches", "4", "--epochs", "1"),
    *("--hidden-sizes", "8", "--threads", "1"),
]
EVIL = """
from pathlib import Path
Path({marker!r}).touch()
import gymnasium, torch
if "Stolen-v4" not in gymnasium.registry:
    gymnasium.register("Stolen-v4", entry_point="gymnasium.envs.mujoco.hopper_v4:HopperEnv",
                       max_episode_steps=1000)
class Thief(torch.optim.SGD):
    pass
"""


@pytest.fixture(autouse=True)
def _in_an_empty_directory(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [*sys.path])


@pytest.fixture
def marker(tmp_path, monkeypatch):
    """What the module `evilmod`, which Python would find, leaves where it is imported."""
    folder = tmp_path / "site-packages"
    folder.mkdir()
    path = tmp_path / "marker"
    (folder / "evilmod.py").write_text(EVIL.format(marker=str(path)))
    monkeypatch.syspath_prepend(folder)
    yield path
    sys.modules.pop("evilmod", None)


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    out = tmp_path_factory.mktemp("runs") / "hopper"
    arguments = ["--env", "Hopper-v4", "--opt", "sgd", *QUICK, "--out", str(out)]
    assert train.main(arguments) == 0
    return out


@pytest.fixture
def run(trained, tmp_path):
    """The run, to be changed."""
    return Path(shutil.copytree(trained, tmp_path / "run"))


def rename(run, key, old, new):
    """Give a run other settings than it was trained with."""
    file = run / "config.yaml"
    text = file.read_text()
    assert f"{key}: {old}\n" in text
    file.write_text(text.replace(f"{key}: {old}\n", f"{key}: {new}\n"))


def refused(capsys, main, *arguments):
    capsys.readouterr()
    assert main([str(argument) for argument in arguments]) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    return error


@pytest.mark.parametrize(
    ("setting", "flag"),
    [
        ("env: evilmod:Stolen-v4", "--env evilmod:Stolen-v4"),
        ("opt: evilmod.Thief", "--opt evilmod.Thief"),
    ],
)
def test_a_preset_imports_nothing_and_the_error_says_how_to(setting, flag, marker, capsys):
    Path("preset.yaml").write_text(setting)
    assert flag in refused(capsys, train.main, *QUICK, "--config", "preset.yaml")
    assert not Path("runs").exists()
    assert not marker.exists()
    assert train.main([*QUICK, "--config", "preset.yaml", *flag.split()]) == 0
    assert marker.exists()


@pytest.mark.parametrize(
    ("key", "old", "new"),
    [("env", "Hopper-v4", "evilmod:Stolen-v4"), ("opt", "sgd", "evilmod.Thief")],
)
def test_continuing_a_run_imports_nothing(key, old, new, marker, run, capsys):
    rename(run, key, old, new)
    before = sorted(path for path in run.rglob("*"))
    assert f"--{key} {new}" in refused(capsys, train.main, "--resume", run, "--steps", "128")
    assert sorted(path for path in run.rglob("*")) == before
    assert not marker.exists()


@pytest.mark.parametrize("module", ["evilmod", "this"])
def test_scoring_a_run_imports_nothing(module, marker, run, capsys):
    sys.modules.pop("this", None)
    rename(run, "env", "Hopper-v4", f"{module}:Hopper-v4")
    flag = f"--env {module}:Hopper-v4"
    assert flag in refused(capsys, evaluate.main, run, "--episodes", "1")
    assert flag in refused(capsys, evaluate.main, run, "--episodes", "1", "--env", "Hopper-v5")
    assert "this" not in sys.modules
    assert not marker.exists()
    if module == "evilmod":
        assert evaluate.main([str(run), "--episodes", "1", *flag.split()]) == 0
        assert marker.exists()


def test_scoring_a_run_does_not_need_its_optimizer(marker, run):
    rename(run, "opt", "sgd", "evilmod.Thief")
    assert evaluate.main([str(run), "--episodes", "1"]) == 0
    assert not marker.exists()


def test_a_saved_model_imports_nothing(marker, run, capsys):
    sb3 = pytest.importorskip("upgd_ppo.agents.sb3")
    model, _ = sb3.export_sb3(run, 0, "model.zip")
    for env_id in ("evilmod:Hopper-v4", "this:Hopper-v4"):
        sys.modules.pop("this", None)
        stolen = Path("stolen.zip")
        with zipfile.ZipFile(model) as source, zipfile.ZipFile(stolen, "w") as target:
            for name in source.namelist():
                content = source.read(name)
                if name == "data":
                    content = json.dumps({**json.loads(content), "env_id": env_id}).encode()
                target.writestr(name, content)
        assert f"--env {env_id}" in refused(capsys, evaluate.main, stolen, "--episodes", "1")
        assert evaluate.main(["stolen.zip", "--episodes", "1", "--env", "Hopper-v4"]) == 0
        assert sb3.load_policy(stolen).env_id == env_id
        assert "this" not in sys.modules
    rename(run, "env", "Hopper-v4", "evilmod:Hopper-v4")
    with pytest.raises(ValueError, match="'import evilmod' in Python"):
        sb3.export_sb3(run, 0, "again.zip")
    assert not marker.exists()


def test_comparing_runs_imports_nothing(marker, run, capsys):
    rename(run, "env", "Hopper-v4", "evilmod:Hopper-v4")
    rename(run, "opt", "sgd", "evilmod.Thief")
    assert evaluate.main(["compare", str(run), "--out", "report"]) in (0, 2)
    assert not marker.exists()


OWN = """
import gymnasium, numpy, torch
class Mine(gymnasium.Env):
    observation_space = gymnasium.spaces.Box(-1, 1, (3,), numpy.float32)
    action_space = gymnasium.spaces.Box(-1, 1, (2,), numpy.float32)
    def __init__(self, size=1.0):
        self.size = size
    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.left = 10
        return numpy.zeros(3, numpy.float32), {}
    def step(self, action):
        self.left -= 1
        return numpy.zeros(3, numpy.float32), self.size, self.left == 0, False, {}
gymnasium.register("Mine-v0", entry_point=Mine)
class MySGD(torch.optim.SGD):
    pass
"""


def test_ones_own_task_and_optimizer_lie_in_the_current_folder():
    Path("minemod.py").write_text(OWN)
    own = ["--env", "minemod:Mine-v0", "--opt", "minemod.MySGD"]
    quick = ["--seeds", "2", *QUICK[:-1], "2", "--env-kwargs", "size=3"]
    try:
        assert train.main([*own, *quick]) == 0
        run = "runs/Mine-v0-MySGD"
        assert train.main(["--resume", run, "--steps", "128", "--accept-changes", *own]) == 0
        assert evaluate.main([run, "--episodes", "2", *own[:2]]) == 0
        folder = Path(run, "evaluation")
        (scores,) = folder.rglob("scores.json")
        assert json.loads(scores.read_text())["runs"][0]["members"][0]["mean"] == 30
    finally:
        sys.modules.pop("minemod", None)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("import no_such_thing", ["no_such_thing", "brokenmod.py, line 1"]),
        ("def f(:", ["SyntaxError", "brokenmod.py, line 1"]),
        ("1 / 0", ["ZeroDivisionError", "brokenmod.py, line 1"]),
        ("", ["no torch.optim.Optimizer class 'Mine'"]),
    ],
)
def test_a_module_that_cannot_be_imported_is_refused_with_the_line(text, words, capsys):
    Path("brokenmod.py").write_text(text)
    error = refused(capsys, train.main, "--opt", "brokenmod.Mine")
    sys.modules.pop("brokenmod", None)
    for word in words:
        assert word in error
