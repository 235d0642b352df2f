"""Linf and Lp distances to weight vectors, forward and backward, against torch.cdist.

Values and gradients are compared first; of random inputs no two coordinates are equally far, where torch.cdist gives
the gradient to both and ours to one.
"""

import math
from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor

from timing import Row, side_by_side
from weathered.nn.linf_distance import lp_distance

SHAPES = ((64, 784, 512), (32, 1024, 1024))
EXPONENTS = (math.inf, 8.0)


def rows() -> list[Row]:
    found = []
    for p in EXPONENTS:
        for batch, inputs, units in SHAPES:
            rng = torch.Generator().manual_seed(0)
            x = torch.randn(batch, inputs, generator=rng).requires_grad_()
            weight = torch.randn(units, inputs, generator=rng).requires_grad_()
            upstream = torch.randn(batch, units, generator=rng)
            ours = both_ways(lambda a, b, p=p: lp_distance(a, b, p), x, weight, upstream)
            theirs = both_ways(lambda a, b, p=p: torch.cdist(a, b, p), x, weight, upstream)
            for mine, peer in zip(ours(), theirs(), strict=True):
                torch.testing.assert_close(mine, peer, rtol=1e-4, atol=1e-4)
            what = f"distances, p = {p:g}, {batch}x{inputs} to {units}"
            found.append(side_by_side(f"{what}, both ways", "torch.cdist", ours, theirs, 1.0, 15))
            if p == math.inf:
                fixed = x.detach(), weight.detach()
                forward = partial(lp_distance, *fixed), partial(torch.cdist, *fixed, p=math.inf)
                found.append(side_by_side(f"{what}, forward", "torch.cdist", *forward, 1.0, 15))
    return found


def both_ways(
    distance: Callable[[Tensor, Tensor], Tensor], x: Tensor, weight: Tensor, upstream: Tensor
) -> Callable[[], tuple[Tensor, ...]]:
    def step() -> tuple[Tensor, ...]:
        value = distance(x, weight)
        return value.detach(), *torch.autograd.grad(value, (x, weight), upstream)

    return step
