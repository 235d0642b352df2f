"""Instance-dependent label noise: which wrong label a sample gets is decided by its own pixels.

Each row n has a flip rate q_n from a normal distribution around `rate` with standard deviation 0.1, cut to [0, 1].
int(rate N) rows are picked with probabilities in proportion to q_n. A picked row of class y gets class c != y with
probability softmax_c(x_n W_y), W_y (D, C) standard normal, one per class; x_n are its inputs, centred over the data
and divided by their root mean square. Limits: rate 0 changes nothing; without W it is symmetric noise.
Source: the generator of Xia et al., "Part-dependent Label Noise", NeurIPS 2020, appendix, which draws each row
independently; the exact number of picks and the centring are ours.
"""

import math

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from weathered.core.errors import DataError
from weathered.data.dataset import Dataset, Inputs, as_float
from weathered.data.makers.common import check_rate, with_noisy_labels

SPREAD = 0.1
CHUNK = 1024


def truncated_normal(size: int, mean: float, spread: float, rng: torch.Generator) -> Float[Tensor, "N"]:
    """Draws from a normal distribution conditioned on [0, 1], (N,) float64."""

    def below(value: float) -> float:
        return 0.5 * (1 + math.erf((value - mean) / (spread * math.sqrt(2))))

    share = torch.rand(size, generator=rng, dtype=torch.float64) * (below(1) - below(0)) + below(0)
    return (mean + spread * math.sqrt(2) * torch.erfinv(2 * share - 1)).clamp(0, 1)


def pick_in_proportion(weights: Float[Tensor, "N"], count: int, rng: torch.Generator) -> Bool[Tensor, "N"]:
    """A mask with exactly `count` entries True, row n with probability count * weights_n / sum, at most 1.

    weights (N,) >= 0, float64. Systematic sampling in random order: one uniform draw, then equal steps along the
    cumulative sum of the probabilities.
    """
    mask = torch.zeros(len(weights), dtype=torch.bool)
    if count == 0:
        return mask
    chance = weights.clamp_min(1e-12) * (count / weights.clamp_min(1e-12).sum())
    while (chance > 1).any():
        sure = chance >= 1
        rest = chance[~sure]
        chance = chance.masked_fill(sure, 1.0)
        chance[~sure] = rest * ((count - int(sure.sum())) / rest.sum())
    order = torch.randperm(len(weights), generator=rng)
    ends = chance[order].cumsum(0)
    ends = ends * (count / ends[-1])
    steps = torch.arange(count, dtype=torch.float64) + torch.rand(1, generator=rng, dtype=torch.float64)
    mask[order[torch.searchsorted(ends, steps).clamp_max(len(order) - 1)]] = True
    return mask


def instance_noise(
    inputs: Inputs, labels: Int[Tensor, "N"], num_classes: int, rate: float, rng: torch.Generator
) -> Int[Tensor, "N"]:
    """A copy of the labels in which int(rate * N) rows carry another class, chosen by their inputs.

    inputs: N images or rows. labels (N,) in [0, num_classes). rate in [0, 1]. Reads the inputs in chunks.
    Raises ValueError if rate is out of range, DataError for fewer than 2 classes.
    """
    check_rate(rate)
    if num_classes < 2:
        raise DataError(f"instance-dependent noise needs at least 2 classes, got {num_classes}")
    rates = truncated_normal(len(labels), rate, SPREAD, rng)
    picked = pick_in_proportion(rates, int(rate * len(labels) + 1e-9), rng).nonzero()[:, 0]
    centre, scale = _moments(inputs)
    out = labels.clone()
    for label in range(num_classes):
        # drawn for every class, so that the rows of one class do not depend on which others are present
        weight = torch.randn(math.prod(inputs.shape), num_classes, generator=rng)
        for rows in picked[labels[picked] == label].split(CHUNK):
            x = (as_float(inputs.fetch(rows)).flatten(1) - centre) / scale
            logits = (x @ weight).index_fill(1, torch.tensor([label]), -torch.inf)
            out[rows] = torch.multinomial(logits.softmax(1), 1, generator=rng)[:, 0]
    return out


def _moments(inputs: Inputs) -> tuple[Float[Tensor, "D"], float]:
    """Mean of each input dimension, and the root mean square distance of an entry from it."""
    size, width = len(inputs), math.prod(inputs.shape)
    total, squares = torch.zeros(width, dtype=torch.float64), 0.0
    for rows in torch.arange(size).split(CHUNK):
        x = as_float(inputs.fetch(rows)).flatten(1)
        total += x.sum(0, dtype=torch.float64)
        squares += float(x.square().sum(dtype=torch.float64))
    centre = total / size
    variance = max(squares / (size * width) - float(centre.square().mean()), 0.0)
    return centre.float(), max(math.sqrt(variance), 1e-6)


class InstanceNoise:
    """Give int(rate * N) rows another label that depends on their pixels or features; the truth is kept."""

    def __init__(self, rate: float):
        check_rate(rate)
        self.rate = rate

    def __call__(self, dataset: Dataset, rng: torch.Generator) -> Dataset:
        labels = instance_noise(dataset.inputs, dataset.labels, dataset.num_classes, self.rate, rng)
        return with_noisy_labels(dataset, labels, f"Instance-dependent label noise, rate {self.rate:g}")
