"""Self-adaptive training: labels give way to a running average of the network's own predictions.

Source: Huang et al., "Self-Adaptive Training: beyond Empirical Risk Minimization", NeurIPS 2020, the supervised method.
Before `start`: the mean loss L of the given labels. From then on, with p = softmax(z) without gradient:
    T[i] <- momentum * T[i] + (1 - momentum) * p_i        the table T starts from the given labels
    w_i  =  max_k T[i, k] / mean over the batch of it     without gradient
    loss =  mean of w_i * (L(z_i, T[i]) + reverse * R_i),   R_i = -sum_k p_k log T[i, k] with gradient
With L cross entropy, reverse = 0.3 is the symmetric variant. Two effects join: rows whose label the network contradicts
get its own label in time, and count less as long as they are in doubt.
Limits: momentum = 1 is plain training on the given labels; momentum = 0 makes the target the prediction itself, whose
gradient is 0. With momentum = 0.9 a label loses its majority after 7 visits that all favour one other class fully.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from jaxtyping import Float
from torch import Tensor

from weathered.core.batch import Batch
from weathered.core.roles import Output
from weathered.procedures.base import SelfAdaptive

if TYPE_CHECKING:
    from weathered.core.run import Run

LEAST_TARGET = 1e-4
"""Bound on T below which its logarithm in the reverse cross entropy is not taken."""


def reverse_cross_entropy(logits: Float[Tensor, "B C"], targets: Float[Tensor, "B C"]) -> Float[Tensor, "B"]:
    """-sum_k p_k log T_k in nats per row, with p = softmax(logits) and T kept at 1e-4 or more; at most 9.21.

    Gradients reach the logits only. Source: the reverse term of Wang et al., ICCV 2019, against averaged targets.
    """
    return -(logits.softmax(1) * targets.detach().clamp_min(LEAST_TARGET).log()).sum(1)


class SelfAdaptiveTraining(SelfAdaptive):
    """Train against targets that move from the given labels to the network's averaged predictions.

    start in [0, 1): progress of training from which targets move, 60 of 200 epochs by default; it must come before the
    network has fitted the wrong labels, which is sooner without augmentation: a warning says when it seems too late.
    momentum in [0, 1]: of the targets, 0.9 with augmentation and 0.7 without in the source. weighted: multiply losses
    by how certain the targets are. reverse >= 0: weight of the reverse cross entropy. smoothing in [0, 1): start from
    smoothed labels. half: keep the targets in float16; they take 4 bytes for each training row and class otherwise.

    Any loss part serves; p is what it implies at test time. `targets` (N, C) holds the table, `corrected_labels()` its
    largest entries. The table is the same on all processes, and saved. A row that the sampler draws twice into a batch
    is averaged once, by the mean of its predictions.
    Raises ValueError for arguments out of range.
    """

    def __init__(
        self,
        start: float = 0.3,
        momentum: float = 0.9,
        weighted: bool = True,
        reverse: float = 0.0,
        smoothing: float = 0.0,
        half: bool = False,
    ):
        super().__init__(start, momentum, weighted, smoothing, half)
        if not 0 <= reverse < float("inf"):
            raise ValueError(f"reverse must be >= 0 and finite, got {reverse}")
        self.reverse = reverse

    def target_losses(
        self, run: Run, output: Output, batch: Batch, targets: Float[Tensor, "B C"]
    ) -> Float[Tensor, "B"]:
        losses = super().target_losses(run, output, batch, targets)
        if not self.reverse:
            return losses
        return losses + self.reverse * reverse_cross_entropy(run.test_logits(output.logits), targets)
