"""Presets: settings in a YAML file, whose keys are the names of the flags."""

from __future__ import annotations

import difflib
import typing
from pathlib import Path
from typing import Any

import yaml

from upgd_ppo.agents.settings.config import TrainConfig
from upgd_ppo.agents.settings.flags import nearest_flag, read_value

FOLDER = Path(__file__).resolve().parents[2] / "configs"
"""Where the presets lie that can be named without a path."""
MAX_BYTES, MAX_DEPTH = 1 << 16, 16
"""Settings are a page of text, a few lists deep. A larger file is something else, and one that is
nested deeper, or in which one part stands for many, is made to exhaust its reader."""


def find_preset(name: str) -> Path:
    """The file at that path, or else the preset of that name that ships with this package.

    Raises:
        ValueError: naming what is near.
    """
    path, shipped = Path(name), _shipped()
    if path.exists() or path.suffix or path.name != name or not shipped:
        return path
    if name in shipped:
        return shipped[name]
    near = difflib.get_close_matches(path.stem, preset_names(), n=1)
    hint = f" Perhaps you meant {near[0]}?" if near else f" Presets: {', '.join(preset_names())}."
    raise ValueError(f"There is no preset {name}: no such file, and none of that name.{hint}")


def preset_names() -> list[str]:
    """The presets that ship with this package."""
    return sorted(_shipped())


def _shipped() -> dict[str, Path]:
    return {path.stem: path for path in FOLDER.rglob("*.yaml")}


_FORMER_VALUES = {
    ("normalize_advantages", "true"): "minibatch",
    ("normalize_advantages", "false"): "off",
}
"""What settings were called in the config.yaml of older runs."""


def load_preset(path: Path, base: TrainConfig) -> TrainConfig:
    """The settings of a YAML preset over those of `base`.

    Raises:
        ValueError: naming the file, the line and the key of what is wrong.
    """
    changes = read_settings(path)
    if "opt_defaults" in changes:
        changes["opt_defaults"] = {**base.run.opt_defaults, **changes["opt_defaults"]}
    if "methods" in changes:
        changes["methods"] = {**base.run.methods, **changes["methods"]}
    return base.with_flat(changes)


def read_text(path: Path) -> str:
    """The text of a file of settings.

    Raises:
        ValueError: if it cannot be read, or is no such text.
    """
    try:
        with open(path, "rb") as file:
            content = file.read(MAX_BYTES + 1)
        if len(content) > MAX_BYTES:
            raise ValueError(
                f"Cannot read the preset {path}: it has more than {MAX_BYTES:,} bytes, so it is"
                " none."
            )
        return content.decode("utf-8")
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "it is not text"
        raise ValueError(f"Cannot read the preset {path}: {reason}.") from None


def read_settings(path: Path) -> dict[str, Any]:
    """The settings of a YAML preset by name.

    Raises:
        ValueError: naming the file, the line and the key of what is wrong.
    """
    text = read_text(path)
    try:
        root = yaml.compose(text, Loader=_Loader)
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        where = f"{path}, line {mark.line + 1}" if mark else str(path)
        problem = getattr(error, "problem", None) or "it cannot be parsed"
        raise ValueError(f"{where}: not valid YAML: {problem}.") from None
    if root is None:
        return {}
    if not isinstance(root, yaml.MappingNode):
        raise ValueError(f"{path}, line 1: a preset maps settings to values, such as 'epochs: 20'.")

    annotations = _setting_types()
    settings: dict[str, Any] = {}
    for key_node, value_node in root.value:
        where = f"{path}, line {key_node.start_mark.line + 1}"
        key = str(key_node.value).replace("-", "_")
        if key not in annotations:
            near = nearest_flag(key, annotations)
            hint = f"perhaps you meant {near}" if near else "see train.py --help"
            raise ValueError(f"{where}: there is no setting {key!r}; {hint}.")
        if key in settings:
            raise ValueError(f"{where}: {key!r} is set twice.")
        try:
            value = _plain(value_node)
            if isinstance(value, str):
                value = _FORMER_VALUES.get((key, value.lower()), value)
            settings[key] = read_value(value, annotations[key])
        except ValueError as error:
            raise ValueError(f"{where}: {key}: {error}.") from None
    return settings


class _Loader(yaml.SafeLoader):
    """Reads trees only: no aliases, and none that is too deep."""

    depth = 0

    def compose_node(self, parent: Any, index: Any) -> Any:
        mark: Any = self.peek_event().start_mark
        if self.check_event(yaml.AliasEvent):
            problem = "aliases (*name) are not read: write out what they stand for"
            raise yaml.MarkedYAMLError(problem=problem, problem_mark=mark)
        if self.depth >= MAX_DEPTH:
            problem = f"more than {MAX_DEPTH} levels inside one another"
            raise yaml.MarkedYAMLError(problem=problem, problem_mark=mark)
        self.depth += 1
        node = super().compose_node(parent, index)
        self.depth -= 1
        return node


def _setting_types() -> dict[str, Any]:
    groups = typing.get_type_hints(TrainConfig).values()
    return {
        name: annotation
        for group in groups
        for name, annotation in typing.get_type_hints(group).items()
    }


def _plain(node: yaml.Node) -> Any:
    """A YAML node as strings, lists and dicts: types come from the settings, not from YAML."""
    if isinstance(node, yaml.ScalarNode):
        return node.value
    if isinstance(node, yaml.SequenceNode):
        return [_plain(item) for item in node.value]
    if not all(isinstance(key, yaml.ScalarNode) for key, _ in node.value):
        raise ValueError("expected keywords that are words")
    return {key.value: _plain(value) for key, value in node.value}
