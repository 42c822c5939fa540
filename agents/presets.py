"""Presets: settings in a YAML file, whose keys are the names of the flags."""

from __future__ import annotations

import difflib
import types
import typing
from pathlib import Path
from typing import Any, Literal

import yaml

from agents.config import TrainConfig
from agents.flags import parse_count, parse_value

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
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "it is not text"
        raise ValueError(f"Cannot read the preset {path}: {reason}.") from None
    try:
        root = yaml.compose(text, Loader=yaml.SafeLoader)
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        where = f"{path}, line {mark.line + 1}" if mark else str(path)
        problem = getattr(error, "problem", None) or "it cannot be parsed"
        raise ValueError(f"{where}: not valid YAML: {problem}.") from None
    if root is None:
        return base
    if not isinstance(root, yaml.MappingNode):
        raise ValueError(f"{path}, line 1: a preset maps settings to values, such as 'epochs: 20'.")

    annotations = _setting_types()
    changes: dict[str, Any] = {}
    for key_node, value_node in root.value:
        where = f"{path}, line {key_node.start_mark.line + 1}"
        key = str(key_node.value).replace("-", "_")
        if key not in annotations:
            near = difflib.get_close_matches(key, annotations, n=3)
            hint = f"perhaps you meant {' or '.join(near)}" if near else "see train.py --help"
            raise ValueError(f"{where}: there is no setting {key!r}; {hint}.")
        if key in changes:
            raise ValueError(f"{where}: {key!r} is set twice.")
        try:
            value = _plain(value_node)
            if isinstance(value, str):
                value = _FORMER_VALUES.get((key, value.lower()), value)
            changes[key] = _coerce(value, annotations[key])
        except ValueError as error:
            raise ValueError(f"{where}: {key}: {error}.") from None
    if "opt_defaults" in changes:
        changes["opt_defaults"] = {**base.run.opt_defaults, **changes["opt_defaults"]}
    return base.with_flat(changes)


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
    return {key.value: _plain(value) for key, value in node.value}


def _coerce(value: Any, annotation: Any) -> Any:
    """A plain YAML value as the type of its setting.

    Raises:
        ValueError: a half-sentence saying what was expected and what was found.
    """
    origin, arguments = typing.get_origin(annotation), typing.get_args(annotation)
    if origin in (typing.Union, types.UnionType):
        if value in ("null", "None", "none", "~", ""):
            return None
        return _coerce(value, next(kind for kind in arguments if kind is not type(None)))
    if annotation is dict or origin is dict:
        if not isinstance(value, dict):
            raise ValueError(f"expected a mapping of keywords, found {value!r}")
        return {key.replace("-", "_"): _free_value(item) for key, item in value.items()}
    if origin is tuple:
        items = value if isinstance(value, list) else str(value).split()
        return tuple(_coerce(item, arguments[0]) for item in items)
    if isinstance(value, list | dict):
        raise ValueError(f"expected a single value, found {value!r}")
    if origin is Literal:
        if value not in arguments:
            raise ValueError(f"expected one of {', '.join(arguments)}, found {value!r}")
        return value
    if annotation is bool:
        named = {"true": True, "false": False, "yes": True, "no": False, "on": True, "off": False}
        if value.lower() not in named:
            raise ValueError(f"expected true or false, found {value!r}")
        return named[value.lower()]
    if annotation is int:
        return parse_count(value)
    if annotation is float:
        try:
            return float(value)
        except ValueError:
            raise ValueError(f"expected a number, found {value!r}") from None
    return annotation(value)


def _free_value(value: Any) -> Any:
    if isinstance(value, list):
        return [_free_value(item) for item in value]
    if isinstance(value, dict):
        return {key: _free_value(item) for key, item in value.items()}
    return parse_value(value)
