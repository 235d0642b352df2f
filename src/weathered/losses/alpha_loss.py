"""Alpha-loss: one family from exponential loss (alpha = 1/2) over cross entropy (1) to 1 - p (infinity).

Source: Sypherd et al., "A Tunable Loss Function for Robust Classification: Calibration, Landscape, and
Generalization", IEEE Transactions on Information Theory 2022.
L = alpha / (alpha - 1) (1 - p^(1 - 1/alpha)) for the label's probability p; its gradient is p^(1 - 1/alpha) times that
of cross entropy. alpha > 1 ignores labels that the network finds unlikely and is at most alpha / (alpha - 1);
alpha < 1 insists on them. alpha > 1 is generalised cross entropy with q = 1 - 1/alpha.
For posteriors eta the expected loss is least where softmax(z) is proportional to eta^alpha: predictions are right, but
eta itself is softmax(z / alpha).
"""

from jaxtyping import Float, Int
from torch import Tensor

from weathered.core.power_loss import power_loss, soft_power_loss
from weathered.core.roles import Part


def exponent_of(alpha: float) -> float:
    """q = 1 - 1 / alpha, in (-infinity, 1]. Raises ValueError unless alpha > 0."""
    if not alpha > 0:
        raise ValueError(f"alpha must be > 0, got {alpha}")
    return 1 - 1 / alpha


def alpha_loss(logits: Float[Tensor, "B C"], labels: Int[Tensor, "B"], alpha: float) -> Float[Tensor, "B"]:
    """Alpha-loss per sample; alpha = 1 is cross entropy exactly, infinity is allowed.

    logits (B, C), any real numbers; labels (B,) in [0, C), else an error as in cross entropy.
    For alpha < 1 it goes on linearly where p^(1 - 1/alpha) passes exp(30). Raises ValueError unless alpha > 0.
    """
    return power_loss(logits, labels, exponent_of(alpha))


class AlphaLoss(Part):
    """Alpha-loss per sample. Sypherd et al., IEEE Transactions on Information Theory 2022.

    alpha > 0: above 1 for wrong labels, below 1 for rare classes, 1 is cross entropy. Another alpha is another step
    size: compare learning rates too. With many classes a large alpha trains slowly at first, by about C^(1/alpha - 1).
    Linear in the target. The probabilities of a model trained with it are softmax(logits / alpha), not softmax(logits).
    """

    def __init__(self, alpha: float = 4.0):
        self.alpha, self.q = alpha, exponent_of(alpha)

    def __call__(self, logits: Float[Tensor, "B C"], labels: Int[Tensor, "B"]) -> Float[Tensor, "B"]:
        return power_loss(logits, labels, self.q)

    def soft(self, logits: Float[Tensor, "B C"], target: Float[Tensor, "B C"]) -> Float[Tensor, "B"]:
        """Alpha-loss averaged over a distribution per sample, (B, C) with rows that sum to 1."""
        return soft_power_loss(logits, target, self.q)
