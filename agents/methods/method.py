"""The contract of a method: what acts on hidden units after an optimizer's step."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from upgd_ppo.agents.networks.initialization import fresh_units
from upgd_ppo.agents.networks.layers import Layer
from upgd_ppo.agents.optimizers.memory import Memory

State = dict[str, Tensor]
"""What a method keeps between steps, by name: tensors [S, …], the member axis first."""

Features = Mapping[Layer, Tensor]
"""The outputs [S, M, units] of hidden layers on the minibatch of the step."""


@dataclass(frozen=True)
class Networks:
    """What methods read and change: the networks of S members, one for an ordinary model.

    Attributes:
        layers: their hidden layers; those of one network follow one another.
        parameters: [S, …] by name, as layers name them; written in place.
        memory: what the optimizer remembers of them.
        initialization: how they were drawn, a key of `INITIALIZATIONS`.
    """

    layers: Sequence[Layer]
    parameters: Mapping[str, Tensor]
    memory: Memory
    initialization: str

    @property
    def num_members(self) -> int:
        """S."""
        return len(next(iter(self.parameters.values())))

    @property
    def by_network(self) -> dict[str, list[Layer]]:
        """The hidden layers of each network."""
        found: dict[str, list[Layer]] = {}
        for layer in self.layers:
            found.setdefault(layer.network, []).append(layer)
        return found

    @torch.no_grad()
    def renew(
        self,
        layer: Layer,
        units: Tensor,
        generators: Sequence[torch.Generator],
        clear_memory: bool = True,
    ) -> None:
        """Make hidden units what they are at initialisation, with no say in the output.

        Their incoming weights and biases are drawn anew, a normalisation's weight is 1 and its
        bias 0, outgoing weights are 0, and the optimizer forgets all of these.

        Args:
            units: bool [S, units], which ones.
            generators: one per member; a member none of whose units is renewed draws nothing.
            clear_memory: have the optimizer forget.
        """
        incoming = self.parameters[layer.incoming]
        bias = layer.incoming.removesuffix("weight") + "bias"
        where = units.to(incoming.device)

        # Incoming weights and biases, as they were drawn
        for member in units.any(1).nonzero().flatten().tolist():
            weights, biases = fresh_units(
                self.initialization, layer, incoming.shape[1:], generators[member]
            )
            chosen = units[member].nonzero().flatten()
            at = chosen.to(incoming.device)
            incoming[member, at] = weights[chosen].to(incoming)
            if bias in layer.own:
                self.parameters[bias][member, at] = biases[chosen].to(incoming)

        # What else is theirs, and where they go
        for name in layer.own:
            if name != bias:
                self.parameters[name].masked_fill_(where, float(name.endswith("weight")))
        outgoing = [name for name in (layer.outgoing, *layer.also_outgoing) if name is not None]
        for name in outgoing:
            self.parameters[name].masked_fill_(where.unsqueeze(1), 0.0)

        # What the optimizer remembers
        if not clear_memory:
            return
        self.memory.clear(layer.incoming, where.unsqueeze(2))
        for name in layer.own:
            self.memory.clear(name, where)
        for name in outgoing:
            self.memory.clear(name, where.unsqueeze(1))


class Method:
    """What acts on the networks after every step of the optimizer.

    A method is its settings, a frozen dataclass whose fields are what `--methods NAME key=value`
    takes; it checks them in `__post_init__`. Everything that it remembers is in its state, which
    checkpoints hold. It never reduces over the member axis: a member does not know how many others
    there are.

    Attributes:
        wants_features: `after_step` reads `features`. The compiled kernels do not return them, so
            PPO then computes its gradient without.
    """

    wants_features: ClassVar[bool] = False

    def init(self, networks: Networks) -> State:
        """The state before the first step."""
        raise NotImplementedError

    def after_step(
        self,
        networks: Networks,
        stepped: Tensor,
        features: Features,
        generators: Sequence[torch.Generator],
        state: State,
    ) -> State:
        """Act on the networks, and give the new state.

        Args:
            networks: as the optimizer's step left them; changed in place.
            stepped: bool [S], on the CPU: the members that took the step. The others, halted or
                past their `target_kl`, must stay as they are, and draw nothing.
            features: of the forward pass that the step's gradient came from; empty unless the
                method wants them.
            generators: the method's own, one per member, on the CPU.
            state: what `init` or the last call gave. "units_renewed" [S] in it, the number of
                units renewed so far, is logged.
        """
        raise NotImplementedError
