"""MSP: one minus the largest softmax probability.

Source: Hendrycks and Gimpel, "A Baseline for Detecting Misclassified and Out-of-Distribution Examples in Neural
Networks", ICLR 2017. With p = softmax(z) they score max_c p_c, higher = in-distribution; here the sign is turned.

    s(z) = 1 - max_c p_c = r / (1 + r),   r = sum over the other classes of exp(z_c - max z)

in [0, 1 - 1/C]. The second form keeps its digits where max_c p_c rounds to 1, so confident inputs do not tie.
Limits: equal logits give 1 - 1/C; one logit far above the others gives 0. For two classes s is half of one minus
tanh(|z_1 - z_2| / 2).
"""

import torch
from jaxtyping import Float
from torch import Tensor

from weathered.scores.base import Evidence, Score, doubt, need


def msp_score(logits: Float[Tensor, "N C"], temperature: float = 1.0) -> Float[Tensor, "N"]:
    """One minus the largest probability of softmax(logits / temperature), in float64.

    logits (N, C): finite, not probabilities. temperature > 0. Returns (N,) in [0, 1 - 1/C], higher = more
    out-of-distribution. Raises ValueError if the temperature is not > 0 or logits are not finite floats (N, C).
    Source: Hendrycks and Gimpel, ICLR 2017 (they threshold one minus this).
    """
    return doubt(logits, temperature)


class MSP(Score):
    """One minus the largest softmax probability. Needs logits; nothing to fit. Hendrycks and Gimpel, ICLR 2017."""

    @torch.no_grad()
    def score(self, evidence: Evidence) -> Float[Tensor, "N"]:
        """Scores (N,) in [0, 1 - 1/C], higher = more out-of-distribution; errors as in `msp_score`."""
        return msp_score(need(evidence.logits, "logits", self))
