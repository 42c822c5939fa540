"""What `pip install` of the wheel puts where, and that it works there."""

import subprocess
import sys
import sysconfig
import tomllib
import venv
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
ROOMS = ("agents", "analysis", "envs", "streams", "studies")


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    folder = tmp_path_factory.mktemp("wheel")
    command = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--wheel-dir"]
    subprocess.run([*command, str(folder), str(ROOT)], check=True)
    [path] = folder.glob("*.whl")
    return path


def test_every_folder_of_code_is_in_the_list_of_packages():
    listed = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]["packages"]
    folders = {
        ".".join(["upgd_ppo", *path.parent.relative_to(ROOT).parts])
        for room in ROOMS
        for path in (ROOT / room).rglob("*.py")
    }
    assert sorted(listed) == sorted({"upgd_ppo", *folders})


def test_the_wheel_holds_one_package_with_its_presets_and_types(wheel):
    names = zipfile.ZipFile(wheel).namelist()
    top = {name.split("/")[0] for name in names}
    assert {name for name in top if not name.endswith(".dist-info")} == {"upgd_ppo"}
    inside = {name.removeprefix("upgd_ppo/") for name in names}
    presets = {str(path.relative_to(ROOT)) for path in (ROOT / "configs").rglob("*.yaml")}
    assert {"py.typed", "train.py", "evaluate.py", "analysis/report.html.j2"} | presets <= inside
    assert not any("tests/" in name for name in names)


@pytest.mark.slow
def test_the_wheel_trains_beside_packages_that_have_the_names_of_our_folders(wheel, tmp_path):
    """`agents` belongs to openai-agents and `evaluate` to Hugging Face; all three get along."""
    venv.create(tmp_path / "venv", with_pip=True)
    python, command = (tmp_path / "venv/bin" / name for name in ("python", "upgd-ppo"))
    [packages] = (tmp_path / "venv/lib").glob("python*/site-packages")
    # What the package needs comes from the environment of the tests, which has it.
    (packages / "needed.pth").write_text(sysconfig.get_paths()["purelib"])
    install = [python, "-m", "pip", "install", "--quiet", "--no-deps"]
    subprocess.run([*install, wheel, "openai-agents", "evaluate"], check=True)

    quick = "--config hopper --opt upgd --rollout-steps 32 --minibatches 4 --threads 1 --steps 64"
    for arguments in (f"train {quick} --out run", "evaluate run --episodes 1"):
        subprocess.run([command, *arguments.split()], cwd=tmp_path, check=True)
    assert (tmp_path / "run/status.json").exists()

    theirs = (packages / "agents/__init__.py", packages / "evaluate/__init__.py")
    assert all(path.exists() for path in theirs)
    remove = [python, "-m", "pip", "uninstall", "--quiet", "--yes", "openai-agents", "evaluate"]
    subprocess.run(remove, check=True)
    subprocess.run([command, "train", "--version"], check=True)
    subprocess.run([python, "-m", "pip", "uninstall", "--quiet", "--yes", "upgd-ppo"], check=True)
    assert not list((packages / "upgd_ppo").rglob("*.py"))  # what remains is compiled
