"""Logit adjustment: add the log of the class prior to the logits while training, so that what is learnt is free of it.

Source: Menon et al., "Long-tail learning via logit adjustment", ICLR 2021, eq. 10; with tau = 1 the balanced softmax of
Ren et al., "Balanced Meta-Softmax for Long-Tailed Visual Recognition", NeurIPS 2020.
L = -log softmax(z + tau log pi)[y] for pi = n / sum n; prediction takes z alone.
Limits: tau = 0 or equal counts are cross entropy.
"""

import math

from weathered.core.roles import Loss
from weathered.losses.base import ShiftedLoss, log_prior
from weathered.weighting.base import ClassCounts


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
