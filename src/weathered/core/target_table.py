"""TargetTable: a distribution over classes, or a vector, for each training row, averaged over what was said of it.

    T[i] <- momentum * T[i] + (1 - momentum) * p_i        each time row i is visited
A distribution starts from the given label of its row.
Limits: momentum = 1 keeps the start, momentum = 0 keeps the last prediction. After n visits with one prediction p,
T = momentum^n * start + (1 - momentum^n) * p.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from weathered.core import distributed

if TYPE_CHECKING:
    from weathered.core.run import Run


def label_table(labels: Int[Tensor, "N"], num_classes: int, smoothing: float = 0.0) -> Float[Tensor, "N C"]:
    """(1 - smoothing) onehot + smoothing / C for each label, (N, C) float32. smoothing in [0, 1).

    Raises ValueError for a smoothing or a label out of range.
    """
    if not 0 <= smoothing < 1:
        raise ValueError(f"smoothing must be in [0, 1), got {smoothing}")
    if len(labels) and not (int(labels.min()) >= 0 and int(labels.max()) < num_classes):
        wrong = int(((labels < 0) | (labels >= num_classes)).nonzero()[0])
        raise ValueError(f"labels must be in [0, {num_classes - 1}], got {int(labels[wrong])} at position {wrong}")
    table = torch.full((len(labels), num_classes), smoothing / num_classes, device=labels.device)
    return table.scatter_add_(1, labels[:, None], table.new_full((len(labels), 1), 1 - smoothing))


def averaged_targets(
    table: Float[Tensor, "N C"], index: Int[Tensor, "B"], probability: Float[Tensor, "B C"], momentum: float
) -> Float[Tensor, "B C"]:
    """momentum * table[index] + (1 - momentum) * probability, (B, C) float32; the table itself is left alone.

    probability (B, C): rows that sum to 1, without gradient; for a float32 table any vectors. momentum in [0, 1]. A row
    that the batch holds twice is visited once, by the mean of its predictions, so that the order of a batch never
    matters. Rows of a float16 table are scaled to sum to 1.
    To update the table: table[index] = averaged_targets(table, index, probability, momentum).
    Raises IndexError for an index outside the table, ValueError for a momentum out of range, shapes that do not fit, or
    a probability that is not finite, which would stay in its row for ever.
    """
    check_momentum(momentum)
    if probability.shape != (len(index), table.shape[1]):
        raise ValueError(
            f"probability must be ({len(index)}, {table.shape[1]}) for {len(index)} rows of a table of "
            f"{table.shape[1]} classes, got {tuple(probability.shape)}"
        )
    if len(index) and not (int(index.min()) >= 0 and int(index.max()) < len(table)):
        wrong = int(((index < 0) | (index >= len(table))).nonzero()[0])
        raise IndexError(f"index must be in [0, {len(table) - 1}], got {int(index[wrong])} at position {wrong}")
    if not bool(torch.isfinite(probability).all()):
        raise ValueError(f"probability must be finite, row {int((~probability.isfinite()).any(1).nonzero()[0])} is not")
    old = table[index].float()
    if table.dtype == torch.float16:
        old = old / old.sum(1, keepdim=True)
    return momentum * old + (1 - momentum) * _mean_of_equal_rows(index, probability.detach().float())


def _mean_of_equal_rows(index: Int[Tensor, "B"], values: Float[Tensor, "B C"]) -> Float[Tensor, "B C"]:
    rows, place = index.unique(return_inverse=True)
    if len(rows) == len(index):
        return values
    sums = values.new_zeros(len(rows), values.shape[1]).index_add_(0, place, values)
    return (sums / torch.bincount(place)[:, None])[place]


def certainty_weights(targets: Float[Tensor, "B C"]) -> Float[Tensor, "B"]:
    """The largest entry of each row, divided by the mean of these over the batch: (B,) with mean 1."""
    largest = targets.detach().amax(1)
    return largest / largest.mean()


def check_momentum(momentum: float) -> None:
    """Raise ValueError unless momentum lies in [0, 1]."""
    if not 0 <= momentum <= 1:
        raise ValueError(f"momentum must be in [0, 1], got {momentum}")


class TargetTable:
    """The table of one run, the same on all processes.

    start (N, C): what the rows start from, copied, as by `label_table`. momentum in [0, 1]: of the average.
    half: keep distributions in float16, half of their N C 4 bytes. rows (N, C): the table.
    A procedure calls `begin` before a step, `visit` in its loss and `commit` after the step: a stepper that asks for
    the loss again meets the same targets, and a step that fails leaves the table as it was.
    """

    def __init__(self, start: Float[Tensor, "N C"], momentum: float, half: bool = False):
        check_momentum(momentum)
        self.momentum = momentum
        self.rows = start.detach().to(torch.float16 if half else torch.float32, copy=True)
        self._visited: tuple[Tensor, Tensor] | None = None

    def begin(self) -> None:
        """Forget what a step that was not completed had asked for."""
        self._visited = None

    def visit(self, run: Run, index: Int[Tensor, "B"], probability: Float[Tensor, "B C"]) -> Float[Tensor, "B C"]:
        """The targets of this process's rows after their visit in this step, (B, C) float32 without gradient."""
        if self._visited is None:
            everyone = run.gather(index)
            new = averaged_targets(self.rows, everyone, run.gather(probability), self.momentum)
            self._visited = everyone, new
        return distributed.local(run.fabric, self._visited[1])

    def commit(self) -> None:
        """Write the visited rows of all processes into the table."""
        if self._visited is not None:
            index, new = self._visited
            self.rows[index] = new.to(self.rows.dtype)
        self._visited = None

    def state_dict(self) -> dict[str, Any]:
        return {"rows": self.rows}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take back what `state_dict` gave; raises ValueError for a table of another shape."""
        if state["rows"].shape != self.rows.shape:
            raise ValueError(
                f"the table is {tuple(self.rows.shape)} for these data, the one saved is {tuple(state['rows'].shape)}"
            )
        self.rows.copy_(state["rows"])
        self._visited = None
