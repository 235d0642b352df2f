"""Area under the margin: how far each label led the other classes while it was trained on, averaged over the epochs.

Source: Pleiss, Zhang, Elenberg and Weinberger, "Identifying mislabeled data using the area under the margin ranking",
NeurIPS 2020, eq. 1.
    AUM(x, y) = mean over visits of z[y] - max_{k != y} z[k]
for the logits z of training. A wrong label is learnt against the pull of the samples like its own, so it stays low.
Limits: after one epoch it is that epoch's margin; a label that leads by a constant has that constant.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from weathered.core.batch import Batch
from weathered.core.errors import SpecError
from weathered.core.facts import Traits
from weathered.core.roles import Output, Part

if TYPE_CHECKING:
    from weathered.core.run import Run

COLUMN = "area_under_margin"
"""The column of a run's `per_sample.parquet`."""


def margin(logits: Float[Tensor, "B C"], labels: Int[Tensor, "B"]) -> Float[Tensor, "B"]:
    """The logit of the label minus the largest other one, (B,), of the logits' dtype.

    logits (B, C), C >= 2. labels (B,) int64 in [0, C). Raises ValueError for fewer than 2 classes.
    """
    if logits.shape[1] < 2:
        raise ValueError(f"a margin needs logits of at least 2 classes, got shape {tuple(logits.shape)}")
    own = labels[:, None]
    return logits.gather(1, own)[:, 0] - logits.scatter(1, own, -torch.inf).amax(1)


class AreaUnderMargin(Part):
    """Record each training label's mean margin over the steps that saw it; adds nothing to the loss.

    from_epoch >= 0: epochs left out at the start, the first one or two where the rate warms up. Needs one given label
    per sample: after mixing there is no label to lead. `area` (N,) holds the values; a finished run has them in the
    column `area_under_margin` of `per_sample.parquet`, NaN for a row that no step saw.
    Raises ValueError for a negative epoch, SpecError where a run ends before it.
    Source: Pleiss et al., NeurIPS 2020, eq. 1.
    """

    traits = Traits(
        needs={
            "hard_target": "measures the margin of the one given label",
            "index": "keeps a sum for each training row",
        }
    )

    def __init__(self, from_epoch: int = 0):
        if from_epoch < 0:
            raise ValueError(f"from_epoch must be at least 0, got {from_epoch}")
        self.from_epoch = from_epoch
        self.total = torch.zeros(0, dtype=torch.float64)
        self.visits = torch.zeros(0, dtype=torch.int64)
        self._measured = -1

    def before_epoch(self, run: Run) -> None:
        if run.step == 0:
            if self.from_epoch >= run.settings.epochs:
                raise SpecError(
                    f"area-under-margin would record nothing: from_epoch={self.from_epoch} is not below the "
                    f"{run.settings.epochs} epochs of training. Lower it."
                )
            self.total = torch.zeros(len(run.train), dtype=torch.float64)
            self.visits = torch.zeros(len(run.train), dtype=torch.int64)
            self._measured = -1

    def __call__(self, run: Run, batch: Batch, output: Output) -> Float[Tensor, ""]:
        # a stepper may ask for the loss twice in a step, at other weights
        if run.epoch >= self.from_epoch and run.step != self._measured:
            self._measured = run.step
            found = run.gather(margin(output.logits.detach(), batch.target.single()))
            rows = run.gather(batch.index).cpu()
            self.total.index_add_(0, rows, found.double().cpu())
            self.visits.index_add_(0, rows, torch.ones_like(rows))
        return output.logits.new_zeros(())

    @property
    def area(self) -> Float[Tensor, "N"]:
        """The mean margin of each training row so far, (N,) float64; NaN where no step has seen it."""
        return torch.where(self.visits > 0, self.total / self.visits, torch.nan)

    def row_columns(self) -> dict[str, Tensor]:
        return {COLUMN: self.area} if len(self.total) else {}

    def state_dict(self) -> dict[str, Any]:
        return {"total": self.total, "visits": self.visits}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.total, self.visits, self._measured = state["total"], state["visits"], -1
