"""GradNorm: how hard the uniform label pulls at the weights of the last layer.

Source: Huang, Geng and Li, "On the Importance of Gradients for Detecting Distributional Shifts in the Wild", NeurIPS
2021, eq. 6. With logits z = W h + b, p = softmax(z) and the uniform distribution u over C classes, the gradient of
KL(u || p) for W is (p - u) h^T, so its L1 norm is a product:

    s(h, z) = - |h|_1 sum_c |p_c - 1/C|

They threshold minus this, higher = in-distribution. Limits: equal logits or h = 0 give 0, the largest value; the
second factor is at most 2 - 2/C, at a one-hot p. Scaling h alone scales the score.
"""

import torch
from jaxtyping import Float
from torch import Tensor

from weathered.core.facts import Traits
from weathered.scores.base import Evidence, Score, by_rows, check_matrix, need


def gradnorm_score(features: Float[Tensor, "N D"], logits: Float[Tensor, "N C"]) -> Float[Tensor, "N"]:
    """Minus the L1 norm of the gradient of KL(uniform || softmax(logits)) for the weights of a linear last layer.

    features (N, D): what that layer sees. logits (N, C): what it says. Both finite. Returns (N,) float64, <= 0,
    higher = more out-of-distribution. Raises ValueError if shapes do not fit or values are not finite.
    Source: Huang et al., NeurIPS 2021, eq. 6 (they threshold minus this).
    """
    check_matrix("features", features)
    check_matrix("logits", logits)
    if len(features) != len(logits):
        raise ValueError(f"got {len(features)} rows of features but {len(logits)} rows of logits")
    classes = logits.shape[1]

    def rows(h: Tensor, z: Tensor) -> Tensor:
        return -h.double().abs().sum(1) * (z.double().softmax(1) - 1 / classes).abs().sum(1)

    return by_rows(rows, features, logits, width=max(features.shape[1], classes))


class GradNorm(Score):
    """Gradient norm of the last layer's weights. Needs logits, features and a linear head; nothing to fit.

    Huang et al., NeurIPS 2021.
    """

    traits = Traits(
        needs={
            "features": "its first factor is their L1 norm",
            "linear_head": "its closed form is the gradient of a linear layer",
        }
    )

    @torch.no_grad()
    def score(self, evidence: Evidence) -> Float[Tensor, "N"]:
        """Scores (N,), <= 0, higher = more out-of-distribution; errors as in `gradnorm_score`."""
        need(evidence.head, "head", self)
        return gradnorm_score(need(evidence.features, "features", self), need(evidence.logits, "logits", self))
