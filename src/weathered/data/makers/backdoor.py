"""BadNets: a patch on a share of the training images, which are given the label of one class.

int(rate N) rows, drawn from those of other classes, are stamped with a white square near the lower right corner and
labelled as the target; their true labels stay known. A network trained on them takes stamped images for the target and
others for what they are. For audits of your own pipeline, on data that you own. Limits: rate 0 changes nothing.
Source: Gu, Dolan-Gavitt and Garg, "BadNets: Identifying Vulnerabilities in the Machine Learning Model Supply Chain",
2017. They stamp a pixel or a small pattern in the same corner.
"""

import torch
from jaxtyping import Bool
from torch import Tensor

from weathered.core.errors import DataError
from weathered.data.dataset import Dataset, Inputs
from weathered.data.makers.common import check_rate, truth_of, with_noisy_labels
from weathered.data.patch import Patch, near_corner


class StampedInputs:
    """The images `base`, those that are marked stamped with a patch when fetched; nothing is copied.

    marked (N,): which of them.
    """

    def __init__(self, base: Inputs, patch: Patch, marked: Bool[Tensor, "N"]):
        self.base, self.patch, self.marked = base, patch, marked

    @property
    def shape(self) -> tuple[int, ...]:
        return self.base.shape

    @property
    def dtype(self) -> torch.dtype:
        return self.base.dtype

    @property
    def in_memory(self) -> bool:
        return self.base.in_memory

    def __len__(self) -> int:
        return len(self.marked)

    def fetch(self, index: Tensor) -> Tensor:
        images = self.base.fetch(index)
        return torch.where(self.marked[index][:, None, None, None], self.patch.stamp(images), images)

    def select(self, index: Tensor) -> "StampedInputs":
        return StampedInputs(self.base.select(index), self.patch, self.marked[index])


class Backdoor:
    """Stamp int(rate * N) images of other classes with a white square and label them as `target`; the truth is kept.

    rate in [0, 1]. target: a class by its number. size >= 1: of the square, in pixels, one pixel off the corner.
    Raises ValueError for arguments out of range, DataError for data that are no images, that have no such class or too
    few rows of others, or whose images are too small.
    """

    def __init__(self, rate: float, target: int = 0, size: int = 2):
        check_rate(rate)
        if target < 0:
            raise ValueError(f"target must be at least 0, got {target}")
        if size < 1:
            raise ValueError(f"size must be at least 1, got {size}")
        self.rate, self.target, self.size = rate, target, size

    def patch(self, shape: tuple[int, ...]) -> Patch:
        """The patch on images of shape (C, H, W)."""
        return near_corner(torch.ones(shape[0], self.size, self.size), shape)

    def __call__(self, dataset: Dataset, rng: torch.Generator) -> Dataset:
        if not dataset.is_image:
            raise DataError(f"{dataset.name}: a backdoor needs images, got inputs of shape {dataset.inputs.shape}.")
        if self.target >= dataset.num_classes:
            raise DataError(
                f"{dataset.name}: target must be in [0, {dataset.num_classes - 1}] for {dataset.num_classes} classes, "
                f"got {self.target}."
            )
        try:
            patch = self.patch(dataset.inputs.shape)
        except ValueError as error:
            raise DataError(f"{dataset.name}: {error}.") from None
        # the small term keeps 0.29 * 100 from becoming 28
        count = int(self.rate * len(dataset) + 1e-9)
        others = ((dataset.labels != self.target) & (truth_of(dataset) != self.target)).nonzero()[:, 0]
        if count > len(others):
            raise DataError(
                f"{dataset.name}: a backdoor of rate {self.rate:g} needs {count} rows of other classes than "
                f"'{dataset.class_names[self.target]}', there are {len(others)}; lower the rate."
            )
        marked = torch.zeros(len(dataset), dtype=torch.bool)
        marked[others[torch.randperm(len(others), generator=rng)[:count]]] = True
        labels = dataset.labels.masked_fill(marked, self.target)
        what = f"Backdoor to '{dataset.class_names[self.target]}', {self.size} x {self.size} pixels, rate {self.rate:g}"
        return with_noisy_labels(dataset.replace(inputs=StampedInputs(dataset.inputs, patch, marked)), labels, what)
