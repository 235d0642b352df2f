"""ReAct: the energy of the logits after large activations were cut.

Source: Sun, Guo and Li, "ReAct: Out-of-distribution Detection With Rectified Activations", NeurIPS 2021, eqs. 1 to 3.
With features h, the last layer W, b and c the 90th percentile of all training activations pooled,

    s(h) = -log sum_c exp( (W min(h, c) + b)_c )

They threshold minus this, higher = in-distribution; here it is the energy. The cut is the same for all units.
Limits: c = infinity is Energy at T = 1.
"""

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from weathered.core.facts import Traits
from weathered.scores.base import Evidence, Score, check_matrix, head_energy, learnt, need


def react_score(
    features: Float[Tensor, "N D"], threshold: float, weight: Float[Tensor, "C D"], bias: Float[Tensor, "C"]
) -> Float[Tensor, "N"]:
    """Energy of weight min(features, threshold) + bias.

    features (N, D): finite. threshold: any number, infinity cuts nothing. weight (C, D), bias (C,): the last layer.
    Returns (N,) float64 in nats, any real numbers, higher = more out-of-distribution.
    Raises ValueError if shapes do not fit, values are not finite or the threshold is NaN.
    Source: Sun et al., NeurIPS 2021, eqs. 1 to 3 (they threshold the negative of this).
    """
    if threshold != threshold:
        raise ValueError("threshold must be a number, got NaN")
    return head_energy(features, weight, bias, lambda h: h.clamp_max(threshold))


class ReAct(Score):
    """Energy after cutting activations above a percentile of the training activations. Sun et al., NeurIPS 2021.

    percentile in (0, 100]: 90 in the paper; 100 cuts only what exceeds every training activation.
    threshold_: the cut that was learnt. Needs features and a linear head; `fit` needs training features.
    """

    fitted = ("threshold_",)
    traits = Traits(
        needs={"features": "it cuts large activations", "linear_head": "it computes logits from the cut activations"}
    )

    def __init__(self, percentile: float = 90.0):
        if not 0 < percentile <= 100:
            raise ValueError(f"percentile must be in (0, 100], got {percentile}")
        self.percentile = percentile
        self.threshold_: float | None = None

    def fit(self, features: Float[Tensor, "N D"], labels: Int[Tensor, "N"] | None = None) -> "ReAct":
        """Take the percentile of all N D activations pooled; labels are not used. Copies the features once.

        Raises ValueError if there is no row or a value is not finite.
        """
        check_matrix("features", features)
        if not len(features):
            raise ValueError("fit needs at least one row, got none")
        self.threshold_ = float(np.percentile(features.detach().cpu().numpy(), self.percentile))
        return self

    @torch.no_grad()
    def score(self, evidence: Evidence) -> Float[Tensor, "N"]:
        """Scores (N,), higher = more out-of-distribution; errors as in `react_score`, and before `fit`."""
        threshold = learnt(self.threshold_, self)
        head = need(evidence.head, "head", self)
        return react_score(need(evidence.features, "features", self), threshold, head.weight, head.bias)
