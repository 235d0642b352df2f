"""Symmetric label noise: wrong labels, uniform over the other classes.

P(label = c) = 1 - rate for the given class and rate / (C - 1) for each other one. Some authors draw from all C
classes, so that their rate r corresponds to r (C - 1) / C here. Limits: rate 0 changes nothing; rate (C - 1) / C
leaves labels without information; with two classes every picked label is flipped.
Source: van Rooyen, Menon and Williamson, NeurIPS 2015; textbook since.
"""

import torch
from jaxtyping import Int
from torch import Tensor

from weathered.core.errors import DataError
from weathered.data.dataset import Dataset
from weathered.data.makers.common import check_rate, pick_exactly, with_noisy_labels


def symmetric_noise(labels: Int[Tensor, "N"], num_classes: int, rate: float, rng: torch.Generator) -> Int[Tensor, "N"]:
    """A copy of the labels in which int(rate * N) carry another class, uniformly chosen.

    labels (N,) in [0, num_classes). rate in [0, 1]. Raises ValueError if rate or num_classes is out of range.
    """
    check_rate(rate)
    if num_classes < 2:
        raise DataError(f"symmetric noise needs at least 2 classes, got {num_classes}")
    picked = pick_exactly(len(labels), rate, rng)
    # a shift of 1 .. C-1 reaches every other class once
    shift = torch.randint(1, num_classes, (len(labels),), generator=rng)
    return torch.where(picked, (labels + shift) % num_classes, labels)


class SymmetricNoise:
    """Give int(rate * N) rows, chosen at random, another label, uniform over the other classes; truth is kept."""

    def __init__(self, rate: float):
        check_rate(rate)
        self.rate = rate

    def __call__(self, dataset: Dataset, rng: torch.Generator) -> Dataset:
        labels = symmetric_noise(dataset.labels, dataset.num_classes, self.rate, rng)
        return with_noisy_labels(dataset, labels, f"Symmetric label noise, rate {self.rate:g}")
