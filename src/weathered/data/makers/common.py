"""What all label noise shares: exact picks, the truth kept, a note."""

import torch
from jaxtyping import Bool, Int
from torch import Tensor

from weathered.data.dataset import Dataset


def check_rate(rate: float) -> None:
    """Raise ValueError unless 0 <= rate <= 1."""
    if not 0 <= rate <= 1:
        raise ValueError(f"rate must be in [0, 1], got {rate}")


def pick_exactly(size: int, rate: float, rng: torch.Generator) -> Bool[Tensor, "N"]:
    """A mask with int(rate * size) entries True, every set of that size equally likely."""
    # the small term keeps 0.3 * 10 from becoming 2
    count = int(rate * size + 1e-9)
    mask = torch.zeros(size, dtype=torch.bool)
    mask[torch.randperm(size, generator=rng)[:count]] = True
    return mask


def truth_of(dataset: Dataset) -> Int[Tensor, "N"]:
    """The true labels as far as they are known: clean_labels where given, else the labels; always a copy."""
    return (dataset.labels if dataset.clean_labels is None else dataset.clean_labels).clone()


def with_noisy_labels(dataset: Dataset, labels: Int[Tensor, "N"], what: str) -> Dataset:
    """The data set with other labels, its truth kept, and a note of how many labels changed and how many are wrong."""
    truth = truth_of(dataset)
    changed, wrong = int((labels != dataset.labels).sum()), int((labels != truth).sum())
    note = f"{what}: {changed} of {len(labels)} labels were changed, {wrong} now differ from the truth."
    return dataset.replace(labels=labels, clean_labels=truth, notes=(*dataset.notes, note))
