"""How values are written on the command line and in presets: 20e6, KEY=VALUE."""

from __future__ import annotations

import math
from typing import Annotated, Any

from tyro.constructors import PrimitiveConstructorSpec


def parse_count(text: str) -> int:
    """A whole number, also in the form 20e6.

    Raises:
        ValueError: if the text is no whole number.
    """
    try:
        value = float(text)
    except ValueError:
        raise ValueError(f"{text!r} is not a number") from None
    if not math.isfinite(value) or value != int(value):
        raise ValueError(f"{text} is not a whole number")
    return int(value)


def parse_value(text: str) -> Any:
    """The value of a free keyword: a bool, None, an int, a float, a list of these, or a string."""
    named = {"true": True, "false": False, "none": None, "null": None}
    if text.lower() in named:
        return named[text.lower()]
    if "," in text:
        return [parse_value(part.strip()) for part in text.strip("()[]").split(",") if part.strip()]
    for kind in (int, float):
        try:
            return kind(text)
        except ValueError:
            continue
    return text


def parse_keywords(pairs: list[str]) -> dict[str, Any]:
    """["sigma=1e-3", …] → {"sigma": 1e-3, …}; dashes in a key count as underscores.

    Raises:
        ValueError: if one is not of the form KEY=VALUE.
    """
    keywords = {}
    for pair in pairs:
        key, separator, value = pair.partition("=")
        if not separator or not key:
            raise ValueError(f"{pair!r} is not of the form KEY=VALUE")
        keywords[key.replace("-", "_")] = parse_value(value)
    return keywords


def _format_value(value: Any) -> str:
    return ",".join(map(str, value)) if isinstance(value, list | tuple) else str(value)


Count = Annotated[
    int,
    PrimitiveConstructorSpec(
        nargs=1,
        metavar="COUNT",
        instance_from_str=lambda words: parse_count(words[0]),
        is_instance=lambda value: isinstance(value, int),
        str_from_instance=lambda value: [str(value)],
    ),
]
Keywords = Annotated[
    dict[str, Any],
    PrimitiveConstructorSpec(
        nargs="*",
        metavar="KEY=VALUE",
        instance_from_str=parse_keywords,
        is_instance=lambda value: isinstance(value, dict),
        str_from_instance=lambda value: [f"{k}={_format_value(v)}" for k, v in value.items()],
    ),
]
