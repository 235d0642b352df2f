"""Unrolled learning (DD): images and step sizes such that a few steps on them lead to a network that fits real images.

Source: Wang, Zhu, Torralba and Efros, "Dataset Distillation", 2018. With batches d_1 .. d_S of synthetic images, E
rounds over them and step sizes a_t = softplus(raw_t):
    w_t = w_(t-1) - a_t gradient of CE(net_w(d_((t - 1) mod S + 1))) at w_(t-1),  t = 1 .. S E
The images and raw are learned by the gradient of CE(net_(w_T)) on real images, back through all steps.
Limits: step sizes of 0 leave w_0. Memory holds the activations of all T steps.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn import functional as F


def raw_step(size: float) -> float:
    """The number whose softplus is `size`: log(exp(size) - 1). size > 0 and finite, else ValueError."""
    if not 0 < size < math.inf:
        raise ValueError(f"a step size must be in (0, infinity), got {size}")
    # exp(size) overflows for large sizes
    return size + math.log(-math.expm1(-size))


class StepSizes(nn.Module):
    """T learned step sizes > 0, all `size` at first. Calling it gives them, (T,)."""

    def __init__(self, count: int, size: float):
        super().__init__()
        self.raw = nn.Parameter(torch.full((count,), raw_step(size)))

    def forward(self) -> Float[Tensor, "T"]:
        return F.softplus(self.raw)


def unroll(
    network: nn.Module,
    start: Mapping[str, Tensor],
    batches: Float[Tensor, "S N ..."],
    labels: Int[Tensor, "N"],
    steps: Float[Tensor, "T"],
    create_graph: bool = True,
) -> dict[str, Tensor]:
    """The parameters by name after T steps of gradient descent from `start`, over the batches in turn.

    batches (S, N, ...): S batches of N images with labels (N,). steps (T,): their sizes. create_graph: let gradient
    flow from the result to batches and steps; without, it is detached. The network is called in the mode it is in and
    its own parameters are not touched.
    """
    buffers = dict(network.named_buffers())
    weights = {name: value.detach().requires_grad_() for name, value in start.items()}
    for number, size in enumerate(steps if create_graph else steps.detach()):
        batch = batches[number % len(batches)]
        logits = functional_call(network, (weights, buffers), (batch,))
        loss = F.cross_entropy(logits, labels)
        slopes = torch.autograd.grad(loss, list(weights.values()), create_graph=create_graph)
        weights = {name: value - size * slope for (name, value), slope in zip(weights.items(), slopes, strict=True)}
        if not create_graph:
            weights = {name: value.detach().requires_grad_() for name, value in weights.items()}
    return weights if create_graph else {name: value.detach() for name, value in weights.items()}
