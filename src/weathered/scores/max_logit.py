"""MaxLogit: minus the largest logit.

Source: Hendrycks et al., "Scaling Out-of-Distribution Detection for Real-World Settings", ICML 2022.
    s(z) = -max_c z_c
With many classes the largest probability is small wherever several of them fit, while the largest logit is not. Limits:
it is Energy at T -> 0, never less than Energy, and at most T log C more. Adding a constant to all logits shifts it.
"""

import torch
from jaxtyping import Float
from torch import Tensor

from weathered.scores.base import Evidence, Score, check_matrix, need


def max_logit_score(logits: Float[Tensor, "N C"]) -> Float[Tensor, "N"]:
    """Minus the largest of each row of logits (N, C), any real numbers; (N,) float64, higher = stranger.

    Raises ValueError if logits are not finite floats (N, C). Source: Hendrycks et al., ICML 2022 (they threshold the
    negative of this).
    """
    check_matrix("logits", logits)
    return -logits.amax(1).double()


class MaxLogit(Score):
    """Minus the largest logit. Needs logits; nothing to fit. Hendrycks et al., ICML 2022."""

    @torch.no_grad()
    def score(self, evidence: Evidence) -> Float[Tensor, "N"]:
        """Scores (N,), higher = more out-of-distribution; errors as in `max_logit_score`."""
        return max_logit_score(need(evidence.logits, "logits", self))
