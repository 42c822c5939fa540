"""The UPGD family straight from the formulas: slow, clear, one weight tensor at a time.

Nothing here is shared with the package. A `Weights` carries what a step reads and what it keeps;
the functions update a list of them in place.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

SETTINGS: dict[str, Any] = dict(
    lr=0.01,
    beta_utility=0.9,
    sigma=0.1,
    weight_decay=0.01,
    order="first",
    scope="global",
    protecting=True,
    step_scale=1.0,
    noise_clip=None,
    corrected_denominator=False,
    maximize=False,
    betas=(0.9, 0.99),
    eps=1e-5,
    decay=0.1,
)


@dataclass
class Weights:
    """A parameter: its value, its group's settings, and its memory."""

    value: Tensor
    settings: dict[str, Any]
    gradient: Tensor | None = None
    noise: Tensor | None = None
    curvature: Tensor | None = None
    step: int = 0
    memory: dict[str, Tensor] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for name in ("utility", "first_moment", "second_moment"):
            self.memory[name] = torch.zeros_like(self.value)

    @property
    def ascent_free_gradient(self) -> Tensor:
        """The gradient of what is minimised."""
        assert self.gradient is not None
        return -self.gradient if self.settings["maximize"] else self.gradient

    @property
    def scaled_noise(self) -> Tensor:
        clip = self.settings["noise_clip"]
        assert self.noise is not None
        noise = self.noise if clip is None else self.noise.clamp(-clip, clip)
        return self.settings["sigma"] * noise


def upgd_step(parameters: list[Weights], adaptive: bool = False) -> dict[int, Tensor]:
    """One step; returns the scaled utility of each stepped parameter by its position."""
    moving = {i: p for i, p in enumerate(parameters) if p.gradient is not None}
    corrected = {}
    for i, p in moving.items():
        settings, g, w = p.settings, p.ascent_free_gradient, p.value
        p.step += 1
        utility = -g * w
        if settings["order"] == "second":
            assert p.curvature is not None
            h = -p.curvature if settings["maximize"] else p.curvature
            utility = 0.5 * h * w**2 - g * w
        beta = settings["beta_utility"]
        p.memory["utility"] = beta * p.memory["utility"] + (1 - beta) * utility
        corrected[i] = p.memory["utility"] / (1 - beta**p.step)

    maximum = -torch.inf
    for i, p in moving.items():
        if p.settings["scope"] == "global":
            trace = corrected[i] if p.settings["corrected_denominator"] else p.memory["utility"]
            maximum = max(maximum, trace.max().item())

    scaled = {}
    for i, p in moving.items():
        if p.settings["scope"] == "local":
            vectors = corrected[i].reshape(1) if corrected[i].ndim == 0 else corrected[i]
            ratio = F.normalize(vectors, dim=-1).view_as(corrected[i])
        elif maximum > 0:
            ratio = corrected[i] / maximum
        else:
            ratio = torch.zeros_like(corrected[i])
        scaled[i] = torch.sigmoid(ratio)

    for i, p in moving.items():
        settings, s = p.settings, scaled[i]
        direction = adam_direction(p) if adaptive else p.ascent_free_gradient
        if settings["protecting"]:
            update = (direction + p.scaled_noise) * (1 - s)
        else:
            update = direction + p.scaled_noise * (1 - s)
        lr = settings["lr"]
        p.value = p.value * (1 - lr * settings["weight_decay"])
        p.value = p.value - settings["step_scale"] * lr * update
    return scaled


def adam_direction(p: Weights) -> Tensor:
    """m̂/(√v̂ + eps)."""
    (beta1, beta2), g = p.settings["betas"], p.ascent_free_gradient
    p.memory["first_moment"] = beta1 * p.memory["first_moment"] + (1 - beta1) * g
    p.memory["second_moment"] = beta2 * p.memory["second_moment"] + (1 - beta2) * g**2
    first = p.memory["first_moment"] / (1 - beta1**p.step)
    second = p.memory["second_moment"] / (1 - beta2**p.step)
    return first / (second.sqrt() + p.settings["eps"])


def perturbed_step(parameters: list[Weights], shrinks: bool) -> None:
    """PGD, or shrink-and-perturb."""
    for p in parameters:
        if p.gradient is not None:
            lr = p.settings["lr"]
            kept = 1 - lr * p.settings["decay"] if shrinks else 1.0
            p.value = p.value * kept - lr * (p.ascent_free_gradient + p.scaled_noise)
