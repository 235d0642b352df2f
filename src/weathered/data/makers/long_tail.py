"""Long tail: thin the classes so that the most and the least frequent differ by a given ratio.

With K classes in their given order, rho = 1 / imbalance and n the size of the first class:
exp:  n_k = int(n rho^(k / (K - 1)));   step: n_k = n for k < K // 2, int(n rho) for the rest.
n is the largest number for which every class has enough rows; for balanced data it is the size of the classes.
Limits: imbalance 1 keeps balanced data as they are.
Source: Cao et al., NeurIPS 2019 (LDAM-DRW), after Cui et al., CVPR 2019.
"""

from typing import Literal

import torch
from jaxtyping import Int
from torch import Tensor

from weathered.core.errors import DataError
from weathered.data.dataset import Dataset


def long_tail_counts(available: Int[Tensor, "K"], imbalance: float, kind: Literal["exp", "step"]) -> Int[Tensor, "K"]:
    """How many rows of each class to keep, (K,) int64.

    available (K,): rows there are. imbalance >= 1: ratio of the largest to the smallest class.
    Raises ValueError if an argument is out of range.
    """
    _check(imbalance, kind)
    count = len(available)
    if count < 2:
        raise DataError(f"a long tail needs at least 2 classes, got {count}")
    position = torch.arange(count, dtype=torch.float64)
    exponent = position / (count - 1) if kind == "exp" else (position >= count // 2).double()
    share = (1 / imbalance) ** exponent

    def wanted(largest: int) -> Tensor:
        # the small term keeps 5000 / 50 from becoming 99
        return (largest * share + 1e-9).long()

    largest = int(((available + 1) / share).min())
    while (wanted(largest) > available).any():
        largest -= 1
    return wanted(largest)


def _check(imbalance: float, kind: str) -> None:
    if not 1 <= imbalance < float("inf"):
        raise ValueError(f"imbalance must be a finite number >= 1, got {imbalance}")
    if kind not in ("exp", "step"):
        raise ValueError(f"kind must be 'exp' or 'step', got '{kind}'")


class LongTail:
    """Thin the classes, in their given order, to an exponential or a step profile; rows keep their order.

    imbalance >= 1: size of the largest class over that of the smallest. Rows of a class are chosen at random, by
    the label they carry. Raises DataError if a class would be empty.
    """

    def __init__(self, imbalance: float, kind: Literal["exp", "step"] = "exp"):
        _check(imbalance, kind)
        self.imbalance = imbalance
        self.kind: Literal["exp", "step"] = kind

    def __call__(self, dataset: Dataset, rng: torch.Generator) -> Dataset:
        available = dataset.class_counts
        counts = long_tail_counts(available, self.imbalance, self.kind)
        if (counts < 1).any():
            empty = dataset.class_names[int((counts < 1).nonzero()[0])]
            raise DataError(
                f"{dataset.name}: an imbalance of {self.imbalance:g} leaves the class '{empty}' without a row, the "
                f"classes have {int(available.min())} to {int(available.max())}; use a smaller imbalance."
            )
        shuffled = torch.randperm(len(dataset), generator=rng)
        order = shuffled[dataset.labels[shuffled].argsort(stable=True)]
        first = available.cumsum(0) - available
        label = dataset.labels[order]
        keep = torch.arange(len(order)) - first[label] < counts[label]
        note = (
            f"Long tail ({self.kind}), imbalance {self.imbalance:g}: {int(counts.sum())} of {len(dataset)} rows were "
            f"kept, {int(counts.max())} in the largest class and {int(counts.min())} in the smallest."
        )
        return dataset.select(order[keep].sort().values, note)
