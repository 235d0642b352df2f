"""Data preparation that claims share."""

import torch

from weathered.core.rng import generator
from weathered.data.dataset import Dataset
from weathered.data.sources.load import load


def split_digits(slug: str, seed: int, train: int) -> tuple[Dataset, Dataset]:
    """scikit-learn's 1,797 digits, 1x8x8, split at random into `train` rows and the rest; drawn from (seed, slug)."""
    digits = load("digits")
    rows = torch.randperm(len(digits), generator=generator(seed, "claim", slug))
    return digits.select(rows[:train]), digits.select(rows[train:])


def accuracy(logits: torch.Tensor, labels: torch.Tensor) -> float:
    """Share of rows whose largest logit is the label's, in [0, 1]. logits (N, C), labels (N,)."""
    return float((logits.argmax(1) == labels).double().mean())
