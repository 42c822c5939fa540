"""Methods that act on a policy after every optimizer step while Stable-Baselines3 trains it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import torch
from stable_baselines3.common.callbacks import BaseCallback
from torch import Tensor
from torch.optim import Optimizer
from torch.utils.hooks import RemovableHandle

from upgd_ppo.agents.methods import Methods, Networks, make
from upgd_ppo.agents.networks.layers import Layer, layers_of
from upgd_ppo.agents.optimizers.memory import Memory
from upgd_ppo.agents.sb3.latest_batch import latest_batch
from upgd_ppo.agents.sb3.statistics import optimizers_of


class MethodCallback(BaseCallback):
    """Has a method act on a policy's hidden units: `MethodCallback("random_reset", every=1000)`.

    It acts after every step of each optimizer that the policy has, on the hidden `nn.Linear` layers
    that this one steps and whose units go to linear layers alone; target networks follow as they
    always do. It draws from streams of its own. How many units were renewed is logged as
    `train/units_renewed`.

    Args:
        method: a registered name, as `train.py --methods` takes it.
        seed: of the method's random numbers; None is the algorithm's own seed, or 0.
        verbose: SB3's.
        settings: of the method.

    Raises:
        ValueError: the method or one of its settings is unknown, a value is refused, or the method
            reads features, which the plug-in does not offer; while training, the policy has no
            hidden layer.
        TypeError: at the start of training, if the algorithm has no rollout or replay buffer.
    """

    def __init__(
        self, method: str, *, seed: int | None = None, verbose: int = 0, **settings: Any
    ) -> None:
        super().__init__(verbose)
        self.name, self.method = method, make(method, settings)
        if self.method.wants_features:
            raise ValueError(
                f"MethodCallback cannot have {method!r} act: it reads the outputs of hidden layers,"
                " which are not to be had in Stable-Baselines3."
            )
        self.seed = seed
        self._acting: dict[Optimizer, Methods] = {}
        self._handles: list[RemovableHandle] = []
        self._loaded: list[dict[str, Any]] | None = None

    def _on_training_start(self) -> None:
        self._remove_hooks()  # of a training that was interrupted
        try:
            self._batch = latest_batch(self.model)
        except TypeError:
            raise TypeError(
                "MethodCallback needs an algorithm that learns from a rollout or replay buffer,"
                f" which {type(self.model).__name__} does not."
            ) from None

    def _on_step(self) -> bool:
        return True

    def _on_rollout_end(self) -> None:
        if not self._handles:
            self._begin()
        self.logger.record("train/units_renewed", self.units_renewed)

    def _on_training_end(self) -> None:
        self._remove_hooks()

    @property
    def units_renewed(self) -> int:
        """How many units the method has renewed so far."""
        return sum(
            int(methods.scalars["units_renewed"].sum())
            for methods in self._acting.values()
            if "units_renewed" in methods.scalars
        )

    def state_dict(self) -> list[dict[str, Any]]:
        """What a training that goes on elsewhere needs: save it beside the model."""
        return [methods.state_dict() for methods in self._acting.values()]

    def load_state_dict(self, state: list[dict[str, Any]]) -> None:
        """Go on, in the training that follows, from a state that `state_dict` gave."""
        self._loaded = state
        self._acting = {}

    def _begin(self) -> None:
        """Find the layers, once there are observations to run the policy on, and hook the steps."""
        policy = self.model.policy
        optimizers = optimizers_of(policy)
        if list(self._acting) != optimizers:
            self._batch.collect()
            layers = layers_of(policy, self._batch.inputs(), forward=self._batch.forward)
            parameters: dict[str, Tensor] = dict(policy.named_parameters())
            memory = Memory.of_model(optimizers, parameters)
            self._acting = {
                optimizer: self._methods(index, optimizer, layers, parameters, memory)
                for index, optimizer in enumerate(optimizers)
            }
            for methods, state in zip(self._acting.values(), self._loaded or (), strict=False):
                methods.load_state_dict(state)
            self._loaded = None
        if not any(methods.networks.layers for methods in self._acting.values()):
            raise ValueError(
                f"MethodCallback finds nothing to act on in {type(policy).__name__}: a hidden"
                " nn.Linear layer, then an activation module, then nn.Linear was expected; give"
                " policy_kwargs=dict(net_arch=[64, 64])."
            )
        for optimizer, methods in self._acting.items():
            if methods.networks.layers:
                self._handles.append(optimizer.register_step_post_hook(_after_step(methods)))

    def _methods(
        self,
        index: int,
        optimizer: Optimizer,
        layers: list[Layer],
        parameters: dict[str, Tensor],
        memory: Memory,
    ) -> Methods:
        """The method, acting on the layers that one of the optimizers steps."""
        stepped = {id(p) for group in optimizer.param_groups for p in group["params"]}
        own = [
            layer
            for layer in layers
            if layer.outgoing is not None
            and parameters[layer.incoming].ndim == 2
            and id(parameters[layer.incoming]) in stepped
        ]
        initialization = (
            "orthogonal" if getattr(self.model.policy, "ortho_init", False) else "pytorch"
        )
        networks = Networks(own, _OneMember(parameters), memory, initialization)
        seed = self.seed if self.seed is not None else self.model.seed or 0
        # Of several optimizers each has its own streams: named alike, they would draw the same.
        return Methods({f"{self.name}/{index}": self.method}, networks, [seed])

    def _remove_hooks(self) -> None:
        for handle in self._handles:
            handle.remove()
        self._handles = []


class _OneMember(Mapping[str, Tensor]):
    """An ordinary model's parameters as those of a population of one: [1, …], to be written."""

    def __init__(self, parameters: dict[str, Tensor]) -> None:
        self._parameters = parameters

    def __getitem__(self, name: str) -> Tensor:
        return self._parameters[name].detach().unsqueeze(0)

    def __iter__(self) -> Iterator[str]:
        return iter(self._parameters)

    def __len__(self) -> int:
        return len(self._parameters)


def _after_step(methods: Methods) -> Any:
    stepped = torch.ones(1, dtype=torch.bool)
    return lambda *_: methods.after_step(stepped)
