"""Logit adjustment: add the log of the class prior to the logits while training, so that what is learnt is free of it.

Source: Menon et al., "Long-tail learning via logit adjustment", ICLR 2021, eq. 10; with tau = 1 the balanced softmax of
Ren et al., "Balanced Meta-Softmax for Long-Tailed Visual Recognition", NeurIPS 2020.
L = -log softmax(z + tau log pi)[y] for pi = n / sum n; prediction takes z alone.
Limits: tau = 0 or equal counts are cross entropy.
"""

import math
from dataclasses import replace

import torch
from jaxtyping import Float
from torch import Tensor

from weathered.core.roles import Loss
from weathered.losses.base import WrappingLoss, along_classes
from weathered.weighting.base import ClassCounts, check_class_counts


def log_prior(class_counts: ClassCounts) -> Float[Tensor, "C"]:
    """log(n / sum n), (C,) float64. Raises ValueError for a class without samples."""
    counts = check_class_counts(class_counts)
    return (counts / counts.sum()).log()


class ShiftedLoss(WrappingLoss):
    """A loss on logits to which an offset for each class is added in training. `offsets` (C,) float64."""

    def __init__(self, offsets: Float[Tensor, "C"], base: Loss | None = None):
        super().__init__(base)
        self.traits = replace(self.traits, needs={**self.traits.needs, "class_counts": "offsets come from the counts"})
        self.offsets = offsets

    def transform_logits(self, logits: Float[Tensor, "B C"]) -> Float[Tensor, "B C"]:
        # half precision would round the logarithms
        wide = logits.to(torch.promote_types(logits.dtype, torch.float32))
        return wide + along_classes(self.offsets, wide)


class LogitAdjustment(ShiftedLoss):
    """Cross entropy, or `base`, on z + tau log(n / sum n).

    class_counts (C,): training samples of each class, all positive. tau >= 0 and finite; 1 balances the classes.
    base: any loss of logits. Predictions and confidences are those of the raw logits.
    Source: Menon et al., ICLR 2021.
    """

    def __init__(self, class_counts: ClassCounts, tau: float = 1.0, base: Loss | None = None):
        if not (tau >= 0 and math.isfinite(tau)):
            raise ValueError(f"tau must be >= 0 and finite, got {tau}; below 0 it would favour frequent classes")
        super().__init__(tau * log_prior(class_counts), base)
        self.tau = tau
