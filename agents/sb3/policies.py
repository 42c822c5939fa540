"""Actor-critic policies that optimise with UPGD: one word to change in existing code."""

from __future__ import annotations

from typing import Any

from stable_baselines3 import A2C, DDPG, DQN, PPO, SAC, TD3
from stable_baselines3.common.base_class import BaseAlgorithm
from stable_baselines3.common.policies import (
    ActorCriticCnnPolicy,
    ActorCriticPolicy,
    MultiInputActorCriticPolicy,
)

from agents.optimizers import AdaptiveUPGD

_OF_OTHER_ALGORITHMS = ("actor", "critic", "q_net", "quantile_net", "lstm_actor")
"""What other algorithms look for in policies of theirs, and an actor-critic one lacks."""


class UPGDPolicy(ActorCriticPolicy):
    """`MlpPolicy` with AdaptiveUPGD in place of Adam: `PPO(UPGDPolicy, "Ant-v4")`.

    The optimizer's defaults are those published for PPO (Elsayed & Mahmood, ICLR 2024). Takes
    every keyword of Stable-Baselines3's `ActorCriticPolicy`; `optimizer_kwargs` go to
    `AdaptiveUPGD`, and another `optimizer_class` is honoured.

    Raises:
        AttributeError: if an algorithm whose policies are of another kind (SAC, DQN, RecurrentPPO,
            …) uses it.
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        kwargs.setdefault("optimizer_class", AdaptiveUPGD)
        super().__init__(*args, **kwargs)

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


POLICIES = (UPGDPolicy, UPGDCnnPolicy, UPGDMultiInputPolicy)


def register_aliases() -> None:
    """Make `PPO("UPGDPolicy", env)` work, by name as from a hyper-parameter file.

    Algorithms that the policies do not fit know the names too, so that the error says what to use.
    """
    algorithms: list[type[BaseAlgorithm]] = [PPO, A2C, SAC, TD3, DDPG, DQN]
    try:
        from sb3_contrib import QRDQN, TQC, TRPO, RecurrentPPO
    except ImportError:
        pass
    else:
        algorithms += [TRPO, TQC, QRDQN, RecurrentPPO]
    for algorithm in algorithms:
        for policy in POLICIES:
            algorithm.policy_aliases.setdefault(policy.__name__, policy)
