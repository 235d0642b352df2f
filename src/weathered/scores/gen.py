"""GEN: a generalised entropy of the largest probabilities.

Source: Liu et al., "GEN: Pushing the Limits of Softmax-Based Out-of-Distribution Detection", CVPR 2023. With the sorted
probabilities p_(1) >= p_(2) >= ... of C classes and 0 < gamma < 1,
    s(z) = sum_(m <= top) p_(m)^gamma (1 - p_(m))^gamma
They threshold minus this. A small gamma makes it react to small deviations from certainty; the lower probabilities,
which are noise with many classes, are left out. Limits: a one-hot prediction scores 0, its least; for gamma = 1 and all
classes it is the Gini impurity 1 - sum p^2.
"""

import torch
from jaxtyping import Float
from torch import Tensor

from weathered.scores.base import Evidence, Score, by_rows, check_matrix, doubt, need


def gen_score(logits: Float[Tensor, "N C"], gamma: float = 0.1, top: int = 100) -> Float[Tensor, "N"]:
    """Generalised entropy of the `top` largest softmax probabilities, all where there are fewer classes.

    logits (N, C): finite. gamma in (0, 1]. top >= 1. Returns (N,) float64, >= 0, higher = more out-of-distribution.
    Raises ValueError outside these ranges. Source: Liu et al., CVPR 2023 (they threshold minus this).
    """
    check_arguments(gamma, top)
    check_matrix("logits", logits)

    def rows(z: Tensor) -> Tensor:
        scaled = z.double()
        largest = scaled.topk(min(top, z.shape[1]), dim=1).values
        p = (largest - scaled.logsumexp(1, keepdim=True)).exp()
        # one minus a probability that rounds to 1 is the sum of all others, which keeps its digits
        rest = torch.where(p < 0.5, 1 - p, doubt(z, 1.0)[:, None])
        return (p * rest).pow(gamma).sum(1)

    return by_rows(rows, logits, width=logits.shape[1])


def check_arguments(gamma: float, top: int) -> None:
    """Raise ValueError unless gamma lies in (0, 1] and top is at least 1."""
    if not 0 < gamma <= 1:
        raise ValueError(f"gamma must be in (0, 1], got {gamma}")
    if top < 1:
        raise ValueError(f"top must be at least 1, got {top}")


class GEN(Score):
    """Generalised entropy of the largest probabilities. Needs logits; nothing to fit. Liu et al., CVPR 2023.

    gamma in (0, 1]: 0.1 in the paper. top >= 1: classes counted, 100 in the paper for the 1,000 of ImageNet.
    """

    def __init__(self, gamma: float = 0.1, top: int = 100):
        check_arguments(gamma, top)
        self.gamma, self.top = gamma, top

    @torch.no_grad()
    def score(self, evidence: Evidence) -> Float[Tensor, "N"]:
        """Scores (N,), higher = more out-of-distribution; errors as in `gen_score`."""
        return gen_score(need(evidence.logits, "logits", self), self.gamma, self.top)
