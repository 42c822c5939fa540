"""Draws docs/architecture.png: the rooms of the code and who imports whom, from the imports.

An arrow that follows from others is left out.

python docs/draw_architecture.py
"""

from __future__ import annotations

import sys
from collections import Counter
from pathlib import Path

import grimp
import matplotlib.pyplot as plt
import networkx as nx
from matplotlib.patches import FancyArrowPatch, FancyBboxPatch

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import checkout  # noqa: F401  # isort: split

HERE = Path(__file__).resolve().parent
FLOORS = [
    ["train", "evaluate"],
    ["playing", "analysis"],
    ["sb3"],
    ["runs", "population"],
    ["learners"],
    ["envs", "methods", "plasticity", "streams"],
    ["command_line"],
    ["optimizers"],
    ["networks"],
    ["kernels", "settings"],
    ["machine"],
]
"""From the commands on top to what imports nothing of ours."""
WHAT = {
    "train": "train.py",
    "evaluate": "evaluate.py",
    "runs": "the loop, what it writes, how it stops",
    "population": "members, in processes",
    "playing": "episodes, films",
    "sb3": "the SB3 plug-in",
    "learners": "PPO, supervised",
    "streams": "supervised streams",
    "methods": "what acts after a step",
    "plasticity": "statistics, warnings",
    "optimizers": "UPGD, registry, memory",
    "envs": "MuJoCo, many at a time",
    "analysis": "reads records, compares",
    "networks": "layers, activations, actor and critic",
    "kernels": "compiled twins",
    "settings": "flags, presets",
    "machine": "cores, files",
    "command_line": "printing, imports",
}


def room_of(module: str) -> str:
    """The room of a module of ours; "" for what is no room."""
    parts = module.split(".")[1:]
    name = parts[1] if parts[:1] == ["agents"] and len(parts) > 1 else (parts or [""])[0]
    return name if name in WHAT else ""


def imports_between_rooms() -> Counter[tuple[str, str]]:
    """(importing room, imported room) → by how many imports."""
    graph = grimp.build_graph("upgd_ppo", cache_dir=None)
    counts: Counter[tuple[str, str]] = Counter()
    for module in graph.modules:
        for other in graph.find_modules_directly_imported_by(module):
            pair = room_of(module), room_of(other)
            if all(pair) and pair[0] != pair[1]:
                counts[pair] += 1
    return counts


def draw(counts: Counter[tuple[str, str]], path: Path) -> None:
    rooms = {room for pair in counts for room in pair}
    figure, axis = plt.subplots(figsize=(10, 11.5), layout="constrained")
    axis.axis("off")
    place = {}
    for floor, names in enumerate(FLOORS):
        present = [name for name in names if name in rooms]
        for position, name in enumerate(present):
            x = 5 + 2.6 * (position - (len(present) - 1) / 2) + 0.5 * (floor % 2 - 0.5)
            place[name] = (x, -1.6 * floor)
    # What follows from other arrows is left out: who imports learners may import networks, too.
    reduced = nx.transitive_reduction(nx.DiGraph(list(counts)))
    for source, target in reduced.edges:
        arrow = FancyArrowPatch(
            (place[source][0], place[source][1] - 0.4),
            (place[target][0], place[target][1] + 0.4),
            arrowstyle="-|>",
            mutation_scale=11,
            shrinkA=0,
            shrinkB=0,
            linewidth=1.2,
            color="0.45",
            connectionstyle="arc3,rad=0.03",
            zorder=1,
        )
        axis.add_patch(arrow)
    for name, (x, y) in place.items():
        box = FancyBboxPatch(
            (x - 1.05, y - 0.36), 2.1, 0.72, boxstyle="round,pad=0.04", fc="#eef3fb", ec="#3a5a8c"
        )
        axis.add_patch(box)
        axis.text(x, y + 0.1, name, ha="center", va="center", fontsize=11, weight="bold")
        axis.text(x, y - 0.17, WHAT[name], ha="center", va="center", fontsize=7, color="0.3")
    axis.set_xlim(-0.6, 10.6)
    axis.set_ylim(-1.6 * (len(FLOORS) - 1) - 0.6, 0.6)
    figure.savefig(path, dpi=110)


if __name__ == "__main__":
    draw(imports_between_rooms(), HERE / "architecture.png")
