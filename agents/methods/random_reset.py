"""Renewing random hidden units: the least that a method can do, and a baseline for better ones."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from upgd_ppo.agents.methods.method import Features, Method, Networks, State
from upgd_ppo.agents.networks.layers import Layer


@dataclass(frozen=True)
class RandomReset(Method):
    """Every so many optimizer steps, one random hidden unit of each network begins anew.

    Every unit of a network is as likely as any other. See `Networks.renew` for what becomes of it.

    Args:
        every: optimizer steps of a member between two resets, ≥ 1.

    Raises:
        ValueError: if `every` is no whole number of at least 1.
    """

    every: int = 1000

    def __post_init__(self) -> None:
        if isinstance(self.every, bool) or not isinstance(self.every, int) or self.every < 1:
            raise ValueError(f"every must be a whole number of at least 1, not {self.every!r}.")

    def init(self, networks: Networks) -> State:
        """Counts [S]: steps taken, units renewed."""
        return {
            name: torch.zeros(networks.num_members, dtype=torch.int64)
            for name in ("steps", "units_renewed")
        }

    def after_step(
        self,
        networks: Networks,
        stepped: Tensor,
        features: Features,
        generators: Sequence[torch.Generator],
        state: State,
    ) -> State:
        """Renew one unit per network of the members whose turn it is."""
        steps, renewed = state["steps"] + stepped, state["units_renewed"]
        due = stepped & (steps % self.every == 0)
        if due.any():
            for layers in networks.by_network.values():
                chosen = self._choose(layers, due, generators)
                for layer, units in zip(layers, chosen, strict=True):
                    networks.renew(layer, units, generators)
                renewed = renewed + due
        return {"steps": steps, "units_renewed": renewed}

    @staticmethod
    def _choose(
        layers: Sequence[Layer], due: Tensor, generators: Sequence[torch.Generator]
    ) -> Sequence[Tensor]:
        """One unit of the network for each member that is due: bool [S, units] of each layer."""
        sizes = [layer.units for layer in layers]
        units = torch.zeros(len(due), sum(sizes), dtype=torch.bool)
        for member in due.nonzero().flatten().tolist():
            units[member, torch.randint(sum(sizes), (), generator=generators[member])] = True
        return units.split(sizes, dim=1)
