"""DRW: class weights that switch on late, when the representation has been learned without them.

Source: Cao et al., "Learning Imbalanced Datasets with Label-Distribution-Aware Margin Loss", NeurIPS 2019.
w_k ~ (1 - beta) / (1 - beta^n_k), as in the authors' released code, or w_k ~ 1 / n_k, as in the paper.
Limits: before `start` every weight is 1; beta = 0 or equal counts give weights of 1 throughout.

One convention of averages: weights are divided by their mean over the batch, so that the mean of weights * losses is
sum(w_y l) / sum(w_y), the weighted mean of torch's class-weighted cross entropy. A batch of a single class therefore
has weights of 1. A mixture weighs sum_k t_k w[y_k] and this multiplies its whole loss; it is neither the blend of
two weighted means, each divided by its own sum, nor torch's soft-target form, which divides by the batch size.
"""

import torch
from jaxtyping import Float, Int
from torch import Tensor

from weathered.core.facts import Traits
from weathered.core.roles import Part
from weathered.core.target import Target, as_target
from weathered.weighting.base import ClassCounts, Rule, check_progress, class_weights, mixture_weights


class DRW(Part):
    """Weights of 1 until `start`, then weights by class with mean 1 over the batch.

    class_counts (C,): training samples of each class, all positive. start in [0, 1]: progress of training at which
    the weights switch on, meant to be that of the first fall of the learning rate; 1 is never, since progress stays
    below 1. beta in [0, 1) and rule: see `class_weights`.
    """

    traits = Traits(
        needs={"class_counts": "weights come from the counts"}, batchwise=True, per_pixel=True, evens_classes=True
    )

    def __init__(
        self,
        class_counts: ClassCounts,
        start: float = 0.8,
        beta: float = 0.9999,
        rule: Rule = "effective",
    ):
        if not 0 <= start <= 1:
            raise ValueError(f"start must be in [0, 1], a share of training and not an epoch, got {start}")
        self.start, self.class_weights = start, class_weights(class_counts, beta, rule)

    def __call__(
        self, losses: Float[Tensor, "B"], target: Target | Int[Tensor, "B"], progress: float
    ) -> Float[Tensor, "B"]:
        check_progress(progress)
        weights = mixture_weights(self.class_weights, as_target(target), losses.detach())
        return torch.ones_like(weights) if progress < self.start else weights / weights.mean()
