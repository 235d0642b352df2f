"""Label quality of each sample from out-of-sample probabilities: the lower, the more suspicious is the label.

Let p be the probabilities that a model which never saw the sample gives it, y its given label and C the number of
classes. Three scores in [0, 1], under the names and with the scale of cleanlab (Kuan and Mueller, "Model-agnostic
label quality scoring to detect real-world label errors", ICML DataPerf Workshop 2022):

    self-confidence                p[y]
    normalised margin              (1 + p[y] - max_{k != y} p[k]) / 2
    confidence-weighted entropy    log(1 + x) / x  with  x = H(p) / (p[y] log C),  H the Shannon entropy

Limits: a certain prediction of the label scores 1 in all three; a certain prediction of another class scores 0. Two
classes: the normalised margin is the self-confidence. Uniform p: 1/C, 1/2 and log(1 + C) / C.

The confidence-weighted entropy is continued to its limits, 1 for x -> 0 and 0 for p[y] -> 0. cleanlab 2.9 clips p[y]
and x at 1e-6 instead, by which it gives a certain prediction of the label the score 0; where p[y] and x are larger
than that, the two are the same.
"""

from typing import Literal, NamedTuple, get_args

import numpy as np
from torch import Tensor

from weathered.audit.labels.blocks import (
    Matrix,
    check_labels,
    check_probabilities,
    open_matrix,
    row_blocks,
)
from weathered.core.errors import DataError, SpecError
from weathered.core.watch import Progress

Score = Literal["corrected_confidence", "self_confidence", "normalised_margin", "confidence_weighted_entropy"]
"""Names of the scores; for all of them lower is more suspicious. The first needs more than its row, see its file."""


class RowSummary(NamedTuple):
    """What scores need of each row, as arrays (N,): all that stays in memory of (N, C) probabilities.

    own: p[y]. other: the largest probability of another class. other_class: that class, the lowest where several
    share it. entropy: H(p) / log C in [0, 1], or None where it was not asked for.
    """

    own: np.ndarray
    other: np.ndarray
    other_class: np.ndarray
    entropy: np.ndarray | None


def row_summary(
    probabilities: Matrix,
    labels: np.ndarray | Tensor,
    *,
    entropy: bool = False,
    block_rows: int | None = None,
    progress: Progress | None = None,
) -> RowSummary:
    """Read the probabilities once, check them, and keep a few numbers of each row.

    probabilities (N, C), C >= 2: float32 or float64, rows that sum to 1. labels (N,): in [0, C). entropy: whether to
    compute it, the slow part. The result is the same for any block_rows.
    Raises DataError for the first row that is no distribution and the first label out of range.
    """
    matrix = open_matrix(probabilities, "Probabilities")
    n, num_classes = matrix.shape
    if num_classes < 2:
        raise DataError("Label quality needs probabilities of at least 2 classes, got 1 column.")
    given = check_labels(labels, n, num_classes)
    own, other, other_class = np.empty(n), np.empty(n), np.empty(n, np.int64)
    spread = np.empty(n) if entropy else None
    for start, block in row_blocks(matrix, "reading the probabilities", block_rows, progress):
        check_probabilities(block, start)
        part, rows = slice(start, start + len(block)), np.arange(len(block))
        own[part] = block[rows, given[part]]
        rest = block.copy()
        rest[rows, given[part]] = -1
        other_class[part] = rest.argmax(axis=1)
        other[part] = rest[rows, other_class[part]]
        if spread is not None:
            # 0 log 0 is 0: the logarithm of the smallest number stands in for that of 0
            logs = np.log(np.maximum(block, np.finfo(np.float64).tiny))
            spread[part] = np.maximum(-(block * logs).sum(axis=1), 0) / np.log(num_classes)
    return RowSummary(own, other, other_class, spread)


def of_row(rows: RowSummary, score: Score) -> np.ndarray:
    """One of the scores (N,) that need their row alone, of rows already summarised, lower = more suspicious.

    Raises SpecError if the name is unknown, and ValueError if the entropy is asked for but was not computed, or a
    score that needs all rows.
    """
    check_score(score)
    if score == "corrected_confidence":
        raise ValueError("corrected_confidence needs what was counted over all rows, see quality.py")
    if score == "self_confidence":
        return rows.own
    if score == "normalised_margin":
        return (rows.own - rows.other + 1) / 2
    if rows.entropy is None:
        raise ValueError("confidence_weighted_entropy needs row_summary(..., entropy=True)")
    with np.errstate(divide="ignore", invalid="ignore"):
        x = rows.entropy / rows.own
        value = np.log1p(x) / x
    value = np.where(x == 0, 1.0, value)
    return np.where((rows.own == 0) | np.isinf(x), 0.0, value)


def predicted_class(rows: RowSummary, labels: np.ndarray) -> np.ndarray:
    """The most probable class (N,); the given label where another class is only as probable."""
    return np.where(rows.other > rows.own, rows.other_class, labels)


def check_score(score: str) -> None:
    """Raise SpecError unless this is the name of a score."""
    if score not in get_args(Score):
        raise SpecError(f"The score of labels must be one of {', '.join(get_args(Score))}, got '{score}'.")
