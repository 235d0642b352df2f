"""Outlier exposure: training on images of no class, whose prediction is to be uniform over the classes.

Source: Hendrycks, Mazeika and Dietterich, "Deep Anomaly Detection with Outlier Exposure", ICLR 2019, for classifiers:
    loss = mean L(f(x), y) + eta * mean_x~ (1/C) sum_c -log p_c(x~)
The second term is the cross entropy of the uniform distribution and is log C at the least, where p is uniform.
Limits: eta = 0 is plain training. It is what ODNL is on average over its random labels.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from jaxtyping import Float, Int
from torch import Tensor

from weathered.procedures.auxiliary import AuxiliaryProcedure

if TYPE_CHECKING:
    from weathered.core.run import Run


def uniform_cross_entropy(logits: Float[Tensor, "B C"]) -> Float[Tensor, "B"]:
    """-mean_c log softmax(logits)_c per row, in nats, at least log C."""
    return logits.logsumexp(1) - logits.mean(1)


class OutlierExposure(AuxiliaryProcedure):
    """Train on the data and ask for uniform predictions on auxiliary images `ood`.

    eta >= 0: weight of the auxiliary mean; 0.5 in the paper for images. aux_batch >= 1: auxiliary images per step,
    twice the batch in the paper. separate: pass them through the network by themselves.
    The auxiliary images must hold none of the classes, and should be as varied as what is to be recognised later.
    """

    def __init__(self, eta: float = 0.5, aux_batch: int = 256, separate: bool = False):
        super().__init__(eta, aux_batch, separate)

    def draw_labels(self, run: Run, size: int) -> Int[Tensor, "size"]:
        """None are drawn; what is returned is not read."""
        return torch.zeros(size, dtype=torch.int64)

    def auxiliary_loss(self, run: Run, logits: Float[Tensor, "B C"], labels: Int[Tensor, "size"]) -> Float[Tensor, ""]:
        return uniform_cross_entropy(logits).mean()
