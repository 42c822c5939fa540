"""The actors and critics of a population: S networks of one shape, stacked along a member axis."""

from __future__ import annotations

import math

import torch
from numpy.typing import NDArray
from torch import Tensor

from upgd_ppo.agents.kernels import switch
from upgd_ppo.agents.networks.distribution import std_of_output
from upgd_ppo.agents.networks.flat_parameters import FlatParameters
from upgd_ppo.agents.networks.initialization import initialise
from upgd_ppo.agents.networks.layers import Layer
from upgd_ppo.agents.networks.stacked_mlp import StackedMLP, mlp_shapes


class ActorCritic:
    """The networks of S members: a Gaussian policy and a value function, apart.

    The actor gives the mean of a diagonal Gaussian. Its log standard deviation `actor.log_std`
    [S, A] does not depend on the state; or else the actor has 2·A outputs, the means and then
    what `distribution.std_of_output` makes standard deviations of.

    Args:
        seeds: the members' seeds; member k's initial weights depend on `seeds[k]` alone.
        observation_size: O.
        action_size: A.
        hidden_sizes: units of the hidden layers, the same for actor and critic.
        activation: one of `activations.TRAINABLE`.
        layer_norm: normalise the pre-activations of the hidden layers.
        initialization: a key of `initialization.INITIALIZATIONS`.
        state_dependent_std: the standard deviations are outputs of the actor.

    Attributes:
        critic_at: where the critic's parameters begin in a row of the flat buffer; before them
            are the actor's.
    """

    def __init__(
        self,
        seeds: list[int],
        observation_size: int,
        action_size: int,
        hidden_sizes: tuple[int, ...] = (64, 64),
        activation: str = "tanh",
        layer_norm: bool = False,
        dtype: torch.dtype = torch.float32,
        device: torch.device | str = "cpu",
        initialization: str = "orthogonal",
        state_dependent_std: bool = False,
    ) -> None:
        self.action_size = action_size
        self.state_dependent_std = state_dependent_std
        outputs = 2 * action_size if state_dependent_std else action_size
        actor_sizes = (observation_size, *hidden_sizes, outputs)
        critic_sizes = (observation_size, *hidden_sizes, 1)
        shapes = mlp_shapes("actor", actor_sizes, layer_norm)
        if not state_dependent_std:
            shapes["actor.log_std"] = (action_size,)
        self.critic_at = sum(math.prod(shape) for shape in shapes.values())
        shapes |= mlp_shapes("critic", critic_sizes, layer_norm)
        self.parameters = FlatParameters(shapes, len(seeds), dtype, device)
        self.activation_name = activation
        self.actor = StackedMLP(self.parameters, "actor", actor_sizes, activation, layer_norm)
        self.critic = StackedMLP(self.parameters, "critic", critic_sizes, activation, layer_norm)
        initialise(self.parameters, seeds, initialization)

    @property
    def why_no_kernels(self) -> str | None:
        """What keeps the compiled gradient from being used, in a few words; None if nothing."""
        return switch.why_not(
            "ppo_gradient",
            self.parameters.data,
            activation=self.activation_name,
            known=self.actor.activation.kernel is not None,
            layer_norm=self.actor.layer_norm,
            features=self.actor.keeps_features,
        )

    @property
    def hidden_layers(self) -> list[Layer]:
        """The hidden layers of both networks."""
        return [*self.actor.hidden_layers, *self.critic.hidden_layers]

    def keep_features(self) -> None:
        """Leave the outputs of hidden layers in `features` from now on, which kernels do not."""
        self.actor.keeps_features = self.critic.keeps_features = True

    @property
    def features(self) -> dict[Layer, Tensor]:
        """What the hidden layers gave last, [S, B, units]; empty if it is not kept."""
        outputs = [*self.actor.features, *self.critic.features]
        return dict(zip(self.hidden_layers, outputs, strict=True)) if outputs else {}

    @property
    def log_std(self) -> Tensor:
        """Log standard deviations of the policy [S, A], where they do not depend on the state."""
        return self.parameters.views["actor.log_std"]

    def means_and_stds(self, outputs: Tensor) -> tuple[Tensor, Tensor]:
        """The policy's means [S, B, A] and standard deviations [S, 1 or B, A].

        Args:
            outputs: of the actor, [S, B, …].
        """
        if not self.state_dependent_std:
            return outputs, torch.exp(self.log_std).unsqueeze(1)
        means, raw = outputs.split(self.action_size, -1)
        return means, std_of_output(raw)

    def mean_stds(self, observations: Tensor) -> Tensor:
        """The policy's standard deviations [S, A], averaged over observations [S, B, O]."""
        return self.means_and_stds(self.actor.forward(observations))[1].mean(1)

    def values(self, observations: NDArray) -> NDArray:
        """The critic's estimates [S, B] for observations [S, B, O]."""
        inputs = torch.from_numpy(observations).to(self.parameters.data.device)
        return self.critic.forward(inputs).squeeze(-1).cpu().numpy()
