"""Class-balanced sampling: rows are drawn so that rare classes are seen as often as frequent ones, or nearer to it.

Source: Kang et al., "Decoupling Representation and Classifier for Long-Tailed Recognition", ICLR 2020, eq. 1.
P(class k) ~ n_k^power; a row of class k has the probability P(k) / n_k.
Limits: power = 0 draws all classes alike, 1/2 is square-root sampling, 1 draws rows alike.
"""

import torch
from jaxtyping import Float, Int
from torch import Tensor

from weathered.core.facts import Traits
from weathered.core.roles import Part
from weathered.weighting.base import check_progress, power_weights


class ClassBalancedSampling(Part):
    """Draw classes in proportion to n^power, with replacement.

    power in [0, 1]: 0 all classes alike, 0.5 by the square root of their sizes. start in [0, 1]: progress of training
    before which rows are drawn alike. A row of a rare class comes many times in an epoch.
    Raises ValueError outside these ranges. Source: Kang et al., ICLR 2020.
    """

    traits = Traits(evens_classes=True)

    def __init__(self, power: float = 0.0, start: float = 0.0):
        power_weights(torch.zeros(1, dtype=torch.int64), power)
        if not 0 <= start <= 1:
            raise ValueError(f"start must be in [0, 1], a share of training, got {start}")
        self.power, self.start = power, start

    def weights(self, labels: Int[Tensor, "N"], progress: float) -> Float[Tensor, "N"]:
        check_progress(progress)
        return power_weights(labels, self.power if progress >= self.start else 1.0)
