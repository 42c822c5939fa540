"""Names of optimizers: what `train.py --opt NAME --opt-kwargs key=value …` understands."""

from __future__ import annotations

import ast
import difflib
import inspect
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import torch
from torch import Tensor

from upgd_ppo.agents.optimizers.adaptive_upgd import AdaptiveUPGD
from upgd_ppo.agents.optimizers.feature_upgd import FeatureUPGD
from upgd_ppo.agents.optimizers.l2_init import L2Init
from upgd_ppo.agents.optimizers.perturbed import PGD, ShrinkAndPerturb
from upgd_ppo.agents.optimizers.upgd import UPGD

Layout = Literal["flat", "stacked", "member"]

NOT_SETTINGS = ("self", "params", "lr", "generator", "members", "layers")


@dataclass(frozen=True)
class OptimizerSpec:
    """An optimizer by name, and how it is given the parameters of a population.

    Attributes:
        name: as registered, or the dotted path.
        optimizer_class: a `torch.optim.Optimizer` class.
        defaults: hyper-parameters that differ from the constructor's own.
        layout: "flat": one tensor [S, D] (elementwise, or reductions per row); "stacked": a list of
            tensors [S, …]; "member": the same list, handled by one instance per member. What the
            hyper-parameters make of it, `layout_for` says.
        draws_noise: the constructor takes `members=True` and one generator per member.
    """

    name: str
    optimizer_class: type[torch.optim.Optimizer]
    defaults: dict[str, Any] = field(default_factory=dict)
    layout: Layout = "flat"
    draws_noise: bool = False

    @property
    def hyperparameters(self) -> dict[str, Any]:
        """Every hyper-parameter except the learning rate, with its default."""
        accepted = _constructor_arguments(self.optimizer_class)
        own = {name: value for name, value in accepted.items() if name not in NOT_SETTINGS}
        return {**own, **self.defaults}

    def resolve(self, kwargs: dict[str, Any]) -> dict[str, Any]:
        """Defaults with `kwargs` over them, checked by building the optimizer once.

        Args:
            kwargs: hyper-parameters other than the learning rate. A string is read as the Python
                literal it spells ("1e-3", "0.9,0.99", "False") where it spells one.

        Returns:
            The keyword arguments to give to `build` or `build_one`.

        Raises:
            ValueError: for a hyper-parameter that the optimizer does not have or a value it
                refuses.
        """
        known = self.hyperparameters
        resolved = dict(self.defaults)
        for key, value in kwargs.items():
            if key == "lr":
                raise ValueError("The learning rate is a setting of its own, not one of these.")
            if key not in known:
                raise ValueError(
                    f"Optimizer {self.name!r} has no hyper-parameter {key!r}.{_perhaps(key, known)}"
                    f" It has {', '.join(sorted(known)) or 'none'}."
                )
            resolved[key] = _literal(value)
            self._try(resolved, f"refuses {key}={value!r}")
        if not kwargs:
            self._try(resolved, "cannot be built")
        return resolved

    def layout_for(self, hyper_parameters: dict[str, Any]) -> Layout:
        """How the parameters must be given with these settings, as `resolve` returned them.

        With scope "local" norms are taken over a tensor's last dimension, so the tensors must stay
        apart.
        """
        settings = {**self.hyperparameters, **hyper_parameters}
        if self.layout == "flat" and settings.get("scope") == "local":
            return "stacked"
        return self.layout

    def _try(self, kwargs: dict[str, Any], complaint: str) -> None:
        if kwargs.get("order") == "second":
            raise ValueError(
                f"Optimizer {self.name!r} {complaint}: second-order utilities need curvature, "
                "which PPO's losses do not give; use order='first'."
            )
        try:
            parameters = [torch.nn.Parameter(torch.zeros(shape)) for shape in ((1, 1), (1,))]
            optimizer = self.optimizer_class(parameters, lr=1e-3, **kwargs)  # type: ignore[call-arg]
            if self.layout == "member":
                # What nobody has tried here may refuse dense gradients only when it steps.
                for parameter in parameters:
                    parameter.grad = torch.zeros_like(parameter)
                with torch.random.fork_rng(devices=[]):
                    optimizer.step()
        except Exception as error:
            raise ValueError(f"Optimizer {self.name!r} {complaint}: {error}") from error

    def build(
        self,
        parameters: Sequence[Any],
        lr: float,
        generators: Sequence[torch.Generator],
        **kwargs: Any,
    ) -> torch.optim.Optimizer:
        """One optimizer for the parameters of a population.

        Args:
            parameters: what `layout_for` asks for: one tensor [S, D] for "flat", tensors [S, …] or
                parameter groups of them for "stacked".
            lr: learning rate.
            generators: one per member.
            kwargs: what `resolve` returned.

        Raises:
            ValueError: for layout "member": such an optimizer is built once per member.
        """
        if self.layout == "member":
            raise ValueError(
                f"Optimizer {self.name!r} is not known to keep members apart: build_one for each."
            )
        if self.draws_noise:
            kwargs = {**kwargs, "members": True, "generator": generators}
        return self.optimizer_class(parameters, lr=lr, **kwargs)  # type: ignore[call-arg]

    def build_one(
        self, parameters: Sequence[Tensor], lr: float, generator: torch.Generator, **kwargs: Any
    ) -> torch.optim.Optimizer:
        """An optimizer of one member's tensors; it gets the generator if it takes one."""
        if "generator" in _constructor_arguments(self.optimizer_class):
            kwargs = {**kwargs, "generator": generator}
        return self.optimizer_class(parameters, lr=lr, **kwargs)  # type: ignore[call-arg]


_ADAM = {"betas": (0.9, 0.999), "eps": 1e-5, "weight_decay": 0.0, "fused": True}

_NONPROTECTING = {"protecting": False, "step_scale": 1.0}
_LOCAL = {"scope": "local"}

_SPECS = [
    OptimizerSpec("adam", torch.optim.Adam, _ADAM),
    OptimizerSpec("adam_equal_betas", torch.optim.Adam, {**_ADAM, "betas": (0.99, 0.99)}),
    OptimizerSpec("adamw", torch.optim.AdamW, {**_ADAM, "weight_decay": 1e-2}),
    OptimizerSpec("l2_init", L2Init, {"fused": True}),
    OptimizerSpec("sgd", torch.optim.SGD),
    OptimizerSpec("rmsprop", torch.optim.RMSprop, {"eps": 1e-5}),
    OptimizerSpec("pgd", PGD, draws_noise=True),
    OptimizerSpec("shrink_and_perturb", ShrinkAndPerturb, draws_noise=True),
    OptimizerSpec("upgd", AdaptiveUPGD, draws_noise=True),
    OptimizerSpec("upgd_nonprotecting", AdaptiveUPGD, _NONPROTECTING, draws_noise=True),
    OptimizerSpec("upgd_local", AdaptiveUPGD, _LOCAL, draws_noise=True),
    OptimizerSpec("upgd_first_order_global", UPGD, draws_noise=True),
    OptimizerSpec(
        "upgd_first_order_global_nonprotecting", UPGD, {"protecting": False}, draws_noise=True
    ),
    OptimizerSpec("upgd_first_order_local", UPGD, _LOCAL, draws_noise=True),
    OptimizerSpec(
        "upgd_first_order_local_nonprotecting",
        UPGD,
        {**_LOCAL, "protecting": False},
        draws_noise=True,
    ),
    OptimizerSpec("upgd_published_snippet", UPGD, {"step_scale": 2.0}, draws_noise=True),
    OptimizerSpec("feature_upgd", FeatureUPGD, layout="stacked", draws_noise=True),
]
REGISTRY: dict[str, OptimizerSpec] = {spec.name: spec for spec in _SPECS}


def names() -> list[str]:
    """The registered names."""
    return list(REGISTRY)


def get(name: str) -> OptimizerSpec:
    """The optimizer of that name, or at that dotted path ("torch.optim.NAdam").

    The path is looked up among the modules that are imported. Nothing is imported here, because
    names are read from files too.

    Raises:
        ValueError: if there is none, naming what is near.
    """
    if name in REGISTRY:
        return REGISTRY[name]
    if "." not in name:
        raise ValueError(
            f"There is no optimizer {name!r}.{_perhaps(name.lower(), REGISTRY)} Registered are "
            f"{', '.join(REGISTRY)}; a dotted path to a torch.optim.Optimizer class works too."
        )
    module_name, _, class_name = name.rpartition(".")
    module = sys.modules.get(module_name)
    if module is None:
        raise ValueError(
            f"The optimizer {name!r} needs the module {module_name!r}, and a name that is read from"
            f" a file is never imported. If you trust it, name it yourself: --opt {name} on the"
            f" command line, or 'import {module_name}' in Python."
        )
    cls = getattr(module, class_name, None)
    if not (isinstance(cls, type) and issubclass(cls, torch.optim.Optimizer)):
        classes = [
            key
            for key, value in vars(module).items()
            if isinstance(value, type) and issubclass(value, torch.optim.Optimizer)
        ]
        raise ValueError(
            f"Optimizer {name!r}: {module_name!r} has no torch.optim.Optimizer class "
            f"{class_name!r}.{_perhaps(class_name, classes)}"
        )
    closure = inspect.signature(cls.step).parameters.get("closure")
    if closure is not None and closure.default is inspect.Parameter.empty:
        raise ValueError(
            f"Optimizer {name!r} evaluates the loss several times a step (its step needs a "
            "closure), which PPO does not offer."
        )
    return OptimizerSpec(name, cls, layout="member")


def hyper_parameters_of(
    name: str, defaults: dict[str, Any], kwargs: dict[str, Any]
) -> dict[str, Any]:
    """What `resolve` is to be given for one optimizer, of settings that several share.

    Args:
        name: of the optimizer, as `get` takes it.
        defaults: "OPTIMIZER.KEY" → value, hyper-parameters of several optimizers; those of the
            others are checked and left out.
        kwargs: the optimizer's own, which go over them.

    Raises:
        ValueError: naming the entry whose optimizer or hyper-parameter does not exist, or whose
            value is refused.
    """
    by_optimizer: dict[str, dict[str, Any]] = {}
    for entry, value in defaults.items():
        optimizer, separator, key = entry.rpartition(".")
        if not separator:
            raise ValueError(
                f"opt_defaults has an entry {entry!r}; write each as OPTIMIZER.KEY, such as "
                "upgd.sigma: 1e-3."
            )
        by_optimizer.setdefault(optimizer, {})[key] = value
    for optimizer, own in by_optimizer.items():
        try:
            get(optimizer).resolve(own)
        except ValueError as error:
            raise ValueError(f"opt_defaults: {error}") from None
    return {**by_optimizer.get(name, {}), **kwargs}


def _constructor_arguments(cls: type) -> dict[str, Any]:
    """Names and defaults, those that **kwargs passes on to the base class too."""
    parameters = inspect.signature(cls).parameters.values()
    named = {
        p.name: p.default for p in parameters if p.kind not in (p.VAR_KEYWORD, p.VAR_POSITIONAL)
    }
    if any(p.kind is p.VAR_KEYWORD for p in parameters):
        base = cls.__mro__[1]
        if base is not torch.optim.Optimizer and issubclass(base, torch.optim.Optimizer):
            return {**_constructor_arguments(base), **named}
    return named


def _perhaps(word: str, possible: Any) -> str:
    near = difflib.get_close_matches(word, list(possible), n=3, cutoff=0.5)
    return f" Perhaps you meant {' or '.join(near)}?" if near else ""


def _literal(value: Any) -> Any:
    if not isinstance(value, str):
        return value
    try:
        return ast.literal_eval(value)
    except (ValueError, SyntaxError):
        return {"true": True, "false": False, "none": None}.get(value.lower(), value)
