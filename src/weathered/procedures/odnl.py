"""ODNL: images of no class in every batch, under labels drawn anew each time, as a regulariser against wrong labels.

Source: Wei et al., "Open-set Label Noise Can Improve Robustness Against Inherent Label Noise", NeurIPS 2021.
    loss = mean L(f(x), y) + eta * mean CE(f(x~), y~),   y~ uniform on the classes, drawn in this very step
Labels that change at each look cannot be memorised: the expectation over y~ is the cross entropy to the uniform
distribution, whose minimum is log C, and what is drawn is that plus noise of mean zero.
Limits: eta = 0 is plain training; with the expectation instead of the draw it is outlier exposure.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn.functional import cross_entropy

from weathered.procedures.auxiliary import AuxiliaryProcedure, own_labels

if TYPE_CHECKING:
    from weathered.core.run import Run


def draw_uniform_labels(size: int, num_classes: int, rng: torch.Generator) -> Int[Tensor, "size"]:
    """Labels (size,) int64, uniform on 0 .. num_classes - 1. Raises ValueError for fewer than 2 classes."""
    if num_classes < 2:
        raise ValueError(f"num_classes must be at least 2, got {num_classes}")
    return torch.randint(num_classes, (size,), generator=rng)


class ODNL(AuxiliaryProcedure):
    """Train on the data and on auxiliary images `ood` under fresh random labels.

    eta >= 0: weight of the auxiliary mean. The authors use 2.5 on CIFAR-10 with symmetric noise, 3.0 with asymmetric,
    3.5 with instance-dependent and 2.0 with open-set noise; 1.0, 2.0, 2.0 and 1.0 on CIFAR-100.
    aux_batch >= 1: auxiliary images per step. separate: pass them through the network by themselves.

    The auxiliary images must hold none of the classes. Any loss, transform and reweight acts on the training batch;
    auxiliary images are augmented but not mixed. Source: Wei et al., NeurIPS 2021.
    """

    def __init__(self, eta: float = 2.5, aux_batch: int = 128, separate: bool = False):
        super().__init__(eta, aux_batch, separate)

    def draw_labels(self, run: Run, size: int) -> Int[Tensor, "size"]:
        return draw_uniform_labels(size, run.train.num_classes, run.generator("odnl labels", shared=True))

    def auxiliary_loss(self, run: Run, logits: Float[Tensor, "B C"], labels: Int[Tensor, "size"]) -> Float[Tensor, ""]:
        return cross_entropy(logits, own_labels(run, labels))
