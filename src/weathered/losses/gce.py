"""Generalised cross entropy: between cross entropy (q -> 0) and one minus the probability of the label (q = 1).

Source: Zhang and Sabuncu, "Generalized Cross Entropy Loss for Training Deep Neural Networks with Noisy Labels",
NeurIPS 2018, equation 6: L = (1 - p^q) / q, at most 1 / q. It is alpha-loss with alpha = 1 / (1 - q).
Their truncated form, which drops samples of p < 1/2 and re-chooses them every ten epochs, is not in it.
"""

from jaxtyping import Float, Int
from torch import Tensor

from weathered.core.power_loss import power_loss, soft_power_loss
from weathered.core.roles import Part


def check_q(q: float) -> None:
    """Raise ValueError unless q is in (0, 1]."""
    if not 0 < q <= 1:
        raise ValueError(f"q must be in (0, 1], got {q}; for q = 0 use cross entropy")


def generalised_cross_entropy(
    logits: Float[Tensor, "B C"], labels: Int[Tensor, "B"], q: float = 0.7
) -> Float[Tensor, "B"]:
    """(1 - p^q) / q per sample, in [0, 1 / q]. logits (B, C), any real numbers; labels (B,) in [0, C).

    Raises ValueError unless q is in (0, 1].
    """
    check_q(q)
    return power_loss(logits, labels, q)


class GeneralizedCrossEntropy(Part):
    """Generalised cross entropy per sample. Zhang and Sabuncu, NeurIPS 2018.

    q in (0, 1]: small is close to cross entropy, 1 trusts no label much and trains slowly. Linear in the target.
    """

    def __init__(self, q: float = 0.7):
        check_q(q)
        self.q = q

    def __call__(self, logits: Float[Tensor, "B C"], labels: Int[Tensor, "B"]) -> Float[Tensor, "B"]:
        return power_loss(logits, labels, self.q)

    def soft(self, logits: Float[Tensor, "B C"], target: Float[Tensor, "B C"]) -> Float[Tensor, "B"]:
        """The loss averaged over a distribution per sample, (B, C) with rows that sum to 1."""
        return soft_power_loss(logits, target, self.q)
