"""Adversarial training by PGD: each batch is attacked first, and the loss is that of what the attack found.

Source: Madry et al., "Towards Deep Learning Models Resistant to Adversarial Attacks", ICLR 2018.
    x' = PGD(x, y) from a point drawn evenly from the budget, the network in evaluation mode
    loss of f(x') and y, the network in training mode
With a budget that rises over the first epochs and one long step it is the attack of Debenedetti et al., "A Light Recipe
to Train Robust Vision Transformers", SaTML 2023, whose other parts `robust-vit-recipe` adds.
The attack climbs plain cross entropy against the label, of mixed labels the heaviest, whatever the loss part is.
Limits: epsilon = 0 is supervised training; one step with reach 1 from x itself would be FGSM training.
"""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING

from jaxtyping import Float
from torch import Tensor

from weathered.attacks.base import Norm, cross_entropy
from weathered.core.batch import Batch
from weathered.procedures.adversarial import AdversarialTraining

if TYPE_CHECKING:
    from weathered.core.run import Run


class PGDTraining(AdversarialTraining):
    """Train on inputs that PGD has moved. Any loss part serves; it is asked about the moved inputs alone.

    epsilon in [0, 1] for linf: 8/255 for CIFAR-10 and 0.3 for MNIST are usual. norm: linf or l2. steps >= 1, each of
    the length reach * epsilon / steps. warm_up in [0, 1]: share of training over which the budget rises from 0, epoch
    by epoch; networks that learn nothing at full budget learn with one. Costs steps + 1 passes forward and backward.
    """

    def __init__(
        self,
        epsilon: float = 8 / 255,
        norm: Norm = "linf",
        steps: int = 10,
        reach: float = 2.5,
        warm_up: float = 0.0,
    ):
        super().__init__(epsilon, norm, steps, reach, warm_up)

    def loss(self, run: Run, batch: Batch) -> Float[Tensor, ""]:
        # summed over classes first, as a mixture may name one twice
        labels = batch.target.dense(run.train.num_classes).argmax(1)
        moved = self.climbed(run, batch.x, partial(cross_entropy, labels=labels))
        return run.objective(run.forward(moved), batch.replace(x=moved))
