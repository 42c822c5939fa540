"""Names of optimizers: what `train.py --opt NAME --opt-kwargs key=value …` understands."""

from __future__ import annotations

import ast
import difflib
import importlib
import inspect
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import torch
from torch import Tensor

from agents.optimizers.adaptive_upgd import AdaptiveUPGD
from agents.optimizers.upgd import UPGD

Layout = Literal["flat", "stacked", "member"]

NOT_SETTINGS = ("self", "params", "lr", "generator", "members")


@dataclass(frozen=True)
class OptimizerSpec:
    """An optimizer by name, and how it is given the parameters of a population.

    Attributes:
        name: as registered, or the dotted path.
        optimizer_class: a `torch.optim.Optimizer` class.
        defaults: hyper-parameters that differ from the constructor's own.
        layout: "flat": one tensor [S, D] (elementwise, or reductions per row); "stacked": a list of
            tensors [S, …]; "member": the same list, handled by one instance per member.
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
        own: dict[str, Any] = {}
        for cls in reversed(self.optimizer_class.__mro__):
            if "__init__" in vars(cls) and issubclass(cls, torch.optim.Optimizer):
                for name, parameter in inspect.signature(cls).parameters.items():
                    named = parameter.kind in (
                        inspect.Parameter.POSITIONAL_OR_KEYWORD,
                        inspect.Parameter.KEYWORD_ONLY,
                    )
                    if named and name not in NOT_SETTINGS:
                        own[name] = parameter.default
        own.pop("defaults", None)
        return {**own, **self.defaults}

    def resolve(self, kwargs: dict[str, Any]) -> dict[str, Any]:
        """Defaults with `kwargs` over them, checked by building the optimizer once.

        Args:
            kwargs: hyper-parameters other than the learning rate. A string is read as the Python
                literal it spells ("1e-3", "0.9,0.99", "False") where it spells one.

        Returns:
            The keyword arguments to give to `build`.

        Raises:
            ValueError: for a hyper-parameter that the optimizer does not have or a value it
                refuses.
        """
        known = self.hyperparameters
        for key in kwargs:
            if key not in known:
                raise ValueError(
                    f"Optimizer {self.name!r} has no hyper-parameter {key!r}; it has "
                    f"{', '.join(sorted(known)) or 'none'}.{_perhaps(key, known)}"
                )
        resolved = {**self.defaults, **{key: _literal(value) for key, value in kwargs.items()}}
        try:
            self.optimizer_class([torch.zeros(1, 1)], lr=1e-3, **resolved)  # type: ignore[call-arg]
        except Exception as error:
            raise ValueError(f"Optimizer {self.name!r} refuses {resolved}: {error}") from error
        return resolved

    def build(
        self,
        parameters: Sequence[Tensor],
        lr: float,
        generators: Sequence[torch.Generator],
        **kwargs: Any,
    ) -> torch.optim.Optimizer:
        """One optimizer for the parameters of a population.

        Args:
            parameters: one tensor [S, D] for layout "flat", tensors [S, …] for "stacked".
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
        if "generator" in inspect.signature(self.optimizer_class).parameters:
            kwargs = {**kwargs, "generator": generator}
        return self.optimizer_class(parameters, lr=lr, **kwargs)  # type: ignore[call-arg]


_ADAM = {"betas": (0.9, 0.999), "eps": 1e-5, "weight_decay": 0.0, "fused": True}

_SPECS = [
    OptimizerSpec("adam", torch.optim.Adam, _ADAM),
    OptimizerSpec("adam_equal_betas", torch.optim.Adam, {**_ADAM, "betas": (0.99, 0.99)}),
    OptimizerSpec("adamw", torch.optim.AdamW, {**_ADAM, "weight_decay": 1e-2}),
    OptimizerSpec("sgd", torch.optim.SGD),
    OptimizerSpec("rmsprop", torch.optim.RMSprop, {"eps": 1e-5}),
    OptimizerSpec("upgd", AdaptiveUPGD, draws_noise=True),
    OptimizerSpec("upgd_first_order_global", UPGD, draws_noise=True),
    OptimizerSpec("upgd_first_order_local", UPGD, {"scope": "local"}, "stacked", draws_noise=True),
]
REGISTRY: dict[str, OptimizerSpec] = {spec.name: spec for spec in _SPECS}


def names() -> list[str]:
    """The registered names."""
    return list(REGISTRY)


def get(name: str) -> OptimizerSpec:
    """The optimizer of that name, or at that dotted path ("torch.optim.NAdam").

    Raises:
        ValueError: if there is none, naming what is near.
    """
    if name in REGISTRY:
        return REGISTRY[name]
    if "." not in name:
        raise ValueError(
            f"There is no optimizer {name!r}.{_perhaps(name, REGISTRY)} Registered are "
            f"{', '.join(REGISTRY)}; a dotted path to a torch.optim.Optimizer class works too."
        )
    module_name, _, class_name = name.rpartition(".")
    try:
        module = importlib.import_module(module_name)
    except ImportError as error:
        raise ValueError(f"Optimizer {name!r}: cannot import {module_name!r} ({error}).") from error
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
    return OptimizerSpec(name, cls, layout="member")


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
