"""Vector scaling: logits times a factor and plus an offset for each class, or for each group of samples.

Source: Kini et al., "Label-Imbalanced and Group-Sensitive Classification under Overparameterization", NeurIPS 2021.
    classes: L = CE(Delta z + iota, y)                 Delta_k = (n_k / max n)^gamma, iota_k = tau log(n_k / sum n)
    groups:  L = CE(Delta_g z - iota_g onehot(y), y)   Delta_g = (n_g / max n)^gamma, iota_g = -tau log(n_g / sum n)
Limits: gamma = tau = 0 or equal counts are cross entropy; gamma = 0 is logit adjustment; tau = 0 is class-dependent
temperatures (CDT). On separable data factors move the margins for ever, offsets only on the way there: a linear model
converges to the support vector machine whose margin for the rare class is 1 / Delta times that of the other.
The released group code subtracts the offset from all logits, where softmax cancels it; here it acts on the label's.
"""

import math

import torch
from jaxtyping import Float, Int
from torch import Tensor

from weathered.core.facts import Traits
from weathered.core.roles import Loss, Part
from weathered.losses.base import ShiftedLoss, along_classes, log_prior
from weathered.losses.cross_entropy import cross_entropy
from weathered.weighting.base import ClassCounts, check_class_counts


def scaling_factors(counts: ClassCounts, gamma: float) -> Float[Tensor, "C"]:
    """(n / max n)^gamma in (0, 1], float64; 1 for the most frequent. Raises ValueError for a count that is not > 0."""
    checked = check_class_counts(counts)
    return (checked / checked.max()) ** gamma


def check_strengths(gamma: float, tau: float) -> None:
    """Raise ValueError unless gamma and tau are >= 0 and finite."""
    for name, value in (("gamma", gamma), ("tau", tau)):
        if not (value >= 0 and math.isfinite(value)):
            raise ValueError(f"{name} must be >= 0 and finite, got {value}; below 0 it would favour frequent classes")


class VSLoss(ShiftedLoss):
    """Cross entropy, or `base`, on logits multiplied and shifted class by class.

    class_counts (C,): training samples of each class, all positive. gamma >= 0: exponent of the factors. tau >= 0:
    strength of the offsets. Both push towards rare classes: lower one where the other grows. base: any loss of logits.
    Class weights come from the reweight slot. Predictions are those of the raw logits.
    Source: Kini et al., NeurIPS 2021.
    """

    def __init__(self, class_counts: ClassCounts, gamma: float = 0.3, tau: float = 1.0, base: Loss | None = None):
        check_strengths(gamma, tau)
        super().__init__(tau * log_prior(class_counts), base)
        self.gamma, self.tau, self.factors = gamma, tau, scaling_factors(class_counts, gamma)

    def transform_logits(self, logits: Float[Tensor, "B C"]) -> Float[Tensor, "B C"]:
        wide = logits.to(torch.promote_types(logits.dtype, torch.float32))
        return torch.addcmul(along_classes(self.offsets, wide), wide, along_classes(self.factors, wide))


class GroupVSLoss(Part):
    """Cross entropy on logits multiplied by the factor of the sample's group, the label's lowered by its offset.

    group_counts (G,): training samples of each group, all positive. gamma, tau >= 0: as for `VSLoss`, of the groups.
    Called with `group` (B,) int64 in [0, G); a run gives it from the data set's
    `extra["group"]`. Needs one label for each sample.
    Raises ValueError for a group outside the counts. Source: Kini et al., NeurIPS 2021.
    """

    traits = Traits(
        needs={
            "group": "factors and offsets are those of each sample's group",
            "hard_target": "lowers the logit of the one given label",
        }
    )

    def __init__(self, group_counts: ClassCounts, gamma: float = 0.3, tau: float = 1.0):
        check_strengths(gamma, tau)
        try:
            self.factors, self.offsets = scaling_factors(group_counts, gamma), -tau * log_prior(group_counts)
        except ValueError as error:
            raise ValueError(str(error).replace("class", "group")) from error
        self.gamma, self.tau = gamma, tau

    def __call__(
        self, logits: Float[Tensor, "B C"], labels: Int[Tensor, "B"], group: Int[Tensor, "B"]
    ) -> Float[Tensor, "B"]:
        if group.shape != labels.shape:
            raise ValueError(f"group must be {tuple(labels.shape)}, one for each label, got {tuple(group.shape)}")
        if len(group) and not (int(group.min()) >= 0 and int(group.max()) < len(self.factors)):
            wrong = group[(group < 0) | (group >= len(self.factors))]
            raise ValueError(f"groups must be in [0, {len(self.factors) - 1}], got {int(wrong[0])}")
        wide = logits.to(torch.promote_types(logits.dtype, torch.float32))
        scaled = wide * self.factors.to(wide)[group, None]
        lowered = scaled.scatter_add(1, labels[:, None], -self.offsets.to(wide)[group, None])
        return cross_entropy(lowered, labels)
