"""The plan of the house: one name for every module, one direction for every arrow."""

import ast
import graphlib
import re
from collections import defaultdict
from pathlib import Path

import grimp
import pytest
from importlinter.cli import lint_imports

ROOT = Path(__file__).parent.parent
OURS = ("agents", "analysis", "envs", "streams", "studies", "evaluate", "sb3", "train")
NO_CODE_OF_OURS = {"build", "dist", "runs"}


def files(pattern):
    """The tree's files of that kind, without what was built or installed into it."""
    for path in ROOT.rglob(pattern):
        parts = path.relative_to(ROOT).parts
        if not any(part.startswith(".") or part in NO_CODE_OF_OURS for part in parts[:-1]):
            yield path


def imported_names(path):
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and not node.level:
            yield node.module


@pytest.fixture(scope="module")
def graph():
    return grimp.build_graph("upgd_ppo", cache_dir=None)


def room_of(module):
    """`upgd_ppo.agents.ROOM`, `upgd_ppo.envs`, …"""
    parts = module.split(".")
    return ".".join(parts[: 3 if parts[1:2] == ["agents"] else 2])


def test_no_module_of_ours_is_imported_under_its_bare_name():
    bare = [
        f"{path.relative_to(ROOT)}: {name}"
        for path in files("*.py")
        for name in imported_names(path)
        if name.split(".")[0] in OURS
    ]
    bare += [
        f"{path.relative_to(ROOT)}: {line}"
        for path in files("*.md")
        for line in re.findall(
            rf"^\s*((?:from|import) (?:{'|'.join(OURS)})\b.*)",
            path.read_text(encoding="utf-8"),
            re.MULTILINE,
        )
    ]
    assert not bare, "say `upgd_ppo.…`; the bare names belong to other packages"


def test_there_is_no_circle_between_rooms(graph):
    arrows = defaultdict(set)
    for module in graph.modules:
        for imported in graph.find_modules_directly_imported_by(module):
            if room_of(module) != room_of(imported):
                arrows[room_of(module)].add(room_of(imported))
    assert len(arrows) > 10
    graphlib.TopologicalSorter(arrows).prepare()  # raises a CycleError that names the circle


def test_the_arrows_run_as_the_contracts_in_pyproject_say(capsys):
    code = lint_imports(config_filename=str(ROOT / "pyproject.toml"), no_cache=True)
    assert code == 0, capsys.readouterr().out
