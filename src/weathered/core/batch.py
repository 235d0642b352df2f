"""Batch: what a transform receives and returns."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from dataclasses import replace as dataclass_replace
from typing import Any

import torch
from jaxtyping import Int
from torch import Tensor

from weathered.core.target import Target, as_target


@dataclass(frozen=True)
class Batch:
    """Inputs, their target, and their row numbers in the data set. Never changed in place.

    x: any tensor (images are (B, C, H, W) in [0, 1]); target: labels as a `Target`;
    index (B,) int64: positions in the training set, stable over epochs; extra: named columns, (B, ...) each.
    """

    x: Tensor
    target: Target
    index: Int[Tensor, "B"]
    extra: Mapping[str, Any] = field(default_factory=dict)

    @classmethod
    def of(cls, x: Tensor, target: Target | Tensor) -> "Batch":
        """A batch from inputs and labels (B,) or soft labels (B, C), for use outside a run."""
        target = as_target(target)
        if len(x) != len(target):
            raise ValueError(f"got {len(x)} inputs but {len(target)} labels")
        return cls(x, target, torch.arange(len(x), device=x.device))

    def __len__(self) -> int:
        return len(self.x)

    def replace(self, **changes: Any) -> "Batch":
        """A copy with some fields changed."""
        return dataclass_replace(self, **changes)

    def to(self, device: torch.device | str) -> "Batch":
        extra = {k: v.to(device) if isinstance(v, Tensor) else v for k, v in self.extra.items()}
        return Batch(self.x.to(device), self.target.to(device), self.index.to(device), extra)
