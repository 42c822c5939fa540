"""Names of methods: what `train.py --methods NAME key=value …` understands."""

from __future__ import annotations

import dataclasses
import difflib
from collections.abc import Iterable, Mapping
from typing import Any

from upgd_ppo.agents.methods.continual_backprop import ContinualBackprop
from upgd_ppo.agents.methods.method import Method
from upgd_ppo.agents.methods.random_reset import RandomReset

REGISTRY: dict[str, type[Method]] = {
    "continual_backprop": ContinualBackprop,
    "random_reset": RandomReset,
}


def names() -> list[str]:
    """The registered names."""
    return list(REGISTRY)


def get(name: str) -> type[Method]:
    """The method of that name.

    Raises:
        ValueError: if there is none, naming what is near.
    """
    if name not in REGISTRY:
        raise ValueError(
            f"There is no method {name!r}.{_perhaps(name.lower(), REGISTRY)} Registered are "
            f"{', '.join(REGISTRY)}."
        )
    return REGISTRY[name]


def make(name: str, settings: Mapping[str, Any] | None = None) -> Method:
    """The method of that name with these settings, and its defaults for the others.

    Raises:
        ValueError: if there is no such method or setting, or a value is refused.
    """
    method, settings = get(name), settings or {}
    if not isinstance(settings, Mapping):
        raise ValueError(f"The settings of method {name!r} are to be KEY=VALUE, not {settings!r}.")
    known = [field.name for field in dataclasses.fields(method)]  # type: ignore[arg-type]
    for key in settings:
        if key not in known:
            raise ValueError(
                f"Method {name!r} has no setting {key!r}.{_perhaps(key, known)} It has "
                f"{', '.join(known) or 'none'}."
            )
    try:
        return method(**settings)
    except (TypeError, ValueError) as error:
        raise ValueError(f"Method {name!r}: {error}") from error


def _perhaps(word: str, possible: Iterable[str]) -> str:
    near = difflib.get_close_matches(word, list(possible), n=3, cutoff=0.5)
    return f" Perhaps you meant {' or '.join(near)}?" if near else ""
