"""How the command line is read, and how values are written there and in presets."""

from __future__ import annotations

import contextlib
import dataclasses
import difflib
import io
import math
import re
import types
import typing
from collections.abc import Iterator, Mapping, Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar

import tyro
from tyro.constructors import ConstructorRegistry, PrimitiveConstructorSpec, PrimitiveTypeInfo

Parsed = TypeVar("Parsed")

Count = int
"""A whole number; like any other it may be written 20e6."""
LARGEST = 2**63

SYNONYMS = {
    **dict.fromkeys(("lr", "alpha", "step_size"), "learning_rate"),
    **dict.fromkeys(("optimizer", "optim", "algo"), "opt"),
    **dict.fromkeys(("optimizer_kwargs", "optim_kwargs", "hyperparams"), "opt_kwargs"),
    **dict.fromkeys(("total_timesteps", "timesteps", "n_timesteps", "total_steps"), "steps"),
    **dict.fromkeys(("env_id", "env_name", "environment", "task", "gym_id"), "env"),
    **dict.fromkeys(("num_envs", "n_envs"), "envs_per_seed"),
    **dict.fromkeys(("num_steps", "n_steps"), "rollout_steps"),
    **dict.fromkeys(("num_seeds", "n_seeds"), "seeds"),
    **dict.fromkeys(("batch_size", "num_minibatches", "n_minibatches"), "minibatches"),
    **dict.fromkeys(("n_epochs", "update_epochs", "num_epochs"), "epochs"),
    **dict.fromkeys(("ent_coef", "entropy_coefficient"), "entropy_coef"),
    **dict.fromkeys(("vf_coef", "value_loss_coef"), "value_coef"),
    **dict.fromkeys(("clip_range", "clip", "epsilon"), "clip_coef"),
    **dict.fromkeys(("gradient_clip", "clip_grad"), "max_grad_norm"),
    **dict.fromkeys(("net_arch", "layers", "hidden"), "hidden_sizes"),
    **dict.fromkeys(("log_dir", "logdir", "output", "output_dir", "save_dir"), "out"),
    **dict.fromkeys(("n_eval_episodes", "num_episodes", "n_episodes"), "episodes"),
    **dict.fromkeys(("tensorboard_log", "exp_name", "run_name"), "out"),
    "anneal_lr": "anneal",
    "norm_adv": "normalize_advantages",
    "clip_vloss": "clip_value_loss",
    "preset": "config",
    "num_threads": "threads",
    "continue": "resume",
    "render": "video",
}
"""What other tools call a flag → what it is called here."""


# ── Values ──────────────────────────────────────────────────────────────────────────────────────


def parse_count(text: str) -> int:
    """A whole number, also in the form 20e6.

    Raises:
        ValueError: if the text is no whole number.
    """
    try:
        value = float(text)
    except ValueError:
        raise ValueError(
            f"expected a whole number such as 1000000 or 1e6, found {text!r}"
        ) from None
    if not math.isfinite(value) or value != int(value):
        raise ValueError(f"expected a whole number, found {text}")
    if abs(value) >= LARGEST:
        raise ValueError(f"{text} is too large")
    try:
        return int(text)  # exact beyond 2⁵³ too
    except ValueError:
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


def read_value(value: Any, annotation: Any) -> Any:
    """What is written for a setting (text, or lists and mappings of text) as the setting's type.

    Raises:
        ValueError: a half-sentence saying what was expected and what was found.
    """
    origin, arguments = typing.get_origin(annotation), typing.get_args(annotation)
    if origin is Annotated:
        return read_value(value, arguments[0])
    if origin in (typing.Union, types.UnionType):
        if value in ("null", "None", "none", "~", ""):
            return None
        return read_value(value, next(kind for kind in arguments if kind is not type(None)))
    if annotation is dict or origin is dict:
        if not isinstance(value, dict):
            raise ValueError(f"expected a mapping of keywords, found {value!r}")
        return {key.replace("-", "_"): _free_value(item) for key, item in value.items()}
    if origin is tuple:
        words = value if isinstance(value, list) else [value]
        items = [part for word in words for part in re.split(r"[\s,\[\]()]+", str(word)) if part]
        return tuple(read_value(item, arguments[0]) for item in items)
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


def _format_value(value: Any) -> str:
    return ",".join(map(str, value)) if isinstance(value, list | tuple) else str(value)


def parse_named_keywords(words: list[str]) -> dict[str, dict[str, Any]]:
    """["random_reset", "every=100", …] → {"random_reset": {"every": 100}, …}.

    Raises:
        ValueError: if a keyword follows no name, or a name is given twice.
    """
    pairs: dict[str, list[str]] = {}
    for word in words:
        if "=" in word:
            if not pairs:
                raise ValueError(f"{word!r} follows no name that it could be a setting of")
            pairs[next(reversed(pairs))].append(word)
            continue
        name = word.replace("-", "_")
        if name in pairs:
            raise ValueError(f"{word!r} is given twice")
        pairs[name] = []
    return {name: parse_keywords(own) for name, own in pairs.items()}


NamedKeywords = Annotated[
    dict[str, Any],
    PrimitiveConstructorSpec(
        nargs="*",
        metavar="NAME [KEY=VALUE …] …",
        instance_from_str=parse_named_keywords,
        is_instance=lambda value: isinstance(value, dict),
        str_from_instance=lambda value: [
            word
            for name, own in value.items()
            for word in [name, *(f"{k}={_format_value(v)}" for k, v in (own or {}).items())]
        ],
    ),
]
"""Names, each with keywords of its own: name → keywords."""

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


# ── The command line ────────────────────────────────────────────────────────────────────────────


def parse_command(
    kind: type[Parsed],
    arguments: Sequence[str],
    prog: str,
    description: str | None = None,
    default: Parsed | None = None,
    config: tuple[Any, ...] = (),
) -> Parsed:
    """What a command line asks for; prints --help or --version and exits where it asks for these.

    Args:
        kind: a dataclass whose fields, and those of the dataclasses in it, are the flags.
        default: what is taken where a flag is not given.
        config: tyro's markers.

    Raises:
        ValueError: one sentence saying which flag or value is not understood.
    """
    if "--version" in arguments:
        print(_version())
        raise SystemExit(0)
    given: dict[str, Any] = {} if default is None else {"default": default}
    errors = io.StringIO()
    try:
        with contextlib.redirect_stderr(errors):
            parsed, unknown = tyro.cli(
                kind,
                args=arguments,
                prog=prog,
                description=description,
                return_unknown_args=True,
                config=config,
                registry=_REGISTRY,
                **given,
            )
    except SystemExit as stop:
        if not stop.code:
            raise
        raise ValueError(_one_sentence(errors.getvalue())) from None
    if unknown:
        raise ValueError(_unknown(unknown[0], dict(_flags(kind)), prog))
    return parsed


def typed_flags(arguments: Sequence[str]) -> dict[str, list[str]]:
    """Each flag that a command line names, as a field's name, and the words that follow it."""
    flags: dict[str, list[str]] = {}
    words: list[str] = []
    for word in arguments:
        if word.startswith("--"):
            name, separator, value = word[2:].partition("=")
            words = flags[name.replace("-", "_").removeprefix("no_")] = []
            word = value
            if not separator:
                continue
        if word != "-h":
            words.append(word)
    return flags


def explain(error: Exception) -> str:
    """What an error says to the person whose command it ended."""
    if isinstance(error, MemoryError):
        return "That does not fit in memory; make it smaller."
    if isinstance(error, OSError) and error.strerror:
        return f"Cannot use {error.filename or 'a file'}: {error.strerror}."
    return str(error)


def flag(name: str) -> str:
    """A setting's name as it is written on the command line."""
    return f"--{name.replace('_', '-')}"


def nearest_flag(name: str, known: Mapping[str, Any] | Sequence[str]) -> str | None:
    """What a person who wrote `name` may have meant, by its meaning or its spelling."""
    name = name.replace("-", "_").lower()
    if SYNONYMS.get(name) in known:
        return SYNONYMS[name]
    near = difflib.get_close_matches(name, list(known), n=1)
    return near[0] if near else None


def _unknown(word: str, known: Mapping[str, Any], prog: str) -> str:
    if word.startswith("-"):
        name = word.lstrip("-").partition("=")[0].replace("-", "_")
        near = nearest_flag(name.removeprefix("no_"), known)
        hint = f"perhaps you meant {flag(near)}" if near else f"see {prog} --help"
        return f"There is no flag {word.partition('=')[0]}; {hint}."
    if re.fullmatch(r"[\w./:-]+-v\d+", word) and "env" in known:
        return f"{word!r} follows no flag; perhaps you meant --env {word}."
    if word.endswith((".yaml", ".yml")) and "config" in known:
        return f"{word!r} follows no flag; perhaps you meant --config {word}."
    return f"{word!r} follows no flag that takes it; see {prog} --help."


def _flags(kind: Any) -> Iterator[tuple[str, Any]]:
    for name, annotation in typing.get_type_hints(kind).items():
        if dataclasses.is_dataclass(annotation):
            yield from _flags(annotation)
        else:
            yield name, annotation


def _one_sentence(box: str) -> str:
    """The first paragraph of the box in which tyro writes what is wrong."""
    lines = [line.strip().strip("│").strip() for line in box.splitlines()[1:]]
    end = next((i for i, line in enumerate(lines) if not line or line[0] in "─╰"), len(lines))
    sentence = " ".join(lines[:end]).removeprefix("Error parsing ")
    return sentence if sentence.endswith(".") else f"{sentence}."


def _version() -> str:
    try:
        return f"upgd-ppo {version('upgd-ppo')}"
    except PackageNotFoundError:
        return f"upgd-ppo, not installed: the source in {Path(__file__).resolve().parents[2]}"


_REGISTRY = ConstructorRegistry()


@_REGISTRY.primitive_rule
def _number_rule(info: PrimitiveTypeInfo) -> PrimitiveConstructorSpec | None:
    """Numbers are read as in presets: 20e6 is a whole number everywhere."""
    kind = info.type
    metavars = {int: "COUNT", float: "NUMBER", int | None: "COUNT", float | None: "NUMBER"}
    if typing.get_origin(kind) is tuple and typing.get_args(kind) == (int, ...):
        return PrimitiveConstructorSpec(
            nargs="*",
            metavar="COUNT …",
            instance_from_str=lambda words: read_value(list(words), kind),
            is_instance=lambda value: isinstance(value, tuple),
            str_from_instance=lambda value: [str(item) for item in value],
        )
    if kind not in metavars:
        return None
    return PrimitiveConstructorSpec(
        nargs=1,
        metavar=metavars[kind],
        instance_from_str=lambda words: read_value(words[0], kind),
        is_instance=lambda value: value is None or isinstance(value, int | float),
        str_from_instance=lambda value: [str(value)],
    )
