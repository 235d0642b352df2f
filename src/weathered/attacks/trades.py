"""The attack of TRADES: the input nearby on which a network says something else, whatever the label.

Source: Zhang et al., "Theoretically Principled Trade-off between Robustness and Accuracy", ICML 2019.
    x'_0 = x + 0.001 N(0, 1)
    x'_t = clip(x'_(t-1) + step_size * sign grad_x' KL(softmax f(x) || softmax f(x')))    f(x) is fixed
clip keeps each value within epsilon of x and in [0, 1]. At x itself the divergence is 0 and so is its gradient, hence
the noise. Limits: epsilon = 0 gives x.
"""

from __future__ import annotations

from functools import partial

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

from weathered.attacks.base import Ball, ascend, check_unit_range
from weathered.core.predict import eval_mode

SPREAD = 0.001
"""Standard deviation of the noise that the attack starts with, in units of inputs in [0, 1]."""


def divergence(logits: Float[Tensor, "B C"], other: Float[Tensor, "B C"]) -> Float[Tensor, "B"]:
    """KL(softmax(logits) || softmax(other)) in nats per row, >= 0; gradients reach both."""
    log_p, log_q = logits.log_softmax(1), other.log_softmax(1)
    return F.kl_div(log_q, log_p, reduction="none", log_target=True).sum(1)


def climb_divergence(
    model: nn.Module, x: Tensor, start: Tensor, epsilon: float = 0.031, step_size: float = 0.007, steps: int = 10
) -> Tensor:
    """`steps` sign steps from `start` up KL(f(x) || f(x')), clipped after each to x +- epsilon and [0, 1].

    model: inputs to logits; it is asked in evaluation mode, then put back into the mode it was in, also on error, and
    the gradients of its parameters are left alone. x (B, ...) in [0, 1]. start: of the same shape.
    epsilon, step_size >= 0, in units of inputs; steps >= 1.
    Returns x' of the shape of x, without gradient. Raises ValueError for arguments out of range or shapes that differ.
    """
    check_attack(epsilon, step_size, steps)
    if start.shape != x.shape:
        raise ValueError(f"start must have the shape of x, {tuple(x.shape)}, got {tuple(start.shape)}")
    check_unit_range(x, "the attack")
    with eval_mode(model):
        with torch.no_grad():
            fixed = model(x)
        return ascend(model, Ball.around(x, epsilon), start, partial(divergence, fixed), step_size, steps)


def trades_attack(
    model: nn.Module,
    x: Tensor,
    generator: torch.Generator,
    epsilon: float = 0.031,
    step_size: float = 0.007,
    steps: int = 10,
) -> Tensor:
    """`climb_divergence` from x plus noise of deviation 0.001, drawn from `generator` on the generator's device.

    Labels are not asked for. Arguments, result and errors as there. Source: Zhang et al., ICML 2019.
    """
    noise = torch.randn(x.shape, generator=generator, device=generator.device).to(x)
    return climb_divergence(model, x, x.detach() + SPREAD * noise, epsilon, step_size, steps)


def check_attack(epsilon: float, step_size: float, steps: int) -> None:
    """Raise ValueError unless epsilon and step_size lie in [0, 1] and steps is at least 1."""
    for name, value in (("epsilon", epsilon), ("step_size", step_size)):
        if not 0 <= value <= 1:
            raise ValueError(f"{name} must be in [0, 1], the range of inputs, got {value}")
    if steps < 1:
        raise ValueError(f"steps must be at least 1, got {steps}")
