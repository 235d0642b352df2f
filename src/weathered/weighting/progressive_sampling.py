"""Progressive sampling: from rows as they are to all classes alike, in a straight line over the training.

Source: Kang et al., "Decoupling Representation and Classifier for Long-Tailed Recognition", ICLR 2020, eq. 2.
P(row) = (1 - t) / N + t / (C n_y) for the progress t. Limits: t = 0 draws rows alike, t = 1 classes alike.
"""

from jaxtyping import Float, Int
from torch import Tensor

from weathered.core.facts import Traits
from weathered.core.roles import Part
from weathered.weighting.base import check_progress, power_weights


class ProgressiveSampling(Part):
    """Draw rows alike at the start of training and classes alike at its end. Source: Kang et al., ICLR 2020."""

    traits = Traits(evens_classes=True)

    def weights(self, labels: Int[Tensor, "N"], progress: float) -> Float[Tensor, "N"]:
        check_progress(progress)
        return (1 - progress) * power_weights(labels, 1.0) + progress * power_weights(labels, 0.0)
