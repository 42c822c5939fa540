"""Supervised learning of a stream, over a stack of members: one optimizer step a minibatch.

Every array has the member axis first, and nothing here ever reduces over it.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from upgd_ppo.agents.kernels import switch
from upgd_ppo.agents.learners.health import first_signs
from upgd_ppo.agents.learners.iteration_report import Episode, IterationReport
from upgd_ppo.agents.learners.learner import Scalar
from upgd_ppo.agents.methods.acting import Methods
from upgd_ppo.agents.networks.flat_parameters import FlatParameters
from upgd_ppo.agents.networks.layers import Layer
from upgd_ppo.agents.networks.stacked_mlp import StackedMLP
from upgd_ppo.agents.optimizers.population_optimizer import PopulationOptimizer
from upgd_ppo.agents.optimizers.separate import SeparateOptimizers
from upgd_ppo.agents.plasticity.inspection import Inspection
from upgd_ppo.agents.plasticity.inspector import Inspector
from upgd_ppo.streams import Stream

NETWORK = "regressor"


class Supervised:
    """S students in lockstep, each on a stream of its own. A `Learner`.

    An iteration takes so many samples of the stream and learns from each of them once. A step is a
    sample. The performance of an iteration, which the records keep as an episode's return, is the
    negative of its mean loss, each minibatch's loss taken before it is learned from.

    Args:
        seeds: the members' seeds.
        stream: what they learn.
        network: called "regressor".
        optimizer: steps the network's parameters.
        optimizer_noise: one generator per member, which the optimizer draws from.
        samples: of the stream, an iteration.
        minibatches: into which they are split.
        learning_rate: at the start.
        anneal: decrease it linearly to 0 over the run.
        total_iterations: iterations of the whole run.
        inspector: measures the network, after the iterations in which that is due.
        methods: act on the network after every step of the optimizer.
    """

    name = "supervised"
    scalars = (
        Scalar("loss", "train/loss", band="loss of an iteration"),
        Scalar("gradient_norm", "train/gradient_norm"),
        Scalar("learning_rate", "train/learning_rate"),
        Scalar("units_renewed", "train/units_renewed"),  # where methods act
    )
    performance = "negative loss"
    exact_state = True

    def __init__(
        self,
        seeds: list[int],
        stream: Stream,
        network: StackedMLP,
        optimizer: PopulationOptimizer | SeparateOptimizers,
        optimizer_noise: list[torch.Generator],
        samples: int,
        minibatches: int,
        learning_rate: float,
        anneal: bool,
        total_iterations: int,
        inspector: Inspector | None = None,
        methods: Methods | None = None,
    ) -> None:
        self.seeds = seeds
        self.stream = stream
        self.network = network
        self.optimizer = optimizer
        self.optimizer_noise = optimizer_noise
        self.samples = samples
        self.minibatch_size = samples // minibatches
        self.initial_learning_rate = learning_rate
        self.anneal = anneal
        self.total_iterations = total_iterations
        self.inspector = inspector
        self.methods = methods
        if methods is not None and methods.wants_features:
            network.keeps_features = True
        self.iteration = 0
        self.healthy = np.ones(len(seeds), dtype=bool)
        self.parameters: FlatParameters = network.parameters
        self.device = self.parameters.data.device
        self.initial_parameters = self.parameters.data.clone()
        self.previous_parameters = self.parameters.data.clone()

    def advance(self) -> IterationReport:
        """One iteration: anneal, draw samples, learn from each minibatch once."""
        # Anneal
        self.previous_parameters.copy_(self.parameters.data)
        learning_rate = self.learning_rate
        self.optimizer.set_learning_rate(learning_rate)
        # Draw
        inputs, targets = (tensor.to(self.device) for tensor in self.stream.draw(self.samples))
        # Learn
        losses, gradient_norms = self.update(inputs, targets)
        self.iteration += 1
        halted = self._halt_sick_members(losses)
        # Report
        mean_loss = losses.mean(0)
        episodes = [
            Episode(int(member), self.steps, -float(mean_loss[member]), self.samples, False)
            for member in np.flatnonzero(self.healthy)
        ]
        return IterationReport(
            scalars={
                "loss": mean_loss,
                "gradient_norm": gradient_norms.mean(0),
                "learning_rate": np.full(len(self.seeds), learning_rate),
                **(self.methods.scalars if self.methods is not None else {}),
            },
            episodes=episodes,
            halted=halted,
            inspection=self.inspect(inputs),
        )

    def inspect(self, inputs: Tensor) -> Inspection | None:
        """Plasticity statistics of the members' networks, if they are due; changes nothing.

        Args:
            inputs: [S, samples, inputs], what they have just learned from.
        """
        if self.inspector is None:
            return None
        return self.inspector.inspect(
            self.iteration,
            {NETWORK: self.network},
            self.optimizer,
            inputs,
            initial=self.initial_parameters,
            previous=self.previous_parameters,
            gradient=self.parameters.gradient,
            is_last=self.iteration == self.total_iterations,
        )

    def update(self, inputs: Tensor, targets: Tensor) -> tuple[NDArray, NDArray]:
        """One step on every minibatch, in the order of the stream.

        Args:
            inputs: [S, samples, inputs].
            targets: [S, samples, outputs].

        Returns:
            Loss and norm of the gradient of every minibatch before its step: [minibatches, S] each.
        """
        losses, norms = [], []
        for batch, wanted in zip(
            inputs.split(self.minibatch_size, 1), targets.split(self.minibatch_size, 1), strict=True
        ):
            # Predict
            errors = self.network.forward(batch) - wanted
            losses.append(errors.square().mean((1, 2)))
            # Gradient of the mean squared error
            self.network.backward(errors * (2 / errors[0].numel()))
            norms.append(torch.linalg.vector_norm(self.parameters.gradient, dim=1))
            # Step, and let methods act
            self.optimizer.step()
            if self.methods is not None:
                self.methods.after_step(self.healthy, self.features)
        return torch.stack(losses).double().cpu().numpy(), torch.stack(norms).double().cpu().numpy()

    @property
    def learning_rate(self) -> float:
        """The step size of the coming iteration."""
        if not self.anneal:
            return self.initial_learning_rate
        return self.initial_learning_rate * max(0.0, 1.0 - self.iteration / self.total_iterations)

    @property
    def features(self) -> dict[Layer, Tensor]:
        """What the hidden layers gave last, [S, B, units]; empty if it is not kept."""
        outputs = self.network.features
        return dict(zip(self.network.hidden_layers, outputs, strict=True)) if outputs else {}

    @property
    def steps(self) -> int:
        """Samples that each member has seen."""
        return self.iteration * self.samples

    @property
    def total_steps(self) -> int:
        """Samples that each member sees in the end."""
        return self.total_iterations * self.samples

    @property
    def why_no_kernels(self) -> str | None:
        """What keeps the compiled kernels, the optimizer's, from being used; None if nothing."""
        if self.device.type != "cpu":
            return f"the device is {self.device}"
        return None if switch.kernels() else switch.why_none()

    def _halt_sick_members(self, losses: NDArray) -> list[tuple[int, str]]:
        """Find members that became non-finite, and park them at their last good weights."""
        data = self.parameters.data
        sick = first_signs(
            {
                "a non-finite loss": ~np.isfinite(losses).all(0),
                "non-finite weights": ~torch.isfinite(data).all(1).cpu().numpy(),
            }
        )
        halted = [(member, sick[member]) for member in sorted(sick) if self.healthy[member]]
        for member, _ in halted:
            self.healthy[member] = False
        if not self.healthy.all():
            parked = torch.from_numpy(~self.healthy)
            data[parked] = self.previous_parameters[parked]
        return halted

    def state_dict(self) -> dict[str, Any]:
        """Everything the members are between two iterations, member axis first."""
        return {
            "iteration": self.iteration,
            "parameters": self.parameters.data.clone(),
            "initial_parameters": self.initial_parameters.clone(),
            "optimizer": self.optimizer.state_dict(),
            "optimizer_noise": [generator.get_state() for generator in self.optimizer_noise],
            "methods": {} if self.methods is None else self.methods.state_dict(),
            "stream": self.stream.state_dict(),
            "healthy": self.healthy.copy(),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue from a state that `state_dict` gave."""
        self.iteration = state["iteration"]
        self.parameters.data.copy_(state["parameters"])
        self.initial_parameters.copy_(state["initial_parameters"])
        self.optimizer.load_state_dict(state["optimizer"])
        for generator, value in zip(self.optimizer_noise, state["optimizer_noise"], strict=True):
            generator.set_state(value)
        self.stream.load_state_dict(state["stream"])
        if self.methods is not None:
            self.methods.load_state_dict(state["methods"])
        self.healthy[:] = state["healthy"]

    def close(self) -> None:
        """Nothing is open."""
