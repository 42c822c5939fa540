"""What a run is told: the settings of an arm, their defaults, presets and checks."""

from __future__ import annotations

import dataclasses
import difflib
import math
import typing
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, Literal

import tyro

from upgd_ppo.agents.machine.cores import available_cores
from upgd_ppo.agents.settings.flags import Count, Keywords, NamedKeywords, flag
from upgd_ppo.agents.settings.markers import BOOKKEEPING, FIXED, HARMLESS, Range, Role

MOST_SAMPLES = 10**9
MOST_UNITS, MOST_LAYERS = 100_000, 100
"""Far beyond what is trained; what is larger is a slip, and would only fill the memory."""

Share = Range(0, 1)
NotNegative = Range(0)
Positive = Range(0, above=True)


@dataclass(frozen=True)
class RunConfig:
    """Which arm to train, for how long, and where its output goes."""

    env: Annotated[str, FIXED] = "Ant-v4"
    """Gymnasium id of the environment, or module:Id to import a module first; MuJoCo tasks run on
    the native batch."""
    opt: Annotated[str, FIXED] = "upgd"
    """Optimizer: a registered name, or module.Class for any torch.optim.Optimizer, your own in the
    current folder too."""
    opt_kwargs: Keywords = field(default_factory=dict)
    """Hyper-parameters of the optimizer, such as sigma=1e-3 weight_decay=0."""
    opt_defaults: Annotated[Keywords, tyro.conf.Suppress] = field(default_factory=dict)
    """For presets that serve several optimizers: OPTIMIZER.KEY → value, a hyper-parameter of that
    optimizer alone; opt_kwargs go over it. Several presets are merged key by key."""
    methods: Annotated[NamedKeywords, FIXED] = field(default_factory=dict)
    """What acts on the networks after the optimizer: names, each followed by its settings, such as
    random_reset every=1000. Those of several presets act one after the other."""
    env_kwargs: Keywords = field(default_factory=dict)
    """Keyword arguments of the environment's constructor."""
    seeds: Annotated[Count, Range(1, 100_000), FIXED, BOOKKEEPING] = 1
    """How many seeds to train, each an independent learner."""
    seed: Annotated[Count, Range(0, 2**62), FIXED, BOOKKEEPING] = 1
    """The first seed; the others count up from it."""
    steps: Annotated[Count, Range(1, 10**15, unit="environment steps"), HARMLESS] = 1_000_000
    """Environment steps per seed, rounded up to whole rollouts; 20e6 is understood."""
    out: Annotated[Path | None, HARMLESS, BOOKKEEPING] = None
    """Run directory; by default runs/ENV-OPT or runs/ENV-OPT+METHOD, numbered if that is taken."""
    threads: Annotated[Count, Range(0, 10_000), HARMLESS, BOOKKEEPING] = 0
    """Threads for physics and learning together; 0 means the cores this process may use."""
    device: Annotated[str, BOOKKEEPING] = "cpu"
    """Where the networks learn: cpu, cuda, cuda:1, …; physics is always on the CPU."""

    @property
    def arm(self) -> str:
        """What the arm is called: optimizer and methods, such as adam+random_reset."""
        return "+".join([self.opt, *self.methods])


@dataclass(frozen=True)
class EnvironmentConfig:
    """How a seed meets its environment."""

    envs_per_seed: Annotated[Count, Range(1, MOST_SAMPLES), FIXED] = 1
    """Environments of each seed."""
    normalize_observations: Annotated[bool, FIXED] = True
    """Normalise observations by their running mean and variance, clipped to ±10."""
    normalize_rewards: Annotated[bool, FIXED] = True
    """Divide rewards by the running std of the discounted return, clipped to ±10."""
    fixed_normalization_steps: Annotated[
        Count, Range(0, 10**9, unit="environment steps"), FIXED
    ] = 0
    """Normalise observations by mean and std of this many steps of random actions, taken before
    training and never changed, without clipping; 0 is the running ones."""
    time_in_observation: Annotated[bool, FIXED] = False
    """Append the time that has passed in the episode, from -1 to 1 at the time limit."""
    clip_actions: bool = True
    """Clip actions to the box before the environment and its reward see them."""


@dataclass(frozen=True)
class StreamConfig:
    """What a seed learns instead of an environment: supervised, every sample once.

    A step is then a sample: --rollout-steps of them are an iteration, split into --minibatches.
    """

    stream: Annotated[Literal["regression"] | None, FIXED] = None
    """Learn a stream of samples instead of an environment; regression is a random network, one for
    each seed, that keeps changing."""
    change_every: Annotated[Count, Range(1, MOST_SAMPLES, unit="samples")] = 10_000
    """Samples between two changes of what a stream teaches."""


@dataclass(frozen=True)
class PPOConfig:
    """How a member learns. The defaults are the published protocol's."""

    rollout_steps: Annotated[int, Range(1, MOST_SAMPLES, unit="environment steps"), FIXED] = 2048
    """Environment steps between two updates, in each of a seed's environments."""
    minibatches: Annotated[int, Range(1, MOST_SAMPLES)] = 32
    """Minibatches per epoch; must divide rollout-steps × envs-per-seed."""
    epochs: Annotated[int, Range(1, 10**6)] = 10
    """Passes over each rollout; more of them bring collapse sooner."""
    learning_rate: Annotated[float, NotNegative] = 3e-4
    """Step size of the optimizer, at the start when it is annealed."""
    anneal: bool = True
    """Decrease the learning rate linearly to 0 over the run."""
    gamma: Annotated[float, Share] = 0.99
    """Discount γ, per step."""
    gae_lambda: Annotated[float, Share] = 0.95
    """λ of the generalised advantage estimate."""
    clip_coef: Annotated[float, Positive] = 0.2
    """ε of the clipped surrogate objective."""
    clip_value_loss: bool = True
    """Clip the value loss with the same ε."""
    value_coef: Annotated[float, NotNegative] = 0.5
    """Weight of ½ · mean squared error of the critic: a weight w on the plain mean squared error
    is 2w here."""
    entropy_coef: Annotated[float, Range()] = 0.0
    """Weight of the entropy bonus."""
    max_grad_norm: Annotated[float, NotNegative] = 0.5
    """Global norm to which each seed's gradient is clipped; 0 turns clipping off."""
    separate_gradient_clipping: bool = False
    """Clip the actor's gradient (with the std's) and the critic's to that norm apart."""
    separate_optimizers: Annotated[bool, FIXED] = False
    """Give actor and critic an optimizer each: the same for elementwise ones such as Adam, another
    maximum for the global utilities of UPGD."""
    normalize_advantages: Literal["minibatch", "rollout", "off"] = "minibatch"
    """Advantages get mean 0 and std 1 in each minibatch, over the whole rollout, or not at all."""
    max_log_ratio: Annotated[float | None, Positive] = None
    """Clamp the log of the probability ratio to ± this, so that no ratio overflows."""
    target_kl: Annotated[float | None, Positive] = None
    """Stop a seed's update once a minibatch's approximate KL exceeds this."""
    bootstrap_time_limits: bool = False
    """Bootstrap from the value of the last observation where a time limit ends an episode;
    off, a truncation counts as a termination, as published."""
    hidden_sizes: Annotated[tuple[int, ...], FIXED] = (64, 64)
    """Units of the hidden layers of actor and critic."""
    activation: Literal["tanh", "relu", "leaky_relu", "elu", "silu"] = "tanh"
    """Nonlinearity of the hidden layers."""
    layer_norm: Annotated[bool, FIXED] = False
    """Normalise the pre-activations of the hidden layers."""
    initialization: Literal["orthogonal", "lecun_uniform", "pytorch"] = "orthogonal"
    """Of the weights: orthogonal (gain √2, actor output 0.01), uniform within ±√(3 / inputs) in
    every layer, or PyTorch's default."""
    state_dependent_std: Annotated[bool, FIXED] = False
    """Make the policy's std an output of the actor, instead of a parameter of its own."""
    squash_actions: Annotated[bool, FIXED] = False
    """Squash actions into the box by tanh; what is played for evaluation is tanh(mean)."""


@dataclass(frozen=True)
class LoggingConfig:
    """What is recorded, and how often."""

    log_every: Annotated[Count, Range(1, unit="iterations"), BOOKKEEPING] = 1
    """Iterations between two entries in TensorBoard."""
    print_every: Annotated[float, Range(0, above=True, unit="seconds"), HARMLESS, BOOKKEEPING] = (
        10.0
    )
    """Seconds between two progress lines where the output is no terminal."""
    checkpoint_every: Annotated[
        Count, Range(1, unit="environment steps"), HARMLESS, BOOKKEEPING
    ] = 100_000
    """Environment steps per seed between two checkpoints."""
    keep_checkpoints: Annotated[Count, Range(1), HARMLESS, BOOKKEEPING] = 3
    """How many of the newest checkpoints to keep."""


@dataclass(frozen=True)
class PlasticityConfig:
    """What is measured of each layer, how often, and how much of it TensorBoard shows.

    The first and the last iteration are always measured.
    """

    statistics_every: Annotated[int, Range(0, unit="iterations"), BOOKKEEPING] = 10
    """Iterations between two measurements of every layer's statistics; 0 turns them off."""
    histograms_every: Annotated[int, Range(0, unit="iterations"), HARMLESS, BOOKKEEPING] = 50
    """Iterations between two histograms of weights, activations and utilities, which
    --tensorboard full shows; 0 for none."""
    probe_every: Annotated[int, Range(0, unit="iterations"), HARMLESS, BOOKKEEPING] = 0
    """Iterations between two trainability probes, which are expensive; 0 for none."""
    tensorboard: Annotated[Literal["brief", "full"], HARMLESS, BOOKKEEPING] = "brief"
    """What TensorBoard shows: brief is some twenty curves a seed and the bands over seeds; full is
    every statistic of every layer, and histograms. The records hold every statistic in any case."""


@dataclass(frozen=True)
class WarningConfig:
    """The limits beyond which an early warning is given; None switches one off."""

    warn_dormant_fraction: Annotated[float | None, Share] = 0.3
    """Share of a layer's units that are dormant."""
    warn_rank_fraction: Annotated[float | None, NotNegative] = 0.4
    """A layer's effective rank as a share of its early value."""
    warn_saturated_fraction: Annotated[float | None, Share] = 0.5
    """Share of a layer's entries that are saturated, for bounded activations such as tanh."""
    warn_inactive_fraction: Annotated[float | None, Share] = 0.9
    """Share of a layer's entries that are 0, for the ReLU family."""
    warn_update_ratio: Annotated[float | None, NotNegative] = 0.5
    """Change of a hidden layer's weights in one iteration over their norm."""
    warn_std_below: Annotated[float | None, NotNegative] = 0.05
    """Lowest standard deviation of an action."""
    warn_std_above: Annotated[float | None, NotNegative] = 5.0
    """Highest standard deviation of an action."""
    warn_kl: Annotated[float | None, NotNegative] = 0.2
    """Approximate KL divergence of one iteration's policies."""


@dataclass(frozen=True)
class TrainConfig:
    """Everything an arm is told. Flags, preset keys and fields have the same names."""

    run: RunConfig = field(default_factory=RunConfig)
    environment: EnvironmentConfig = field(default_factory=EnvironmentConfig)
    stream: StreamConfig = field(default_factory=StreamConfig)
    ppo: PPOConfig = field(default_factory=PPOConfig)
    logging: LoggingConfig = field(default_factory=LoggingConfig)
    plasticity: PlasticityConfig = field(default_factory=PlasticityConfig)
    warnings: WarningConfig = field(default_factory=WarningConfig)

    @property
    def member_seeds(self) -> list[int]:
        """The seeds of the S members."""
        return list(range(self.run.seed, self.run.seed + self.run.seeds))

    @property
    def task(self) -> str:
        """What is learned: the environment's id, or the stream's name."""
        return self.stream.stream or self.run.env

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
        return self.run.threads or available_cores()

    def check(self) -> None:
        """Refuse values out of range.

        Raises:
            ValueError: naming the flag, its value and what is allowed.
        """
        _check_ranges(self)
        if self.stream.stream:
            _check_stream(self)
        spec = self.environment
        if spec.fixed_normalization_steps and not spec.normalize_observations:
            raise ValueError(
                "--fixed-normalization-steps says how observations are normalised, and"
                " --no-normalize-observations that they are not; leave one of them out."
            )
        if not spec.clip_actions and self.ppo.squash_actions:
            raise ValueError(
                "--no-clip-actions lets actions leave the box, into which --squash-actions squashes"
                " them; leave one of them out."
            )
        if self.run.seeds * self.steps_per_iteration > MOST_SAMPLES:
            raise ValueError(
                f"--rollout-steps {self.ppo.rollout_steps} × --envs-per-seed"
                f" {self.environment.envs_per_seed} × --seeds {self.run.seeds} samples do not fit"
                f" in memory; at most {MOST_SAMPLES:,} are collected between two updates."
            )
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
        """A copy with settings changed by their flat names.

        Raises:
            ValueError: if there is no setting of such a name.
        """
        for name in changes:
            if name not in _SETTINGS:
                near = difflib.get_close_matches(name, _SETTINGS, n=1)
                hint = f"; perhaps you meant {near[0]}" if near else ""
                raise ValueError(f"There is no setting {name!r}{hint}.")
        groups = {}
        for group in dataclasses.fields(self):
            settings = getattr(self, group.name)
            names = {setting.name for setting in dataclasses.fields(settings)}
            groups[group.name] = dataclasses.replace(
                settings, **{k: v for k, v in changes.items() if k in names}
            )
        return TrainConfig(**groups)


_GROUPS = [
    typing.get_type_hints(group, include_extras=True)
    for group in typing.get_type_hints(TrainConfig).values()
]
_SETTINGS = {name: kind for group in _GROUPS for name, kind in group.items()}
assert len(_SETTINGS) == sum(map(len, _GROUPS)), "settings of two groups have the same name"


def settings_with(role: Role) -> frozenset[str]:
    """The names of the settings that have a role."""
    return frozenset(name for name in _SETTINGS if role in _markers(name))


def _markers(name: str) -> tuple[Any, ...]:
    return getattr(_SETTINGS[name], "__metadata__", ())


OF_STREAMS = (
    *("rollout_steps", "minibatches", "learning_rate", "anneal"),
    *("hidden_sizes", "activation", "layer_norm", "initialization"),
)
"""The settings of `PPOConfig` that say how a stream is learned, too."""


def _check_stream(config: TrainConfig) -> None:
    """Refuse what would silently do nothing."""
    default = TrainConfig().to_flat()
    of_environments = [
        *("env", "env_kwargs"),
        *(setting.name for setting in dataclasses.fields(EnvironmentConfig)),
        *(s.name for s in dataclasses.fields(PPOConfig) if s.name not in OF_STREAMS),
    ]
    for name, value in config.to_flat().items():
        if name in of_environments and value != default[name]:
            raise ValueError(
                f"{flag(name)} has no effect on a stream: leave it out, or --stream"
                f" {config.stream.stream}."
            )


def _check_ranges(config: TrainConfig) -> None:
    flat = config.to_flat()
    for name, value in flat.items():
        for allowed in _markers(name):
            if isinstance(allowed, Range) and value not in allowed:
                shown = value if isinstance(value, int) else f"{value:g}"
                unit = f" {allowed.unit}" if allowed.unit else ""
                raise ValueError(f"{flag(name)} is {shown}{unit}; it must be {allowed}.")
    sizes = config.ppo.hidden_sizes
    if not sizes or min(sizes) < 1 or max(sizes) > MOST_UNITS or len(sizes) > MOST_LAYERS:
        raise ValueError(
            f"--hidden-sizes is {' '.join(map(str, sizes[:9])) or 'empty'}; give 1 to"
            f" {MOST_LAYERS} layers of 1 to {MOST_UNITS:,} units, such as 64 64."
        )


def _nearest_divisor(number: int, wanted: int) -> int:
    small = [d for d in range(1, math.isqrt(number) + 1) if number % d == 0]
    divisors = [*small, *(number // d for d in reversed(small))]
    return min(divisors, key=lambda divisor: abs(divisor - wanted))
