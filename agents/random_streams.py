"""Every random number a member draws comes from streams derived from its own seed."""

from __future__ import annotations

import zlib
from dataclasses import dataclass

import numpy as np
import torch

PURPOSES = (
    "parameters",
    "environment",
    "action_noise",
    "minibatch_order",
    "optimizer_noise",
    "observation_statistics",
    "methods",
    "stream",
)


def seed_of(seed: int, purpose: str, part: str = "") -> int:
    """The 63-bit seed of one member's stream for one purpose.

    A purpose's stream depends on the member's seed and on the purpose alone, so neither the
    number of members nor what the other purposes draw can change it.

    Args:
        seed: the member's seed, ≥ 0.
        purpose: one of `PURPOSES`.
        part: of a purpose that has several, by name: none changes what another draws.

    Raises:
        ValueError: if the purpose is unknown.
    """
    place = [PURPOSES.index(purpose)]
    if part:
        place.append(zlib.crc32(part.encode()))
    key = np.random.SeedSequence(seed, spawn_key=tuple(place))
    return int(key.generate_state(1, np.uint64)[0] >> np.uint64(1))


def generators(
    seeds: list[int], purpose: str, device: torch.device | str = "cpu"
) -> list[torch.Generator]:
    """One generator per member, which draws on `device`."""
    return [torch.Generator(device).manual_seed(seed_of(seed, purpose)) for seed in seeds]


@dataclass
class RandomStreams:
    """The learner's streams of S members: one `torch.Generator` per member and purpose."""

    action_noise: list[torch.Generator]
    minibatch_order: list[torch.Generator]
    optimizer_noise: list[torch.Generator]

    @classmethod
    def from_seeds(cls, seeds: list[int], device: torch.device | str = "cpu") -> RandomStreams:
        """Streams of members with these seeds; the optimizer's noise is drawn on `device`."""
        return cls(
            generators(seeds, "action_noise"),
            generators(seeds, "minibatch_order"),
            generators(seeds, "optimizer_noise", device),
        )

    def state_dict(self) -> dict[str, list[torch.Tensor]]:
        """The state of every generator: for each purpose a list with one entry per member."""
        return {name: [g.get_state() for g in gens] for name, gens in vars(self).items()}

    def load_state_dict(self, state: dict[str, list[torch.Tensor]]) -> None:
        """Set every generator to a state that `state_dict` gave."""
        for name, generators in vars(self).items():
            for generator, value in zip(generators, state[name], strict=True):
                generator.set_state(value)


def environment_seeds(seeds: list[int], envs_per_member: int) -> list[int]:
    """A reset seed for each of S·N sub-environments, member-major."""
    return [
        int(value)
        for seed in seeds
        for value in np.random.SeedSequence(seed_of(seed, "environment")).generate_state(
            envs_per_member
        )
    ]
