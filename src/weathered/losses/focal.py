"""Focal loss: cross entropy that counts less where the label is predicted well already.

Source: Lin et al., "Focal Loss for Dense Object Detection", ICCV 2017, eq. 4, without the weights alpha.
L = -(1 - p_y)^gamma log p_y for p = softmax(z).
Limits: gamma = 0 is cross entropy; the more gamma, the less an easy sample counts.
"""

import math

import torch
from jaxtyping import Float, Int
from torch import Tensor

from weathered.core.roles import Part
from weathered.losses.cross_entropy import cross_entropy


def focal(logits: Float[Tensor, "B C"], labels: Int[Tensor, "B"], gamma: float) -> Float[Tensor, "B"]:
    """(1 - p_y)^gamma times cross entropy per sample, in nats. logits (B, C), labels (B,) in [0, C), gamma >= 0."""
    losses = cross_entropy(logits, labels)
    # expm1 keeps 1 - p exact where p is near 1
    return losses * (-torch.expm1(-losses)) ** gamma if gamma else losses


class Focal(Part):
    """Cross entropy times (1 - p_y)^gamma; 2 is the authors' value. gamma 0, or at least 1, where it is smooth.

    Class weights come from the reweight slot. Mixtures are summed over their labels.
    Raises ValueError for another gamma. Source: Lin et al., ICCV 2017.
    """

    def __init__(self, gamma: float = 2.0):
        if not (gamma == 0 or gamma >= 1) or not math.isfinite(gamma):
            raise ValueError(f"gamma must be 0, or >= 1 and finite, got {gamma}; in between its slope has no bound")
        self.gamma = gamma

    def __call__(self, logits: Float[Tensor, "B C"], labels: Int[Tensor, "B"]) -> Float[Tensor, "B"]:
        return focal(logits, labels, self.gamma)
