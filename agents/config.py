"""What a run is told: the settings of an arm, their defaults, presets and checks."""

from __future__ import annotations

import dataclasses
import difflib
import math
import os
import types
import typing
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, Literal

import yaml
from tyro.constructors import PrimitiveConstructorSpec

from agents.inspection import PlasticityConfig
from agents.plasticity.warnings import WarningConfig
from agents.ppo import PPOConfig


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


@dataclass(frozen=True)
class RunConfig:
    """Which arm to train, for how long, and where its output goes."""

    env: str = "Ant-v4"
    """Gymnasium id of the environment; MuJoCo tasks run on the native batch."""
    opt: str = "upgd"
    """Optimizer: a registered name, or a dotted path to any torch.optim.Optimizer class."""
    opt_kwargs: Keywords = field(default_factory=dict)
    """Hyper-parameters of the optimizer, such as sigma=1e-3 weight_decay=0."""
    env_kwargs: Keywords = field(default_factory=dict)
    """Keyword arguments of the environment's constructor."""
    seeds: Count = 1
    """How many seeds to train, each an independent learner."""
    seed: Count = 1
    """The first seed; the others count up from it."""
    steps: Count = 1_000_000
    """Environment steps per seed, rounded up to whole rollouts; 20e6 is understood."""
    out: Path | None = None
    """Run directory; by default runs/ENV-OPT, numbered if that holds a run already."""
    threads: Count = 0
    """Threads for physics and learning together; 0 means the cores this process may use."""
    device: str = "cpu"
    """Where the networks learn: cpu, cuda, cuda:1, …; physics is always on the CPU."""


@dataclass(frozen=True)
class EnvironmentConfig:
    """How a seed meets its environment."""

    envs_per_seed: Count = 1
    """Environments of each seed."""
    normalize_observations: bool = True
    """Normalise observations by their running mean and variance, clipped to ±10."""
    normalize_rewards: bool = True
    """Divide rewards by the running std of the discounted return, clipped to ±10."""


@dataclass(frozen=True)
class LoggingConfig:
    """What is recorded, and how often."""

    log_every: Count = 1
    """Iterations between two entries in TensorBoard."""
    print_every: float = 10.0
    """Seconds between two progress lines where the output is no terminal."""
    checkpoint_every: Count = 100_000
    """Environment steps per seed between two checkpoints."""
    keep_checkpoints: Count = 3
    """How many of the newest checkpoints to keep."""


@dataclass(frozen=True)
class TrainConfig:
    """Everything an arm is told. Flags, preset keys and fields have the same names."""

    run: RunConfig = field(default_factory=RunConfig)
    environment: EnvironmentConfig = field(default_factory=EnvironmentConfig)
    ppo: PPOConfig = field(default_factory=PPOConfig)
    logging: LoggingConfig = field(default_factory=LoggingConfig)
    plasticity: PlasticityConfig = field(default_factory=PlasticityConfig)
    warnings: WarningConfig = field(default_factory=WarningConfig)

    @property
    def member_seeds(self) -> list[int]:
        """The seeds of the S members."""
        return list(range(self.run.seed, self.run.seed + self.run.seeds))

    @property
    def steps_per_iteration(self) -> int:
        """Environment steps of one member in one iteration."""
        return self.ppo.rollout_steps * self.environment.envs_per_seed

    @property
    def num_iterations(self) -> int:
        """Iterations of the whole run: enough for at least `steps` environment steps a seed."""
        return -(-self.run.steps // self.steps_per_iteration)

    @property
    def threads(self) -> int:
        """Threads to use: as asked for, else the cores this process may use."""
        return self.run.threads or len(os.sched_getaffinity(0))

    def check(self) -> None:
        """Refuse values out of range.

        Raises:
            ValueError: naming the flag, its value and what is allowed.
        """
        _check_ranges(self)
        samples = self.steps_per_iteration
        if samples % self.ppo.minibatches:
            nearest = _nearest_divisor(samples, self.ppo.minibatches)
            raise ValueError(
                f"--minibatches {self.ppo.minibatches} does not divide the {samples} samples of a"
                f" rollout (--rollout-steps × --envs-per-seed); the nearest that does is {nearest}."
            )

    def to_flat(self) -> dict[str, Any]:
        """All settings in one flat mapping of plain values: what config.yaml and presets hold."""
        flat: dict[str, Any] = {}
        for group in dataclasses.fields(self):
            for setting in dataclasses.fields(getattr(self, group.name)):
                value = getattr(getattr(self, group.name), setting.name)
                if isinstance(value, tuple):
                    value = list(value)
                flat[setting.name] = str(value) if isinstance(value, Path) else value
        return flat

    def with_flat(self, changes: dict[str, Any]) -> TrainConfig:
        """A copy with settings changed by their flat names."""
        groups = {}
        for group in dataclasses.fields(self):
            settings = getattr(self, group.name)
            names = {setting.name for setting in dataclasses.fields(settings)}
            groups[group.name] = dataclasses.replace(
                settings, **{k: v for k, v in changes.items() if k in names}
            )
        return TrainConfig(**groups)


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
        raise ValueError(f"{path}, line 1: a preset is a mapping of settings, such as 'epochs: 20'.")

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
            changes[key] = _coerce(_plain(value_node), annotations[key])
        except ValueError as error:
            raise ValueError(f"{where}: {key}: {error}.") from None
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


# setting → (lowest value, whether it is itself allowed, highest value that is allowed)
_RANGES: dict[str, tuple[float, bool, float]] = {
    "seeds": (1, True, math.inf),
    "seed": (0, True, 2**62),
    "steps": (1, True, math.inf),
    "threads": (0, True, math.inf),
    "envs_per_seed": (1, True, math.inf),
    "rollout_steps": (1, True, math.inf),
    "minibatches": (1, True, math.inf),
    "epochs": (1, True, math.inf),
    "learning_rate": (0, True, math.inf),
    "gamma": (0, True, 1),
    "gae_lambda": (0, True, 1),
    "clip_coef": (0, False, math.inf),
    "value_coef": (0, True, math.inf),
    "entropy_coef": (-math.inf, True, math.inf),
    "max_grad_norm": (0, True, math.inf),
    "target_kl": (0, False, math.inf),
    "log_every": (1, True, math.inf),
    "print_every": (0, False, math.inf),
    "checkpoint_every": (1, True, math.inf),
    "keep_checkpoints": (1, True, math.inf),
    "statistics_every": (0, True, math.inf),
    "histograms_every": (0, True, math.inf),
    "probe_every": (0, True, math.inf),
    "warn_dormant_fraction": (0, True, 1),
    "warn_rank_fraction": (0, True, math.inf),
    "warn_saturated_fraction": (0, True, 1),
    "warn_inactive_fraction": (0, True, 1),
    "warn_update_ratio": (0, True, math.inf),
    "warn_std_below": (0, True, math.inf),
    "warn_std_above": (0, True, math.inf),
    "warn_kl": (0, True, math.inf),
}


def _check_ranges(config: TrainConfig) -> None:
    flat = config.to_flat()
    for name, (low, inclusive, high) in _RANGES.items():
        value = flat[name]
        if value is None:
            continue
        too_low = value < low or (value == low and not inclusive)
        if math.isnan(value) or too_low or value > high:
            flag = f"--{name.replace('_', '-')}"
            least = f"at least {low:g}" if inclusive else f"greater than {low:g}"
            most = "" if math.isinf(high) else f" and at most {high:g}"
            raise ValueError(f"{flag} is {value:g}; it must be {least}{most}.")
    sizes = config.ppo.hidden_sizes
    if not sizes or min(sizes) < 1:
        raise ValueError(
            f"--hidden-sizes is {' '.join(map(str, sizes)) or 'empty'}; give at least one layer"
            " of at least one unit, such as 64 64."
        )


def _nearest_divisor(number: int, wanted: int) -> int:
    divisors = [d for d in range(1, number + 1) if number % d == 0]
    return min(divisors, key=lambda divisor: abs(divisor - wanted))
