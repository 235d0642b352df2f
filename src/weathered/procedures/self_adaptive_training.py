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

import warnings
from typing import TYPE_CHECKING, Any

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from weathered.core import distributed
from weathered.core.batch import Batch
from weathered.core.facts import Traits
from weathered.core.procedure import Procedure
from weathered.core.target import Target
from weathered.core.target_table import TargetTable, check_momentum

if TYPE_CHECKING:
    from weathered.core.run import Run

MEMORISED = 0.99
"""Share of given labels reproduced in training from which the network has nothing left to correct."""

LEAST_TARGET = 1e-4
"""Bound on T below which its logarithm in the reverse cross entropy is not taken."""


def certainty_weights(targets: Float[Tensor, "B C"]) -> Float[Tensor, "B"]:
    """The largest entry of each row, divided by the mean of these over the batch: (B,) with mean 1."""
    largest = targets.detach().amax(1)
    return largest / largest.mean()


def reverse_cross_entropy(logits: Float[Tensor, "B C"], targets: Float[Tensor, "B C"]) -> Float[Tensor, "B"]:
    """-sum_k p_k log T_k in nats per row, with p = softmax(logits) and T kept at 1e-4 or more; at most 9.21.

    Gradients reach the logits only. Source: the reverse term of Wang et al., ICCV 2019, against averaged targets.
    """
    return -(logits.softmax(1) * targets.detach().clamp_min(LEAST_TARGET).log()).sum(1)


class SelfAdaptiveTraining(Procedure):
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

    traits = Traits(
        needs={
            "hard_target": "starts the target of a row from its one given label",
            "index": "keeps a target for each training row",
            "num_classes": "keeps a probability for each class",
        },
        honours=frozenset({"sampler", "transform", "loss", "stepper"}),
    )

    def __init__(
        self,
        start: float = 0.3,
        momentum: float = 0.9,
        weighted: bool = True,
        reverse: float = 0.0,
        smoothing: float = 0.0,
        half: bool = False,
    ):
        check_momentum(momentum)
        for name, share in (("start", start), ("smoothing", smoothing)):
            if not 0 <= share < 1:
                raise ValueError(f"{name} must be in [0, 1), got {share}")
        if not 0 <= reverse < float("inf"):
            raise ValueError(f"reverse must be >= 0 and finite, got {reverse}")
        self.start, self.momentum, self.weighted, self.reverse = start, momentum, weighted, reverse
        self.smoothing, self.half = smoothing, half

    def setup(self, run: Run) -> dict[str, nn.Module]:
        labels = run.train.labels.to(run.device)
        self.table = TargetTable(labels, run.train.num_classes, self.momentum, self.smoothing, self.half)
        self.adapting = False
        # hits and samples of the present epoch, against the given labels
        self.fitted = torch.zeros(2, dtype=torch.float64, device=run.device)
        return {}

    @property
    def targets(self) -> Float[Tensor, "N C"]:
        """The targets of all training rows."""
        return self.table.rows

    def corrected_labels(self) -> Int[Tensor, "N"]:
        """The class with the largest target of each training row."""
        return self.targets.argmax(1)

    def update(self, run: Run, batch: Batch) -> None:
        self.table.begin()
        super().update(run, batch)

    def loss(self, run: Run, batch: Batch) -> Float[Tensor, ""]:
        output = run.forward(batch.x)
        if run.progress < self.start:
            self._count(run, output.logits, batch)
            return run.losses(output, batch).mean()
        self._warn_if_late(run)
        run.check_finite(output.logits)
        logits = run.test_logits(output.logits)
        targets = self.table.visit(run, batch.index, logits.detach().softmax(1))
        losses = run.losses(output, batch.replace(target=Target.soft(targets)))
        if self.reverse:
            losses = losses + self.reverse * reverse_cross_entropy(logits, targets)
        if not self.weighted:
            return losses.mean()
        weights = distributed.local(run.fabric, certainty_weights(run.gather(targets)))
        return (weights * losses).mean()

    def after_step(self, run: Run) -> None:
        self.table.commit()

    def _count(self, run: Run, logits: Float[Tensor, "B C"], batch: Batch) -> None:
        if run.step % run.steps_per_epoch == 0:
            self.fitted.zero_()
        hits = (logits.detach().argmax(1) == batch.target.single()).sum()
        self.fitted += torch.stack([hits.double(), hits.new_tensor(len(batch)).double()])

    def _warn_if_late(self, run: Run) -> None:
        if self.adapting:
            return
        self.adapting = True
        hits, seen = self.fitted.tolist()
        self.fitted.zero_()
        if seen and hits >= MEMORISED * seen and run.fabric.is_global_zero:
            warnings.warn(
                f"SelfAdaptiveTraining: at start={self.start:g} the network fits {hits / seen:.1%} of the given labels "
                "already; wrong ones are learned by heart then and will not be corrected. Lower start.",
                stacklevel=2,
            )

    def state_dict(self) -> dict[str, Any]:
        return {**self.table.state_dict(), "fitted": self.fitted}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.table.load_state_dict(state)
        self.fitted.copy_(state["fitted"])
