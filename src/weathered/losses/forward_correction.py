"""Forward correction: cross entropy of the given label under the prediction as label noise would change it.

Source: Patrini et al., "Making Deep Neural Networks Robust to Label Noise: a Loss Correction Approach", CVPR 2017.
L = -log sum_i T[i, y] p_i for p = softmax(z) and T[i, j] = P(given label j | true class i). Where T is right and has an
inverse, the minimiser of the expected loss is the posterior of the clean labels (theorem 2).
Limits: T = identity is cross entropy; for symmetric noise of rate r, T[i, i] = 1 - r and T[i, j] = r / (C - 1).
"""

import math
from collections.abc import Sequence
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn import functional as F

from weathered.core.errors import CheckpointError
from weathered.core.roles import Part
from weathered.data.matrix_file import read_matrix
from weathered.losses.cross_entropy import cross_entropy
from weathered.weighting.base import check_labels

Transition = Float[Tensor, "C C"] | Sequence[Sequence[float]]
"""P(given label | true class): a row for each true class, a column for each given label."""

TOLERANCE = 1e-2
"""How far the sum of a row may lie from 1: matrices are often written down with few digits."""


def check_transition(transition: Transition, num_classes: int | None = None) -> Float[Tensor, "C C"]:
    """The matrix as float64, rows scaled to sum to 1.

    Raises ValueError unless it is square, with at least two rows and `num_classes` of them where that is given, its
    entries are >= 0, its rows sum to 1 within 0.01, every column has an entry above 0, and it has an inverse.
    """
    matrix = torch.as_tensor(transition).double()
    if matrix.ndim != 2 or matrix.shape[0] != matrix.shape[1] or len(matrix) < 2:
        raise ValueError(f"transition must be (C, C) with C >= 2, got shape {tuple(matrix.shape)}")
    if num_classes not in (None, len(matrix)):
        raise ValueError(f"transition is {len(matrix)} by {len(matrix)}, but the data have {num_classes} classes")
    if not (matrix.isfinite() & (matrix >= 0)).all():
        row, column = (int(place) for place in (~(matrix.isfinite() & (matrix >= 0))).nonzero()[0])
        raise ValueError(f"transition must be >= 0, got {float(matrix[row, column]):g} in row {row}, column {column}")
    sums = matrix.sum(1)
    if (off := (sums - 1).abs() > TOLERANCE).any():
        row = int(off.nonzero()[0])
        turned = ((matrix.sum(0) - 1).abs() <= TOLERANCE).all()
        hint = "; its columns do: transpose it" if turned else ""
        raise ValueError(f"each row of transition must sum to 1, row {row} sums to {float(sums[row]):.4g}{hint}")
    if (matrix.sum(0) == 0).any():
        column = int((matrix.sum(0) == 0).nonzero()[0])
        raise ValueError(
            f"transition never leads to label {column}: its column is 0, so a sample with that label would have an "
            "infinite loss; give the column a small share"
        )
    if int(torch.linalg.matrix_rank(matrix)) < len(matrix):
        raise ValueError("transition has no inverse: some true classes lead to the same given labels")
    return matrix / sums[:, None]


def check_noise_rate(noise_rate: float, num_classes: int | None = None) -> None:
    """Raise ValueError unless the rate is in [0, 1 - 1/C); where C is not known, in [0, 1)."""
    highest = 1 - 1 / num_classes if num_classes else 1.0
    if not 0 <= noise_rate < highest:
        why = f": with {num_classes} classes the labels would say nothing from {highest:.4g} on" if num_classes else ""
        raise ValueError(f"noise_rate must be in [0, {highest:.4g}), got {noise_rate}{why}")


def forward_correction(
    logits: Float[Tensor, "B C"], labels: Int[Tensor, "B"], log_transition: Float[Tensor, "C C"]
) -> Float[Tensor, "B"]:
    """-log sum_i T[i, y] softmax(logits)_i per sample, in nats, computed in logarithms.

    logits (B, C), any real numbers; labels (B,) in [0, C), else ValueError. log_transition (C, C): log T in the type of
    the logits, minus infinity where T is 0; fastest where its transpose is contiguous.
    """
    try:
        columns = log_transition.T.index_select(0, labels)
    except IndexError:
        check_labels(labels, len(log_transition))
        raise
    return -torch.logsumexp(F.log_softmax(logits, 1) + columns, 1)


def symmetric_forward_correction(
    logits: Float[Tensor, "B C"], labels: Int[Tensor, "B"], noise_rate: float
) -> Float[Tensor, "B"]:
    """`forward_correction` for symmetric noise: -log(s + (1 - noise_rate - s) p_y), s = noise_rate / (C - 1).

    logits (B, C), any real numbers; labels (B,) in [0, C), else an error as in cross entropy.
    Raises ValueError unless noise_rate is in [0, 1 - 1/C).
    """
    check_noise_rate(noise_rate, logits.shape[1])
    share = noise_rate / (logits.shape[1] - 1)
    log_p = math.log(1 - noise_rate - share) - cross_entropy(logits, labels)
    return -torch.logaddexp(log_p, torch.full_like(log_p, math.log(share) if share else -math.inf))


def estimate_transition(probabilities: Float[Tensor, "N C"], quantile: float = 0.97) -> Float[Tensor, "C C"]:
    """Estimate T from a model trained with cross entropy on the noisy labels; (C, C) float64, rows sum to 1.

    probabilities (N, C): the model's, for any inputs of all classes, rows that sum to 1. Row i of T is the prediction
    for the anchor of class i: the input whose probability of i stands at `quantile` of all N, 1 for the largest.
    Below 1 it passes over outliers, but must leave out less than a class: 1 - quantile < 1 / C, so that many classes
    need 1. The authors take 0.97, and 1 for 100 classes. A model that has memorised its labels gives the identity.
    Raises ValueError if an argument is out of range or two classes have the same anchor.
    """
    if probabilities.ndim != 2 or probabilities.shape[1] < 2 or not len(probabilities):
        raise ValueError(f"probabilities must be (N, C), N >= 1, C >= 2, got shape {tuple(probabilities.shape)}")
    if wrong := _first_wrong_row(probabilities):
        raise ValueError(f"probabilities must be >= 0 and sum to 1 in each row, row {wrong[0]} sums to {wrong[1]:.4g}")
    size, classes = probabilities.shape
    if not 1 - 1 / classes < quantile <= 1:
        raise ValueError(f"quantile must be in ({1 - 1 / classes:.4g}, 1] for {classes} classes, got {quantile}")
    place = math.floor(quantile * (size - 1))
    anchors = torch.argsort(probabilities, dim=0, stable=True)[place]
    if len(anchors.unique()) < classes:
        first = next(i for i in range(classes) if int((anchors == anchors[i]).sum()) > 1)
        raise ValueError(
            f"class {first} has the anchor of another class, so the model does not tell them apart; train it longer, "
            "or give more inputs"
        )
    rows = probabilities[anchors].double()
    return rows / rows.sum(1, keepdim=True)


def _first_wrong_row(probabilities: Tensor) -> tuple[int, float] | None:
    """The first row that is no distribution, and its sum; NaN is none."""
    sums = probabilities.double().sum(1)
    wrong = ~((sums - 1).abs() <= 1e-3) | ~(probabilities >= 0).all(1)
    return (row := int(wrong.nonzero()[0]), float(sums[row])) if wrong.any() else None


class ForwardCorrection(Part):
    """Cross entropy of the given label after the prediction passed through the label noise. Patrini et al., CVPR 2017.

    transition (C, C): P(given label | true class), a row for each true class; a tensor, nested lists, or a path to a
    .npy or .csv file. noise_rate in [0, 1 - 1/C): short for the matrix of symmetric noise. Exactly one of the two.
    num_classes: checked where it is known. Linear in the target. Predictions are those of the clean labels.
    """

    def __init__(
        self,
        transition: Transition | str | None = None,
        noise_rate: float | None = None,
        num_classes: int | None = None,
    ):
        if (transition is None) == (noise_rate is None):
            raise ValueError(
                "give either transition, a matrix or a file with one, or noise_rate, the share of wrong labels that "
                "are spread evenly over the other classes"
            )
        self.noise_rate = noise_rate
        self.transition: Tensor | None = None
        if noise_rate is not None:
            check_noise_rate(noise_rate, num_classes)
        elif transition is not None:
            matrix = read_matrix(transition) if isinstance(transition, str) else transition
            self.transition = check_transition(matrix, num_classes)
            self._exact = self.transition.T.log().contiguous()
            self._log_columns = self._exact

    def __call__(self, logits: Float[Tensor, "B C"], labels: Int[Tensor, "B"]) -> Float[Tensor, "B"]:
        logits = logits.float() if logits.dtype.itemsize < 4 else logits
        if self.noise_rate is not None:
            return symmetric_forward_correction(logits, labels, self.noise_rate)
        size = len(self._exact)
        if logits.ndim != 2 or logits.shape[1] != size:
            raise ValueError(f"logits must be (B, {size}) as transition is {size} wide, got {tuple(logits.shape)}")
        if (self._log_columns.dtype, self._log_columns.device) != (logits.dtype, logits.device):
            # kept, because the next step has logits of the same type
            self._log_columns = self._exact.to(logits)
        return forward_correction(logits, labels, self._log_columns.T)

    def state_dict(self) -> dict[str, Any]:
        """The matrix, since the file that it came from may change before a run is resumed."""
        return {} if self.transition is None else {"transition": self.transition}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Raises CheckpointError if the run was begun with another matrix."""
        if self.transition is None or not state:
            super().load_state_dict(state)
        elif not torch.equal(state["transition"].to(self.transition), self.transition):
            raise CheckpointError("transition is not the matrix that this run was begun with; put the old one back.")
