"""Actor-critic policies that optimise with UPGD: one word to change in existing code."""

from __future__ import annotations

import difflib
import functools
import inspect
from collections.abc import Callable, Iterable
from typing import Any

from gymnasium import spaces
from stable_baselines3 import A2C, DDPG, DQN, PPO, SAC, TD3
from stable_baselines3.common.base_class import BaseAlgorithm
from stable_baselines3.common.policies import (
    ActorCriticCnnPolicy,
    ActorCriticPolicy,
    MultiInputActorCriticPolicy,
)
from stable_baselines3.common.torch_layers import CombinedExtractor
from torch.optim import Optimizer

from upgd_ppo.agents.optimizers import AdaptiveUPGD

_OF_OTHER_ALGORITHMS = ("actor", "critic", "q_net", "quantile_net", "lstm_actor")
"""What other algorithms look for in policies of theirs, and an actor-critic one lacks."""


class UPGDPolicy(ActorCriticPolicy):
    """`MlpPolicy` with AdaptiveUPGD in place of Adam: `PPO(UPGDPolicy, "Ant-v4")`.

    The optimizer's defaults are those published for PPO (Elsayed & Mahmood, ICLR 2024). Takes
    every keyword of Stable-Baselines3's `ActorCriticPolicy`; `optimizer_kwargs` go to
    `AdaptiveUPGD`, and another `optimizer_class` is honoured. Dictionaries of observations are
    taken as `UPGDMultiInputPolicy` takes them.

    Raises:
        AttributeError: if an algorithm whose policies are of another kind (SAC, DQN, RecurrentPPO,
            …) uses it.
        TypeError: if the optimizer has no such setting; the message names the nearest.
    """

    def __init__(
        self, observation_space: spaces.Space, action_space: spaces.Space, *args: Any, **kwargs: Any
    ) -> None:
        kwargs.setdefault("optimizer_class", AdaptiveUPGD)
        _check_settings(kwargs["optimizer_class"], kwargs.get("optimizer_kwargs") or ())
        if isinstance(observation_space, spaces.Dict):
            kwargs.setdefault("features_extractor_class", CombinedExtractor)
        super().__init__(observation_space, action_space, *args, **kwargs)

    def __getattr__(self, name: str) -> Any:
        if name in _OF_OTHER_ALGORITHMS:
            raise AttributeError(
                f"{type(self).__name__} is an actor-critic policy, for PPO, A2C and TRPO; with "
                "this algorithm use its own policy and policy_kwargs=dict("
                "optimizer_class=AdaptiveUPGD)."
            )
        return super().__getattr__(name)


class UPGDCnnPolicy(UPGDPolicy, ActorCriticCnnPolicy):
    """`CnnPolicy`, for images, with AdaptiveUPGD: see `UPGDPolicy`."""


class UPGDMultiInputPolicy(UPGDPolicy, MultiInputActorCriticPolicy):
    """`MultiInputPolicy`, for dictionaries, with AdaptiveUPGD: see `UPGDPolicy`."""


def _check_settings(optimizer_class: type[Optimizer], names: Iterable[str]) -> None:
    known = inspect.signature(optimizer_class).parameters
    if any(parameter.kind is parameter.VAR_KEYWORD for parameter in known.values()):
        return
    for name in names:
        if name not in known:
            near = difflib.get_close_matches(name, known, n=1, cutoff=0.5)
            settings = ", ".join(key for key in known if key not in ("params", "lr"))
            hint = f"Perhaps you meant {near[0]}?" if near else f"It has {settings}."
            raise TypeError(f"{optimizer_class.__name__} has no setting {name!r}. {hint}")


POLICIES = (UPGDPolicy, UPGDCnnPolicy, UPGDMultiInputPolicy)


def register_aliases() -> None:
    """Make `PPO("UPGDPolicy", env)` work, by name as from a hyper-parameter file.

    Algorithms that the policies do not fit know the names too, so that the error says what to use.
    """
    algorithms: list[type[BaseAlgorithm]] = [PPO, A2C, SAC, TD3, DDPG, DQN]
    choosing: list[type[BaseAlgorithm]] = [A2C]
    try:
        from sb3_contrib import QRDQN, TQC, TRPO, CrossQ, RecurrentPPO
    except ImportError:
        pass
    else:
        algorithms += [TRPO, TQC, QRDQN, CrossQ, RecurrentPPO]
        choosing += [QRDQN]
    for algorithm in algorithms:
        for policy in POLICIES:
            algorithm.policy_aliases.setdefault(policy.__name__, policy)
    for algorithm in choosing:
        algorithm.__init__ = _leaving_the_optimizer_alone(algorithm.__init__)  # type: ignore[method-assign]


def _leaving_the_optimizer_alone(init: Callable[..., None]) -> Callable[..., None]:
    """A constructor of A2C or QRDQN that lets a UPGD policy train with UPGD.

    Unless told otherwise the two write an optimizer of their own choice into `policy_kwargs`,
    over `optimizer_kwargs`, so that a policy cannot see what was meant. They write into the
    caller's own dict, too, and so would choose for every model that it is given to later.

    Raises:
        ValueError: if a UPGD policy is to train with `use_rms_prop=True`.
    """
    signature = inspect.signature(init)

    @functools.wraps(init)
    def __init__(self: BaseAlgorithm, *args: Any, **kwargs: Any) -> None:
        bound = signature.bind(self, *args, **kwargs)
        given = bound.arguments
        policy = self.policy_aliases.get(given["policy"], given["policy"])
        given["policy_kwargs"] = dict(given.get("policy_kwargs") or {})
        if (
            isinstance(policy, type)
            and issubclass(policy, UPGDPolicy)
            and "optimizer_class" not in given["policy_kwargs"]
            and "use_rms_prop" in signature.parameters
            and given.setdefault("use_rms_prop", False)  # True only if the caller says so
        ):
            raise ValueError(
                f"{policy.__name__} trains with UPGD and use_rms_prop=True with RMSprop; leave "
                'use_rms_prop out, or take "MlpPolicy" for RMSprop.'
            )
        init(*bound.args, **bound.kwargs)

    return __init__
