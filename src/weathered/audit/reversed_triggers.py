"""Reverse-engineered triggers (Neural Cleanse): for each class the smallest patch that turns all images to it.

Source: Wang et al., "Neural Cleanse: Identifying and Mitigating Backdoor Attacks in Neural Networks", S&P 2019. For
class c a mask m in [0, 1] (H, W) and a pattern p in [0, 1] (C, H, W) minimise
    mean CE(f((1 - m) x + m p), c) + lambda |m|_1
by Adam, lambda rising while at least 99 % of the images are turned and falling while fewer are. The class of a backdoor
needs a far smaller mask than others: its anomaly index is (median - |m|_1) / (1.4826 MAD) over classes.
Limits: a class that all images are taken for already needs no mask; where all classes need the same, no index is large.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional as F

RATE, BETA1, BETA2 = 0.1, 0.5, 0.9
"""Of Adam, as the authors have it."""

TURNED = 0.99
"""Share of the images that a mask must turn."""

WEIGHT, FACTOR, PATIENCE = 1e-3, 1.5, 5
"""lambda at first, what multiplies it, and rounds in a row before it does; it is divided by 1.5 times its root."""

STEPS_OF_ROUND = 10

CONSISTENCY = 1.4826
"""By which the median absolute deviation estimates the deviation of normal draws."""


class Reversed(NamedTuple):
    """The patch of each of K classes. mask (K, H, W), pattern (K, C, H, W), size (K,): the mask's sum, infinity where
    none turned enough images; turned (K,): share of images that the patch turned in its round."""

    mask: Tensor
    pattern: Tensor
    size: Tensor
    turned: Tensor


def reverse_triggers(
    predict: Callable[[Tensor], Tensor],
    images: Float[Tensor, "N C H W"],
    classes: Sequence[int],
    rng: torch.Generator,
    rounds: int = 100,
    batch: int = 64,
    watch: Callable[[int, int], None] | None = None,
) -> Reversed:
    """The smallest patch found for each of the given classes, all at the same time.

    predict: images in [0, 1] to logits, differentiable. images: clean ones, N >= 1. rounds >= 1: of 10 steps on `batch`
    images each, drawn from rng, which lies on the CPU. watch: told how many of how many rounds are done.
    """
    if not len(images) or rounds < 1 or batch < 1:
        raise ValueError(f"expected images, rounds and a batch, got {len(images)}, {rounds} and {batch}")
    k, (channels, height, width), device = len(classes), images.shape[1:], images.device
    batch = min(batch, len(images))
    target = torch.tensor(list(classes), device=device)
    # tanh keeps both in [0, 1]
    raw = torch.randn(k, 1 + channels, height, width, generator=rng).to(device).mul(0.1).requires_grad_()
    optimizer = torch.optim.Adam([raw], RATE, betas=(BETA1, BETA2))
    weight = torch.full((k,), WEIGHT, device=device)
    above, below = torch.zeros(k, device=device), torch.zeros(k, device=device)
    best = Reversed(
        torch.ones(k, height, width, device=device),
        torch.zeros(k, channels, height, width, device=device),
        torch.full((k,), math.inf, device=device),
        torch.zeros(k, device=device),
    )
    for number in range(rounds):
        turned = torch.zeros(k, device=device)
        for _ in range(STEPS_OF_ROUND):
            x = images[torch.randint(len(images), (batch,), generator=rng).to(device)]
            both = raw.tanh() / 2 + 0.5
            mask, pattern = both[:, :1], both[:, 1:]
            stamped = (1 - mask)[:, None] * x + (mask * pattern)[:, None]
            logits = predict(stamped.flatten(0, 1))
            losses = F.cross_entropy(logits, target.repeat_interleave(batch), reduction="none").view(k, batch).mean(1)
            (raw.grad,) = torch.autograd.grad((losses + weight * mask.sum((1, 2, 3))).sum(), raw)
            turned += (logits.detach().argmax(1).view(k, batch) == target[:, None]).float().mean(1) / STEPS_OF_ROUND
            optimizer.step()
        with torch.no_grad():
            best = _better(best, raw.tanh() / 2 + 0.5, turned)
            enough = turned >= TURNED - 1e-6
            above, below = torch.where(enough, above + 1, 0), torch.where(enough, 0, below + 1)
            weight = torch.where(above >= PATIENCE, weight * FACTOR, weight)
            weight = torch.where(below >= PATIENCE, weight / FACTOR**1.5, weight)
            above, below = above * (above < PATIENCE), below * (below < PATIENCE)
        if watch is not None:
            watch(number + 1, rounds)
    return Reversed(*(tensor.cpu() for tensor in best))


def _better(best: Reversed, both: Tensor, turned: Tensor) -> Reversed:
    """The patches of the last round where they turned enough and are smaller, those before elsewhere."""
    size = both[:, 0].sum((1, 2))
    wins = (turned >= TURNED - 1e-6) & (size < best.size)
    # a search that never turns enough still shows how far it came
    shown = torch.where(best.size.isinf(), torch.maximum(best.turned, turned), best.turned)
    return Reversed(
        torch.where(wins[:, None, None], both[:, 0], best.mask),
        torch.where(wins[:, None, None, None], both[:, 1:], best.pattern),
        torch.where(wins, size, best.size),
        torch.where(wins, turned, shown),
    )


def anomaly_indices(sizes: Float[Tensor, "K"]) -> Float[Tensor, "K"]:
    """How many robust deviations each mask is smaller than the median; below 0 where it is larger.

    sizes (K,) > 0, infinity where no mask was found, which counts as larger than all. Raises ValueError for no sizes.
    """
    if not len(sizes):
        raise ValueError("an anomaly index needs the size of at least one mask")
    finite = sizes[sizes.isfinite()]
    if not len(finite):
        return torch.zeros_like(sizes, dtype=torch.float64)
    largest = finite.max().double()
    known = sizes.double().clamp_max(largest)
    middle = known.quantile(0.5)
    spread = CONSISTENCY * (known - middle).abs().quantile(0.5)
    return (middle - known) / spread.clamp_min(1e-9 * largest.clamp_min(1e-9))
