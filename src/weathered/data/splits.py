"""Random subsets and stratified splits, each from a generator of its own name."""

import torch
from jaxtyping import Int
from torch import Tensor

from weathered.core.errors import DataError
from weathered.core.rng import generator
from weathered.data.dataset import Dataset


def random_subset(size: int, limit: int | None, seed: int) -> Int[Tensor, "M"]:
    """At most `limit` of `size` positions, uniform without regard to classes, ascending.

    All positions when limit is None or not smaller than size. Raises DataError if limit < 1.
    """
    if limit is not None and limit < 1:
        raise DataError(f"the limit must be at least 1, got {limit}.")
    if limit is None or limit >= size:
        return torch.arange(size)
    return torch.randperm(size, generator=generator(seed, "limit"))[:limit].sort().values


def stratified_split(
    labels: Int[Tensor, "N"], fraction: float, rng: torch.Generator
) -> tuple[Int[Tensor, "M"], Int[Tensor, "K"]]:
    """Positions kept and positions held out, ascending; of a class with n samples round(fraction * n) are held out.

    labels (N,) >= 0. fraction in (0, 1). A class with two or more samples has at least one on each side.
    Raises ValueError if fraction is out of range, DataError if a side would be empty.
    """
    if not 0 < fraction < 1:
        raise ValueError(f"the fraction held out must be in (0, 1), got {fraction}")
    shuffled = torch.randperm(len(labels), generator=rng)
    order = shuffled[labels[shuffled].argsort(stable=True)]
    counts = torch.bincount(labels)
    first = counts.cumsum(0) - counts
    grouped = labels[order]
    rank = torch.arange(len(labels)) - first[grouped]
    held = (fraction * counts.double()).round().long()
    held = torch.where(counts > 1, torch.minimum(held.clamp_min(1), (counts - 1).clamp_min(1)), held)
    out = rank < held[grouped]
    if not out.any() or out.all():
        raise DataError(f"{len(labels)} samples are too few to hold out a share of {fraction}.")
    return order[~out].sort().values, order[out].sort().values


def validation_split(dataset: Dataset, fraction: float, seed: int) -> tuple[Dataset, Dataset]:
    """(training part, validation part), stratified by label and drawn from (seed, "validation split").

    fraction in (0, 1): share of each class that is held out. Raises ValueError if it is out of range.
    """
    kept, held = stratified_split(dataset.labels, fraction, generator(seed, "validation split"))
    note = f"A validation set of {len(held)} rows was split off."
    return dataset.select(kept, note), dataset.select(held).replace(name=f"{dataset.name} (validation)")
