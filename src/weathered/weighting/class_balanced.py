"""Class-balanced weights: each class weighs one over its effective number of samples, from the first step on.

Source: Cui et al., "Class-Balanced Loss Based on Effective Number of Samples", CVPR 2019, eq. 2.
w_k ~ (1 - beta) / (1 - beta^n_k), or w_k ~ 1 / n_k. Limits: beta = 0 or equal counts give weights of 1.
Weights are divided by their mean over the batch, as torch's class-weighted mean does.
"""

from jaxtyping import Float, Int
from torch import Tensor

from weathered.core.facts import Traits
from weathered.core.roles import Part
from weathered.core.target import Target, as_target
from weathered.weighting.base import ClassCounts, Rule, class_weights, mixture_weights


class ClassBalanced(Part):
    """Weights by class with mean 1 over the batch.

    class_counts (C,): training samples of each class, all positive. beta in [0, 1) and rule: see `class_weights`.
    On features that are still being learnt, weights from the start can do harm; `drw` begins late.
    """

    traits = Traits(
        needs={"class_counts": "weights come from the counts"}, batchwise=True, per_pixel=True, evens_classes=True
    )

    def __init__(self, class_counts: ClassCounts, beta: float = 0.9999, rule: Rule = "effective"):
        self.class_weights = class_weights(class_counts, beta, rule)

    def __call__(
        self, losses: Float[Tensor, "B"], target: Target | Int[Tensor, "B"], progress: float
    ) -> Float[Tensor, "B"]:
        weights = mixture_weights(self.class_weights, as_target(target), losses.detach())
        return weights / weights.mean()
