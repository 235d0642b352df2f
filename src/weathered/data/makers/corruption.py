"""Corrupted images: one corruption at one severity applied to every image; labels stay.

Limits: no kind is the identity at severity 1, but saturate in grey images; use no maker for that. Source: Hendrycks
and Dietterich, ICLR 2019; see `weathered.data.corruptions` for what differs from the public corrupted sets.
"""

import torch

from weathered.core.errors import DataError
from weathered.data.corruptions import check_kind, corrupt
from weathered.data.dataset import Dataset, MemoryInputs

BLOCK = 256


class Corruption:
    """Corrupt every image by `kind` at `severity` 1 to 5; the result is held in memory as uint8.

    Raises SpecError for an unknown kind, ValueError for a wrong severity, DataError for data that are no images.
    """

    def __init__(self, kind: str, severity: int):
        check_kind(kind)
        if severity not in (1, 2, 3, 4, 5):
            raise ValueError(f"severity must be 1, 2, 3, 4 or 5, got {severity}")
        self.kind, self.severity = kind, severity

    def __call__(self, dataset: Dataset, rng: torch.Generator) -> Dataset:
        if not dataset.is_image:
            raise DataError(f"{dataset.name}: corruptions need images, got inputs of shape {dataset.inputs.shape}.")
        images = torch.empty(len(dataset), *dataset.inputs.shape, dtype=torch.uint8)
        for rows in torch.arange(len(dataset)).split(BLOCK):
            out = corrupt(dataset.floats(rows), self.kind, self.severity, rng)
            images[rows] = (out * 255).round().to(torch.uint8)
        note = f"All images were corrupted by {self.kind} at severity {self.severity}."
        return dataset.replace(inputs=MemoryInputs(images), notes=(*dataset.notes, note))
