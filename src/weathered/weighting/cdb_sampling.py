"""CDB-S: classes are drawn by how hard they are at present, whatever their size.

Source: Sinha et al., "Class-Difficulty Based Methods for Long-Tailed Visual Recognition", IJCV 2022.
P(class c) = d_c^tau / sum_j d_j^tau, then a row of the class, all alike, with replacement.
Limits: before the first measurement and for equal difficulties all classes are drawn alike.
"""

import torch
from jaxtyping import Float, Int
from torch import Tensor

from weathered.weighting.base import check_labels
from weathered.weighting.difficulty import DifficultyPart, shares


class CDBSampling(DifficultyPart):
    """Draw classes in proportion to a power of their errors on validation data, refreshed after an epoch.

    num_classes, tau, every, floor: see `DifficultyPart`. The paper's exact form was not found; this is its idea.
    Raises ValueError for a label outside the classes, or where a class without training rows would have to be drawn.
    Source: Sinha et al., IJCV 2022.
    """

    def weights(self, labels: Int[Tensor, "N"], progress: float) -> Float[Tensor, "N"]:
        wanted = shares(self.difficulty, self.tau)
        check_labels(labels, len(wanted))
        counts = torch.bincount(labels, minlength=len(wanted))
        if bool((lost := (counts == 0) & (wanted > 0)).any()):
            raise ValueError(f"class {int(lost.nonzero()[0])} has no training row, so it cannot be drawn; drop it")
        return (wanted / counts.clamp_min(1))[labels]
