"""The methods of an arm at work: their states and random streams, for S members."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from upgd_ppo.agents.methods import registry
from upgd_ppo.agents.methods.method import Features, Method, Networks, State
from upgd_ppo.agents.random_streams import seed_of


class Methods:
    """Several methods that act one after the other on the same networks.

    Args:
        methods: by name, in the order in which they act.
        networks: what they act on.
        seeds: the members' seeds; each method draws from a stream of its own for each.

    Attributes:
        wants_features: whether one of them reads features.
    """

    def __init__(self, methods: Mapping[str, Method], networks: Networks, seeds: list[int]) -> None:
        self.methods = methods
        self.networks = networks
        self.wants_features = any(method.wants_features for method in methods.values())
        self._states: dict[str, State] = {
            name: method.init(networks) for name, method in methods.items()
        }
        self._generators = {
            name: [torch.Generator().manual_seed(seed_of(seed, "methods", name)) for seed in seeds]
            for name in methods
        }

    def after_step(self, stepped: Tensor | NDArray, features: Features | None = None) -> None:
        """Have every method act.

        Args:
            stepped: bool [S], the members that took the optimizer's step and are healthy.
            features: see `Method.after_step`.
        """
        stepped = torch.as_tensor(stepped)
        for name, method in self.methods.items():
            own = (features or {}) if method.wants_features else {}
            self._states[name] = method.after_step(
                self.networks, stepped, own, self._generators[name], self._states[name]
            )

    @property
    def scalars(self) -> dict[str, NDArray]:
        """What is logged of them: "units_renewed" [S], by all of them so far."""
        counts = [
            state["units_renewed"].numpy()
            for state in self._states.values()
            if "units_renewed" in state
        ]
        return {"units_renewed": np.sum(counts, axis=0).astype(np.float64)} if counts else {}

    def state_dict(self) -> dict[str, Any]:
        """Their states and random streams, member axis first."""
        return {
            name: {
                "state": {key: value.clone() for key, value in self._states[name].items()},
                "random_stream": [g.get_state() for g in self._generators[name]],
            }
            for name in self.methods
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue from a state that `state_dict` gave."""
        for name in self.methods:
            self._states[name] = {key: value.clone() for key, value in state[name]["state"].items()}
            for generator, value in zip(
                self._generators[name], state[name]["random_stream"], strict=True
            ):
                generator.set_state(value)


def make_methods(
    settings: Mapping[str, Mapping[str, Any] | None], networks: Networks, seeds: list[int]
) -> Methods:
    """The methods that an arm's settings name.

    Args:
        settings: name → its settings, in the order in which they act.

    Raises:
        ValueError: if a method or one of its settings is unknown, or a value is refused.
    """
    methods = {name: registry.make(name, own) for name, own in settings.items()}
    return Methods(methods, networks, seeds)
