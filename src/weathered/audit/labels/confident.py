"""Confident learning: how many samples with label i probably belong to class j, by counting confident predictions.

Source: Northcutt, Jiang and Chuang, "Confident learning: estimating uncertainty in dataset labels", JAIR 70 (2021).
With out-of-sample probabilities p and given labels y, each class has the threshold

    t_k = mean of p_k over the samples labelled k

A sample counts as confidently of the class argmax p_k among the classes with p_k >= t_k (their eq. 1), and as of none
if no class reaches its threshold. The confident joint holds these counts, rows for the given label and columns for
the estimated true one. Calibrated, each row is scaled to the number of samples with that label.

Limits: where each sample's label is certain, the joint is diagonal; a model that gives all samples the same
probabilities counts all of them as its most probable class. Two details follow cleanlab 2.9 so that counts
are comparable: comparisons allow 1e-6 for rounding, and each diagonal count is at least 1.

Where several classes reach their threshold, the text of the paper and cleanlab 2.9 take the argmax over all classes,
which can be a class that does not reach its own (cleanlab#1248). `argmax_over="all"` counts that way.
"""

from dataclasses import dataclass
from typing import Literal, get_args

import numpy as np
from torch import Tensor

from weathered.audit.labels.blocks import Matrix, check_labels, open_matrix, row_blocks
from weathered.audit.labels.scores import RowSummary, row_summary
from weathered.core.errors import SpecError
from weathered.core.watch import Progress

ArgmaxOver = Literal["confident", "all"]

TOLERANCE = 1e-6
"""How far a probability may lie below a threshold and still reach it."""

SMALLEST_THRESHOLD = 2 * TOLERANCE
"""Thresholds are at least this, so that a probability of 0 reaches none."""


@dataclass(frozen=True)
class ConfidentLearning:
    """What confident learning counts on N samples of C classes.

    labels (N,): the given ones. rows: see `RowSummary`. class_counts (C,): samples with each label. thresholds (C,):
    infinite for a class that no sample is labelled as. classes (N,): the class that each sample confidently belongs
    to, -1 for none. joint (C, C): counts, given label by class. calibrated (C, C): the same scaled to integers whose
    rows sum to class_counts. argmax_over: the rule that was used.
    """

    labels: np.ndarray
    rows: RowSummary
    class_counts: np.ndarray
    thresholds: np.ndarray
    classes: np.ndarray
    joint: np.ndarray
    calibrated: np.ndarray
    argmax_over: ArgmaxOver


def confident_thresholds(own: np.ndarray, labels: np.ndarray, num_classes: int) -> np.ndarray:
    """Mean self-confidence (C,) of the samples of each label; infinite where there is none.

    own (N,): p[y]. labels (N,): in [0, C).
    """
    counts = np.bincount(labels, minlength=num_classes)
    sums = np.bincount(labels, weights=own, minlength=num_classes)
    return thresholds_of(sums, counts)


def thresholds_of(sums: np.ndarray, counts: np.ndarray) -> np.ndarray:
    """Thresholds (C,) from each class's sum of self-confidences and its number of samples."""
    means = np.full(len(counts), np.inf)
    np.divide(sums, counts, out=means, where=counts > 0)
    return np.maximum(means, SMALLEST_THRESHOLD)


def confident_classes(
    probabilities: Matrix,
    thresholds: np.ndarray,
    *,
    argmax_over: ArgmaxOver = "confident",
    block_rows: int | None = None,
    progress: Progress | None = None,
) -> np.ndarray:
    """The class (N,) that each sample confidently belongs to, -1 for none; ties go to the lowest class.

    probabilities (N, C): distributions, not checked here. thresholds (C,): above `TOLERANCE`.
    argmax_over: over the classes that reach their threshold, or over all classes where at least two reach it.
    Raises SpecError if that rule is unknown.
    """
    if argmax_over not in get_args(ArgmaxOver):
        raise SpecError(f"argmax_over must be one of {', '.join(get_args(ArgmaxOver))}, got '{argmax_over}'.")
    matrix, bars = open_matrix(probabilities, "Probabilities"), thresholds - TOLERANCE
    found = np.empty(len(matrix), np.int64)
    for start, block in row_blocks(matrix, "counting confident predictions", block_rows, progress):
        reached, rows = block >= bars, np.arange(len(block))
        best = np.where(reached, block, -1.0).argmax(axis=1)
        any_reached = reached[rows, best]
        if argmax_over == "all":
            best = np.where(np.count_nonzero(reached, axis=1) > 1, block.argmax(axis=1), best)
        found[start : start + len(block)] = np.where(any_reached, best, -1)
    return found


def confident_joint(labels: np.ndarray, classes: np.ndarray, num_classes: int) -> np.ndarray:
    """Counts (C, C) int64 of given label by confident class; the diagonal is at least 1.

    labels (N,): in [0, C). classes (N,): in [-1, C), where -1 is not counted.
    """
    sure = classes >= 0
    cells = np.bincount(labels[sure] * num_classes + classes[sure], minlength=num_classes**2)
    return at_least_one_on_the_diagonal(cells.reshape(num_classes, num_classes))


def at_least_one_on_the_diagonal(joint: np.ndarray) -> np.ndarray:
    """A copy of the counts (C, C) with each diagonal one at least 1."""
    joint = joint.copy()
    np.fill_diagonal(joint, np.maximum(joint.diagonal(), 1))
    return joint


def calibrate(joint: np.ndarray, class_counts: np.ndarray) -> np.ndarray:
    """Rows of the joint (C, C) scaled to sum to class_counts (C,), as float64; each row needs a count."""
    return joint * (class_counts / joint.sum(axis=1))[:, None]


def rows_to_one(matrix: np.ndarray) -> np.ndarray:
    """Rows of counts (C, C) divided by their sums; NaN in rows without any."""
    totals = matrix.sum(axis=1, keepdims=True)
    return np.divide(matrix, totals, out=np.full(matrix.shape, np.nan), where=totals > 0)


def calibrated_counts(joint: np.ndarray, class_counts: np.ndarray) -> np.ndarray:
    """Rows of the joint (C, C) of integers scaled to sum to class_counts (C,), as int64, by largest remainders.

    All in integer arithmetic, so that equal remainders are seen as equal. Among those the diagonal comes first, then
    the classes that follow it in cyclic order, which favours no class; cleanlab leaves them to an unstable sort.
    """
    size, totals = len(joint), joint.sum(axis=1)[:, None]
    whole, remainder = np.divmod(joint * class_counts[:, None], totals)
    missing = class_counts - whole.sum(axis=1)
    # column d of these stands for class (row + d) mod C
    cyclic = (np.arange(size)[:, None] + np.arange(size)) % size
    order = np.argsort(-np.take_along_axis(remainder, cyclic, axis=1), axis=1, kind="stable")
    chosen = np.take_along_axis(cyclic, order, axis=1)
    extra = (np.arange(size) < missing[:, None]).astype(np.int64)
    unit = np.zeros_like(whole)
    np.put_along_axis(unit, chosen, extra, axis=1)
    return whole + unit


def confident_learning(
    probabilities: Matrix,
    labels: np.ndarray | Tensor,
    *,
    argmax_over: ArgmaxOver = "confident",
    entropy: bool = False,
    block_rows: int | None = None,
    progress: Progress | None = None,
) -> ConfidentLearning:
    """Count confident predictions in two passes over the probabilities.

    probabilities (N, C), C >= 2: out-of-sample, rows that sum to 1. labels (N,): in [0, C). argmax_over: see the
    module. entropy: keep the entropy of each row as well, for the score that needs it. Memory besides the
    probabilities grows with N and with C^2. Raises DataError as `row_summary`, SpecError as `confident_classes`.
    """
    matrix = open_matrix(probabilities, "Probabilities")
    num_classes = matrix.shape[1]
    rows = row_summary(matrix, labels, entropy=entropy, block_rows=block_rows, progress=progress)
    given = check_labels(labels, len(matrix), num_classes)
    thresholds = confident_thresholds(rows.own, given, num_classes)
    classes = confident_classes(matrix, thresholds, argmax_over=argmax_over, block_rows=block_rows, progress=progress)
    counts = np.bincount(given, minlength=num_classes)
    joint = confident_joint(given, classes, num_classes)
    return ConfidentLearning(
        given, rows, counts, thresholds, classes, joint, calibrated_counts(joint, counts), argmax_over
    )
