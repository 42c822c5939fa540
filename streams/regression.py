"""Slowly changing regression: every member follows a random teacher network that keeps changing.

A teacher is a network of one hidden layer with random weights. Every so many samples its weights
are drawn partly anew, so that what was learned goes slowly out of date and the student must keep
learning. The task is as hard at the end as at the beginning: a loss that grows is the student's
loss of plasticity. (After the slowly changing regression of Dohare et al., Nature 2024, with
weights that are real numbers instead of bits.)
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from upgd_ppo.streams.stream import Stream

INPUTS = 16
TEACHER_UNITS = 32
KEPT = 0.7
"""Correlation of a teacher's weights before and after a change. Their variance stays the same."""
NOISE = 0.1
"""Standard deviation of what no student can predict, so that no mean squared error stays below its
square; the mean square of the targets is about 1."""


class RegressionStream(Stream):
    """Inputs and their teacher's outputs, for each of S members.

    Args:
        generators: one per member.
        change_every: samples between two changes of a teacher.
    """

    input_size = INPUTS
    output_size = 1

    def __init__(self, generators: list[torch.Generator], change_every: int) -> None:
        self.generators = generators
        self.change_every = change_every
        self.samples = 0
        teachers = [_draw_teacher(generator) for generator in generators]
        self.hidden = torch.stack([hidden for hidden, _ in teachers])
        self.output = torch.stack([output for _, output in teachers])

    def draw(self, count: int) -> tuple[Tensor, Tensor]:
        """The next samples: inputs [S, count, inputs] and targets [S, count, 1]."""
        inputs, targets = [], []
        while count:
            # Up to the next change
            now = min(count, self.change_every - self.samples % self.change_every)
            drawn = [self._sample(member, now) for member in range(len(self.generators))]
            inputs.append(torch.stack([own_inputs for own_inputs, _ in drawn]))
            targets.append(torch.stack([own_targets for _, own_targets in drawn]))
            self.samples += now
            count -= now
            if self.samples % self.change_every == 0:
                self._change()
        return torch.cat(inputs, 1), torch.cat(targets, 1)

    def state_dict(self) -> dict[str, Any]:
        """Where the sequences are: the number of samples, the rest with the member axis first."""
        return {
            "samples": self.samples,
            "hidden": self.hidden.clone(),
            "output": self.output.clone(),
            "generators": [generator.get_state() for generator in self.generators],
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue from a state that `state_dict` gave."""
        self.samples = state["samples"]
        self.hidden.copy_(state["hidden"])
        self.output.copy_(state["output"])
        for generator, value in zip(self.generators, state["generators"], strict=True):
            generator.set_state(value)

    def _sample(self, member: int, count: int) -> tuple[Tensor, Tensor]:
        generator = self.generators[member]
        inputs = torch.randn(count, INPUTS, generator=generator)
        noise = torch.randn(count, 1, generator=generator)
        features = torch.relu(inputs @ self.hidden[member].T)
        return inputs, features @ self.output[member].T + NOISE * noise

    def _change(self) -> None:
        for member, generator in enumerate(self.generators):
            for weight, fresh in zip(
                (self.hidden[member], self.output[member]), _draw_teacher(generator), strict=True
            ):
                weight.mul_(KEPT).add_(fresh, alpha=math.sqrt(1 - KEPT**2))


def _draw_teacher(generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Weights [units, inputs] and [1, units] under which features and targets keep the inputs'
    scale: half of it is lost in the ReLU."""
    hidden = torch.randn(TEACHER_UNITS, INPUTS, generator=generator) * math.sqrt(2 / INPUTS)
    output = torch.randn(1, TEACHER_UNITS, generator=generator) / math.sqrt(TEACHER_UNITS)
    return hidden, output
