"""Continual backpropagation: a few of the least useful hidden units begin anew after every step."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar, Literal, get_args

import torch
from torch import Tensor

from upgd_ppo.agents.methods.method import Features, Method, Networks, State
from upgd_ppo.agents.networks.layers import Layer

Utility = Literal[
    "contribution",
    "zero_contribution",
    "adaptable_contribution",
    "weight",
    "adaptation",
    "feature_by_input",
]


@dataclass(frozen=True)
class ContinualBackprop(Method):
    """After every step of the optimizer, the utility of every hidden unit is traced, and a share of
    the units that are old enough begins anew, those of the least utility first.

    With h the unit's output, w_out its outgoing and w_in its incoming weights, h̄ the trace of h,
    and means over the minibatch or the weights, a step's utility is

    ======================  ====================================================
    contribution            mean |h| · mean |w_out|
    zero_contribution       mean |h − h̄| · mean |w_out|
    adaptable_contribution  mean |h − h̄| · mean |w_out| / mean |w_in|
    weight                  mean |w_out|
    adaptation              1 / mean |w_in|
    feature_by_input        mean |h − h̄| · mean |w_in|
    ======================  ====================================================

    Traces are exponential, their bias corrected by the unit's age. The shares add up until a whole
    unit is due. A unit that goes leaves its mean output, times its outgoing weights, in the next
    layer's bias, so that little changes but what it varied.

    Args:
        replacement_rate: share of the mature units of a layer that is renewed a step, in [0, 1].
        maturity: optimizer steps that a unit is left alone, ≥ 0.
        decay: of the traces, in [0, 1).
        utility: see above.
        keeps_mean: leave the mean output in the next layer's bias, as the paper says; the published
            code empties the trace first and so leaves nothing.
        clears_memory: the optimizer forgets what it knew of a renewed unit's weights, as in the
            paper; its code for PPO does not.

    Raises:
        ValueError: if a setting is out of range.

    Source: Dohare et al., "Loss of plasticity in deep continual learning", Nature 632 (2024),
    Algorithm 1 and Methods; the other utilities are those of its code.
    """

    replacement_rate: float = 1e-4
    maturity: int = 10_000
    decay: float = 0.99
    utility: str = "contribution"
    keeps_mean: bool = True
    clears_memory: bool = True

    wants_features: ClassVar[bool] = True

    def __post_init__(self) -> None:
        if not 0 <= self.replacement_rate <= 1:
            raise ValueError(f"replacement_rate must be from 0 to 1, not {self.replacement_rate}.")
        if self.maturity < 0 or self.maturity != int(self.maturity):
            raise ValueError(f"maturity must be a whole number of at least 0, not {self.maturity}.")
        if not 0 <= self.decay < 1:
            raise ValueError(f"decay must be at least 0 and less than 1, not {self.decay}.")
        if self.utility not in get_args(Utility):
            raise ValueError(
                f"utility must be one of {', '.join(get_args(Utility))}, not {self.utility!r}."
            )

    def init(self, networks: Networks) -> State:
        """Traces and ages [S, units] and shares that are due [S] of each layer; units renewed."""
        state: State = {"units_renewed": torch.zeros(networks.num_members, dtype=torch.int64)}
        for layer in networks.layers:
            weights = networks.parameters[layer.incoming]
            for name in ("utility", "mean_output", "age"):
                state[_key(layer, name)] = weights.new_zeros(weights.shape[:2])
            state[_key(layer, "due")] = torch.zeros(len(weights), dtype=torch.float64)
        return state

    @torch.no_grad()
    def after_step(
        self,
        networks: Networks,
        stepped: Tensor,
        features: Features,
        generators: Sequence[torch.Generator],
        state: State,
    ) -> State:
        """See `Method.after_step`."""
        # Judge every layer before one of them is changed
        chosen = {
            layer: self._judge(networks, layer, features[layer], stepped, state)
            for layer in networks.layers
        }
        for layer, units in chosen.items():
            if units is not None:
                self._replace(networks, layer, units, generators, state)
                state["units_renewed"] += units.sum(1).cpu()
        return state

    def _judge(
        self, networks: Networks, layer: Layer, outputs: Tensor, stepped: Tensor, state: State
    ) -> Tensor | None:
        """Trace the utilities of a layer; the units to renew, bool [S, units], or None."""
        utility, mean_output, age, due = (
            state[_key(layer, name)] for name in ("utility", "mean_output", "age", "due")
        )
        moving = stepped.to(age.device).unsqueeze(1)

        # One step older
        age += moving
        correction = 1 - self.decay ** age.clamp(min=1)
        mean_output.copy_(
            torch.where(moving, torch.lerp(outputs.mean(1), mean_output, self.decay), mean_output)
        )
        now = self._utility(networks, layer, outputs, mean_output / correction)
        utility.copy_(torch.where(moving, torch.lerp(now, utility, self.decay), utility))

        # How many are due
        mature = moving & (age > self.maturity)
        due += self.replacement_rate * mature.sum(1).cpu().double()
        counts = due.floor().long()
        if not counts.any():
            return None
        due -= counts

        # The least useful of the mature
        ranked = torch.where(mature, utility / correction, math.inf).argsort(dim=1, stable=True)
        units = torch.zeros_like(mature)
        for member in counts.nonzero().flatten().tolist():
            units[member, ranked[member, : counts[member]]] = True
        return units

    def _utility(
        self, networks: Networks, layer: Layer, outputs: Tensor, mean_output: Tensor
    ) -> Tensor:
        """The utility [S, units] of this step."""
        outgoing = [
            networks.parameters[name]
            for name in (layer.outgoing, *layer.also_outgoing)
            if name is not None
        ]
        weight_out = torch.cat(outgoing, 1).abs().mean(1)
        weight_in = networks.parameters[layer.incoming].abs().mean(2)
        if self.utility == "weight":
            return weight_out
        if self.utility == "adaptation":
            return 1 / weight_in
        if self.utility == "contribution":
            return outputs.abs().mean(1) * weight_out
        varying = (outputs - mean_output.unsqueeze(1)).abs().mean(1)
        if self.utility == "feature_by_input":
            return varying * weight_in
        contribution = varying * weight_out
        return (
            contribution / weight_in if self.utility == "adaptable_contribution" else contribution
        )

    def _replace(
        self,
        networks: Networks,
        layer: Layer,
        units: Tensor,
        generators: Sequence[torch.Generator],
        state: State,
    ) -> None:
        mean_output, age = state[_key(layer, "mean_output")], state[_key(layer, "age")]

        # What they said on average is said by the next layer's bias from now on
        if self.keeps_mean and layer.outgoing is not None and layer.next_bias is not None:
            mean = torch.where(units, mean_output / (1 - self.decay**age), 0.0)
            outgoing = networks.parameters[layer.outgoing]
            networks.parameters[layer.next_bias].add_((outgoing * mean.unsqueeze(1)).sum(2))

        # They begin anew, and so do their traces
        networks.renew(layer, units.cpu(), generators, clear_memory=self.clears_memory)
        for name in ("utility", "mean_output", "age"):
            state[_key(layer, name)].masked_fill_(units, 0.0)


def _key(layer: Layer, name: str) -> str:
    return f"{layer.network}.{layer.name}.{name}"
