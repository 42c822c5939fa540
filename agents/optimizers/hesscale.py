"""HesScale: the Hessian's diagonal in one backward pass (Elsayed & Mahmood, 2022)."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from upgd_ppo.agents.networks.activations import ACTIVATIONS, Derivatives

DERIVATIVES: dict[type[nn.Module], Derivatives] = {
    activation.module: activation.derivatives
    for activation in ACTIVATIONS.values()
    if activation.module and activation.derivatives
}


@torch.no_grad()
def hesscale(
    model: nn.Module,
    inputs: Tensor,
    targets: Tensor,
    loss: nn.MSELoss | nn.CrossEntropyLoss,
) -> Tensor:
    """Gradients and curvature in one backward pass: call it in place of `loss.backward()`.

    For every parameter p it adds the gradient to `p.grad`, as `backward` does, and sets
    `p.curvature`, the estimated diagonal of the loss's Hessian, which an optimizer with
    order="second" reads. Per sample, with z = W·x + b and a = f(z)::

        at the output     the exact diagonal: p − p² (cross-entropy), 2 (squared error),
                          times the reduction's factor
        activation        h_z = f′(z)²·h_a + f″(z)·∂L/∂a
        linear            h_x = (W∘W)ᵀ·h_z,   h_W[i, j] = Σ h_z[i]·x[j]²,   h_b = Σ h_z

    It neglects the off-diagonal of the Hessian in each layer's output, so it is exact for the last
    layer, and throughout for one hidden layer and one output.

    Args:
        model: a chain of `nn.Linear` and activations, such as an `nn.Sequential` of them. Any
            module will do whose `forward` calls such modules one after another, each on what the
            last one returned.
        inputs: [batch, features].
        targets: [batch, outputs] for squared error; class indices [batch] or probabilities
            [batch, classes] for cross-entropy.
        loss: `nn.MSELoss` or `nn.CrossEntropyLoss`, with reduction "mean" or "sum".

    Returns:
        The loss.

    Raises:
        TypeError: for a module or loss that it does not know, or a model that is not a chain.
        ValueError: for a reduction or class weights that it does not support.
    """
    chain, outputs = _run(model, inputs)
    value, delta, curvature = _loss_derivatives(outputs, targets, loss)
    for module, z, a in reversed(chain):
        if isinstance(module, nn.Linear):
            _add(module.weight, delta.T @ z, curvature.T @ z.square())
            if module.bias is not None:
                _add(module.bias, delta.sum(0), curvature.sum(0))
            delta = delta @ module.weight
            curvature = curvature @ module.weight.square()
        else:
            slope, bend = DERIVATIVES[type(module)](module, z, a)
            curvature = slope.square() * curvature + bend * delta
            delta = delta * slope
    return value


def _run(model: nn.Module, inputs: Tensor) -> tuple[list[tuple[nn.Module, Tensor, Tensor]], Tensor]:
    """Every linear layer and activation with its input and output, in order, and the output."""
    calls: list[tuple[nn.Module, Tensor, Tensor]] = []
    pending: list[Tensor] = []

    def record(module: nn.Module, args: tuple[Tensor, ...], output: Tensor) -> None:
        if not isinstance(module, nn.Linear) and type(module) not in DERIVATIVES:
            known = ", ".join(["Linear", *(cls.__name__ for cls in DERIVATIVES)])
            raise TypeError(f"hesscale does not know the module {module}; it knows {known}.")
        calls.append((module, pending.pop(), output))

    def remember(module: nn.Module, args: tuple[Tensor, ...]) -> None:
        if args[0] is not (calls[-1][2] if calls else inputs):
            raise TypeError(
                "hesscale needs a model that is a chain of modules, each called on what the last "
                f"one returned; {module} was called on something else (a function such as F.relu "
                "between modules must be a module)."
            )
        overwritten = getattr(module, "inplace", False)
        pending.append(args[0].clone() if overwritten else args[0])

    leaves = [module for module in model.modules() if not list(module.children())]
    handles = [leaf.register_forward_pre_hook(remember) for leaf in leaves]
    handles += [leaf.register_forward_hook(record) for leaf in leaves]
    try:
        outputs = model(inputs)
    finally:
        for handle in handles:
            handle.remove()
    if not calls or outputs is not calls[-1][2]:
        raise TypeError(
            f"hesscale needs a model that returns what its last module returned: {model}"
        )
    return calls, outputs


def _loss_derivatives(
    outputs: Tensor, targets: Tensor, loss: nn.Module
) -> tuple[Tensor, Tensor, Tensor]:
    """The loss, and its first and second derivatives in the outputs [batch, outputs]."""
    if not isinstance(loss, nn.MSELoss | nn.CrossEntropyLoss):
        raise TypeError(f"hesscale knows nn.MSELoss and nn.CrossEntropyLoss, not {loss!r}.")
    if loss.reduction not in ("mean", "sum"):
        raise ValueError(f"hesscale needs reduction 'mean' or 'sum', got {loss.reduction!r}.")
    with torch.enable_grad():
        logits = outputs.detach().requires_grad_()
        value = loss(logits, targets)
    (delta,) = torch.autograd.grad(value, logits)
    if isinstance(loss, nn.MSELoss):
        factor = 1 / outputs.numel() if loss.reduction == "mean" else 1.0
        return value.detach(), delta, torch.full_like(outputs, 2 * factor)
    if loss.weight is not None or (
        not targets.is_floating_point() and (targets == loss.ignore_index).any()
    ):
        raise ValueError("hesscale supports no class weights and no ignored targets.")
    probabilities = F.softmax(outputs, dim=-1)
    factor = 1 / len(outputs) if loss.reduction == "mean" else 1.0
    return value.detach(), delta, factor * (probabilities - probabilities.square())


def _add(p: Tensor, gradient: Tensor, curvature: Tensor) -> None:
    if p.requires_grad:
        p.grad = gradient if p.grad is None else p.grad + gradient
        p.curvature = curvature  # type: ignore[attr-defined]
