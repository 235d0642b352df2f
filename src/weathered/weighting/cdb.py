"""CDB-W: classes weigh by how hard they are at present, whatever their size.

Source: Sinha et al., "Class-Difficulty Based Methods for Long-Tailed Visual Recognition", IJCV 2022; first as
"Class-Wise Difficulty-Balanced Loss for Solving Class-Imbalance", ACCV 2020.
w_c = C d_c^tau / sum_j d_j^tau for d_c = 1 - accuracy of class c on validation data, measured after each epoch.
Limits: before the first measurement, for equal difficulties and for tau = 0 every weight is 1; as tau grows all weight
goes to the hardest class.
"""

from jaxtyping import Float, Int
from torch import Tensor

from weathered.core.facts import Traits
from weathered.core.target import Target, as_target
from weathered.weighting.base import mixture_weights
from weathered.weighting.difficulty import DifficultyPart, Tau, powers


class CDB(DifficultyPart):
    """Weights by class from the errors on validation data, refreshed after an epoch.

    num_classes, tau, every, floor: see `DifficultyPart`. weighted_mean: divide by the weights of the batch, as torch's
    class-weighted mean does, instead of by its size; the step then no longer depends on the mix of classes.
    The validation data are read for weights, so measure on others. Source: Sinha et al., IJCV 2022.
    """

    traits = Traits(needs=DifficultyPart.traits.needs, batchwise=True, per_pixel=True)

    def __init__(
        self,
        num_classes: int,
        tau: Tau = "dynamic",
        every: int = 1,
        floor: bool = False,
        weighted_mean: bool = False,
    ):
        super().__init__(num_classes, tau, every, floor)
        self.weighted_mean = weighted_mean

    @property
    def class_weights(self) -> Float[Tensor, "C"]:
        """The present weights, (C,) float64 with mean 1."""
        found = powers(self.difficulty, self.tau)
        # in this order equal difficulties weigh 1 exactly, whatever the number of classes
        return len(found) * found / found.sum()

    def __call__(
        self, losses: Float[Tensor, "B"], target: Target | Int[Tensor, "B"], progress: float
    ) -> Float[Tensor, "B"]:
        weights = mixture_weights(self.class_weights, as_target(target), losses.detach())
        total = weights.sum()
        return weights * len(weights) / total if self.weighted_mean and float(total) > 0 else weights
