"""What procedures that learn from auxiliary images share: one forward pass over both batches, and a weighted sum."""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from weathered.core import distributed
from weathered.core.batch import Batch
from weathered.core.facts import Traits
from weathered.core.procedure import Procedure
from weathered.core.roles import Output

if TYPE_CHECKING:
    from weathered.core.run import Run

OOD = "ood"
"""The name of the auxiliary data."""


class AuxiliaryProcedure(Procedure):
    """The run's objective on the training batch plus eta times a loss on auxiliary inputs under random labels.

    eta >= 0: 0 is plain training, without a look at the auxiliary data. aux_batch >= 1: auxiliary inputs per step over
    all devices. separate: a forward pass of their own, so that batch normalisation sees each kind by itself and keeps
    the statistics of training inputs alone for later; by default both go through in one pass, as in the authors' code,
    and share batch statistics.
    The loss recorded for an epoch is that of the training batches alone.
    Raises ValueError outside these ranges.
    """

    traits = Traits(needs={"aux:ood": "it trains on images of none of the classes"}, honours=Procedure.traits.honours)

    def __init__(self, eta: float, aux_batch: int, separate: bool):
        if not (eta >= 0 and math.isfinite(eta)):
            raise ValueError(f"eta must be >= 0 and finite, got {eta}")
        if aux_batch < 1:
            raise ValueError(f"aux_batch must be at least 1, got {aux_batch}")
        self.eta, self.aux_batch, self.separate = eta, aux_batch, separate

    def loss(self, run: Run, batch: Batch) -> Float[Tensor, ""]:
        if self.eta == 0:
            return super().loss(run, batch)
        other = run.aux(OOD, self.aux_batch)
        if self.separate:
            output = run.forward(batch.x)
            with kept_statistics(run.model):
                strange = run.forward(other).logits
        else:
            output, strange = _split(run.forward(torch.cat([batch.x, other])), len(batch))
        # all labels on every process, so that what is summed over them is known without asking
        labels = self.draw_labels(run, self.aux_batch).to(run.device)
        objective = run.objective(output, batch)
        # curves then compare with those of runs without auxiliary data
        run.task_loss = objective.detach()
        return objective + self.eta * self.auxiliary_loss(run, run.test_logits(strange), labels)

    def draw_labels(self, run: Run, size: int) -> Int[Tensor, "size"]:
        """Labels for the auxiliary inputs of this step, the same on all processes; drawn anew in every step."""
        raise NotImplementedError

    def auxiliary_loss(self, run: Run, logits: Float[Tensor, "B C"], labels: Int[Tensor, "size"]) -> Float[Tensor, ""]:
        """This process's share of the loss on its auxiliary logits; `labels` are those of all processes.

        The mean over processes is the loss.
        """
        raise NotImplementedError


@contextmanager
def kept_statistics(model: nn.Module) -> Iterator[None]:
    """Batch normalisation goes by the statistics of the batch, as in training, and keeps none of them."""
    tracking = [m for m in model.modules() if isinstance(m, _BatchNorm) and m.track_running_stats]
    try:
        for module in tracking:
            module.track_running_stats = False
        yield
    finally:
        for module in tracking:
            module.track_running_stats = True


def own_labels(run: Run, labels: Int[Tensor, "size"]) -> Int[Tensor, "B"]:
    """This process's share of the labels of all."""
    return distributed.local(run.fabric, labels)


def _split(output: Output, size: int) -> tuple[Output, Float[Tensor, "B C"]]:
    features = None if output.features is None else output.features[:size]
    return Output(output.logits[:size], features), output.logits[size:]
