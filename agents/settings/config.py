"""What a run is told: the settings of an arm, their defaults, presets and checks."""

from __future__ import annotations

import dataclasses
import difflib
import math
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, Literal

import tyro

from upgd_ppo.agents.machine.cores import available_cores
from upgd_ppo.agents.plasticity.early_warnings import WarningConfig
from upgd_ppo.agents.plasticity.inspector import PlasticityConfig
from upgd_ppo.agents.settings.flags import Count, Keywords, NamedKeywords, flag


@dataclass(frozen=True)
class RunConfig:
    """Which arm to train, for how long, and where its output goes."""

    env: str = "Ant-v4"
    """Gymnasium id of the environment, or module:Id to import a module first; MuJoCo tasks run on
    the native batch."""
    opt: str = "upgd"
    """Optimizer: a registered name, or module.Class for any torch.optim.Optimizer, your own in the
    current folder too."""
    opt_kwargs: Keywords = field(default_factory=dict)
    """Hyper-parameters of the optimizer, such as sigma=1e-3 weight_decay=0."""
    opt_defaults: Annotated[Keywords, tyro.conf.Suppress] = field(default_factory=dict)
    """For presets that serve several optimizers: OPTIMIZER.KEY → value, a hyper-parameter of that
    optimizer alone; opt_kwargs go over it. Several presets are merged key by key."""
    methods: NamedKeywords = field(default_factory=dict)
    """What acts on the networks after the optimizer: names, each followed by its settings, such as
    random_reset every=1000. Those of several presets act one after the other."""
    env_kwargs: Keywords = field(default_factory=dict)
    """Keyword arguments of the environment's constructor."""
    seeds: Count = 1
    """How many seeds to train, each an independent learner."""
    seed: Count = 1
    """The first seed; the others count up from it."""
    steps: Count = 1_000_000
    """Environment steps per seed, rounded up to whole rollouts; 20e6 is understood."""
    out: Path | None = None
    """Run directory; by default runs/ENV-OPT or runs/ENV-OPT+METHOD, numbered if that is taken."""
    threads: Count = 0
    """Threads for physics and learning together; 0 means the cores this process may use."""
    device: str = "cpu"
    """Where the networks learn: cpu, cuda, cuda:1, …; physics is always on the CPU."""

    @property
    def arm(self) -> str:
        """What the arm is called: optimizer and methods, such as adam+random_reset."""
        return "+".join([self.opt, *self.methods])


@dataclass(frozen=True)
class EnvironmentConfig:
    """How a seed meets its environment."""

    envs_per_seed: Count = 1
    """Environments of each seed."""
    normalize_observations: bool = True
    """Normalise observations by their running mean and variance, clipped to ±10."""
    normalize_rewards: bool = True
    """Divide rewards by the running std of the discounted return, clipped to ±10."""
    fixed_normalization_steps: Count = 0
    """Normalise observations by mean and std of this many steps of random actions, taken before
    training and never changed, without clipping; 0 is the running ones."""
    time_in_observation: bool = False
    """Append the time that has passed in the episode, from -1 to 1 at the time limit."""
    clip_actions: bool = True
    """Clip actions to the box before the environment and its reward see them."""


@dataclass(frozen=True)
class PPOConfig:
    """How a member learns. The defaults are the published protocol's."""

    rollout_steps: int = 2048
    """Environment steps between two updates, in each of a seed's environments."""
    minibatches: int = 32
    """Minibatches per epoch; must divide rollout-steps × envs-per-seed."""
    epochs: int = 10
    """Passes over each rollout; more of them bring collapse sooner."""
    learning_rate: float = 3e-4
    """Step size of the optimizer, at the start when it is annealed."""
    anneal: bool = True
    """Decrease the learning rate linearly to 0 over the run."""
    gamma: float = 0.99
    """Discount γ, per step."""
    gae_lambda: float = 0.95
    """λ of the generalised advantage estimate."""
    clip_coef: float = 0.2
    """ε of the clipped surrogate objective."""
    clip_value_loss: bool = True
    """Clip the value loss with the same ε."""
    value_coef: float = 0.5
    """Weight of ½ · mean squared error of the critic: a weight w on the plain mean squared error
    is 2w here."""
    entropy_coef: float = 0.0
    """Weight of the entropy bonus."""
    max_grad_norm: float = 0.5
    """Global norm to which each seed's gradient is clipped; 0 turns clipping off."""
    separate_gradient_clipping: bool = False
    """Clip the actor's gradient (with the std's) and the critic's to that norm apart."""
    separate_optimizers: bool = False
    """Give actor and critic an optimizer each: the same for elementwise ones such as Adam, another
    maximum for the global utilities of UPGD."""
    normalize_advantages: Literal["minibatch", "rollout", "off"] = "minibatch"
    """Advantages get mean 0 and std 1 in each minibatch, over the whole rollout, or not at all."""
    max_log_ratio: float | None = None
    """Clamp the log of the probability ratio to ± this, so that no ratio overflows."""
    target_kl: float | None = None
    """Stop a seed's update once a minibatch's approximate KL exceeds this."""
    bootstrap_time_limits: bool = False
    """Bootstrap from the value of the last observation where a time limit ends an episode;
    off, a truncation counts as a termination, as published."""
    hidden_sizes: tuple[int, ...] = (64, 64)
    """Units of the hidden layers of actor and critic."""
    activation: Literal["tanh", "relu", "leaky_relu", "elu", "silu"] = "tanh"
    """Nonlinearity of the hidden layers."""
    layer_norm: bool = False
    """Normalise the pre-activations of the hidden layers."""
    initialization: Literal["orthogonal", "lecun_uniform", "pytorch"] = "orthogonal"
    """Of the weights: orthogonal (gain √2, actor output 0.01), uniform within ±√(3 / inputs) in
    every layer, or PyTorch's default."""
    state_dependent_std: bool = False
    """Make the policy's std an output of the actor, instead of a parameter of its own."""
    squash_actions: bool = False
    """Squash actions into the box by tanh; what is played for evaluation is tanh(mean)."""


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
        return self.run.threads or available_cores()

    def check(self) -> None:
        """Refuse values out of range.

        Raises:
            ValueError: naming the flag, its value and what is allowed.
        """
        _check_ranges(self)
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
            if name not in _NAMES:
                near = difflib.get_close_matches(name, _NAMES, n=1)
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


_NAMES = [
    setting.name
    for group in dataclasses.fields(TrainConfig)
    for setting in dataclasses.fields(getattr(TrainConfig(), group.name))
]
assert len(set(_NAMES)) == len(_NAMES), "settings of two groups have the same name"

MOST_SAMPLES = 10**9
MOST_UNITS, MOST_LAYERS = 100_000, 100
"""Far beyond what is trained; what is larger is a slip, and would only fill the memory."""

# setting → (lowest value, whether it is itself allowed, highest value that is allowed)
_RANGES: dict[str, tuple[float, bool, float]] = {
    "seeds": (1, True, 100_000),
    "seed": (0, True, 2**62),
    "steps": (1, True, 10**15),
    "threads": (0, True, 10_000),
    "envs_per_seed": (1, True, MOST_SAMPLES),
    "fixed_normalization_steps": (0, True, 10**9),
    "rollout_steps": (1, True, MOST_SAMPLES),
    "minibatches": (1, True, MOST_SAMPLES),
    "epochs": (1, True, 10**6),
    "learning_rate": (0, True, math.inf),
    "gamma": (0, True, 1),
    "gae_lambda": (0, True, 1),
    "clip_coef": (0, False, math.inf),
    "value_coef": (0, True, math.inf),
    "entropy_coef": (-math.inf, True, math.inf),
    "max_grad_norm": (0, True, math.inf),
    "target_kl": (0, False, math.inf),
    "max_log_ratio": (0, False, math.inf),
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
            least = f"at least {low:g}" if inclusive else f"greater than {low:g}"
            most = "" if math.isinf(high) else f" and at most {high:,}"
            shown = value if isinstance(value, int) else f"{value:g}"
            raise ValueError(f"{flag(name)} is {shown}; it must be {least}{most}.")
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
