"""How an attack reads scores: the direction in which a loss grows, from ranks of samples, and what a step gained.

Both signs of each row of noise are asked, so that equal losses give no direction. Of the authors' code, where samples
that already fool the victim are meant to have the highest ranks, one flag stands for all samples, which changes
nothing; here each sample has its own. Source: Wei et al., TPAMI 2023, see `score_based`.
"""

from __future__ import annotations

import math

import torch
from jaxtyping import Bool, Float
from torch import Tensor

LABEL_SHARE = 0.1
"""Weight of leaving the label in the loss of a targeted attack; reaching the target has the rest."""


def ranks(values: Float[Tensor, "n"]) -> Float[Tensor, "n"]:
    """The place of each value in ascending order, from 0 to 1; equal values share the mean of their places."""
    _, group, sizes = torch.unique(values, return_inverse=True, return_counts=True)
    last = sizes.cumsum(0)
    return (last - (sizes + 1) / 2)[group].double() / (len(values) - 1)


def rank_gradient(
    noise: Float[Tensor, "m d"], losses: Float[Tensor, "n"], fooled: Bool[Tensor, "n"]
) -> Float[Tensor, "d"]:
    """sum_i u_i (rank_i - 1/2) over n = 2 m samples: `noise`, then its negative. fooled: share the highest ranks.

    An increasing change of the losses changes nothing; equal losses give 0. Divided by none, so that its size grows
    as sqrt(n / 12) where ranks are random. Raises ValueError unless there are two losses for each row of noise.
    """
    if losses.shape != (2 * len(noise),) or fooled.shape != losses.shape or not len(noise):
        raise ValueError(f"expected two losses for each of {len(noise)} rows of noise, got {tuple(losses.shape)}")
    weights = ranks(torch.where(fooled, torch.inf, losses)) - 0.5
    return over_pairs(noise, weights)


def over_pairs(noise: Float[Tensor, "m d"], weights: Float[Tensor, "n"]) -> Float[Tensor, "d"]:
    """The weighted sum of noise and its negative, which is 0 for equal weights."""
    ahead, behind = weights.chunk(2)
    return (ahead - behind).to(noise) @ noise


def targeted_losses(
    probabilities: Float[Tensor, "n C"], label: int, target: int, share: float = LABEL_SHARE
) -> Float[Tensor, "n"]:
    """share CE(label) - (1 - share) CE(target), in nats: larger where the target is likelier and the label less."""
    logarithms = probabilities.clamp_min(torch.finfo(probabilities.dtype).tiny).log()
    return (1 - share) * logarithms[:, target] - share * logarithms[:, label]


def exponential_margin(probabilities: Float[Tensor, "C"], label: int) -> float:
    """exp(largest other probability) - exp(that of the label)."""
    others = probabilities.clone()
    others[label] = -torch.inf
    return math.exp(float(others.max())) - math.exp(float(probabilities[label]))


def shared_reward(
    before: Float[Tensor, "C"], after: Float[Tensor, "C"], label: int, target: int | None = None
) -> float:
    """How much a step gained: > 0 for a gain, 0 for none.

    Untargeted (E' - E) / (2 |E|), where E is the `exponential_margin` before the step and E' after it; targeted
    exp(d' - d) - 1, where d is the probability of the target minus that of the label.
    """
    if target is None:
        old, new = (exponential_margin(p, label) for p in (before, after))
        return (new - old) / (2 * max(abs(old), 1e-12))
    old, new = (float(p[target] - p[label]) for p in (before, after))
    return math.expm1(new - old)
