"""Which labels are probably wrong: pruning by confident learning, ranked by a score of label quality.

Source: Northcutt et al., JAIR 2021, section 3.2. With the calibrated confident joint Q, in counts of samples:

    by_class                 of each label i the samples of lowest self-confidence, as many as lie off Q's diagonal
    prune_by_noise_rate      for each pair i != j the Q[i, j] samples labelled i with the largest p[j] - p[i]
    both                     those that both of these name
    confident_off_diagonal   those that confidently belong to another class than their label

In cleanlab 2.9 these are `prune_by_class`, `prune_by_noise_rate`, `both` and `confident_learning`. As there, a sample
whose label is its most probable class is never named. Ties go to the earlier row.
"""

from collections.abc import Iterator
from typing import Literal, NamedTuple, get_args

import numpy as np
from torch import Tensor

from weathered.audit.labels.blocks import Matrix, open_matrix, row_blocks
from weathered.audit.labels.confident import TOLERANCE, ArgmaxOver, ConfidentLearning, confident_learning
from weathered.audit.labels.quality import DEFAULT, quality
from weathered.audit.labels.scores import Score, check_score, predicted_class
from weathered.core.errors import DataError, SpecError
from weathered.core.watch import Progress

Method = Literal["prune_by_noise_rate", "by_class", "both", "confident_off_diagonal"]

FIRST_ROWS = 64
"""Rows that are compared before there are cutoffs; then twice as many, until whole blocks are."""

PENDING = 2**15
"""Candidates that are gathered, at least, before the best of them are kept."""


class Issues(NamedTuple):
    """Labels that are probably wrong.

    mask (N,): bool. rows (M,): the same as row numbers, most suspicious first. score (N,): of all samples, lower =
    more suspicious. suggested (N,): the most probable class, which is the label itself where that is most probable.
    """

    mask: np.ndarray
    rows: np.ndarray
    score: np.ndarray
    suggested: np.ndarray

    def ranked_by(self, score: np.ndarray) -> "Issues":
        """The same labels in the order of another score (N,), lower = more suspicious; ties go to the earlier row.

        Raises DataError unless there is one finite value for each label.
        """
        if score.shape != self.mask.shape or not np.isfinite(score).all():
            raise DataError(f"A ranking needs one finite value for each of {len(self.mask)} labels.")
        found = self.mask.nonzero()[0]
        return self._replace(rows=found[np.argsort(score[found], kind="stable")], score=score)


def find_issues(
    probabilities: Matrix,
    labels: np.ndarray | Tensor,
    *,
    method: Method = "prune_by_noise_rate",
    score: Score = DEFAULT,
    argmax_over: ArgmaxOver = "confident",
    keep_per_class: int = 1,
    block_rows: int | None = None,
    progress: Progress | None = None,
) -> Issues:
    """Name the labels that are probably wrong and rank them.

    probabilities (N, C), C >= 2: out-of-sample, rows that sum to 1. labels (N,): in [0, C). score: what ranks them.
    argmax_over: see `confident`. keep_per_class >= 0: pruning leaves each class this many samples, and names none in
    a class that has no more; `confident_off_diagonal` does not prune.
    Raises SpecError for unknown names, DataError for probabilities and labels that do not fit, and ValueError for
    other values out of range.
    """
    check_score(score)
    check_method(method)
    matrix = open_matrix(probabilities, "Probabilities")
    learnt = confident_learning(
        matrix,
        labels,
        argmax_over=argmax_over,
        entropy=score == "confidence_weighted_entropy",
        block_rows=block_rows,
        progress=progress,
    )
    return issues_of(
        learnt,
        matrix,
        method=method,
        score=score,
        keep_per_class=keep_per_class,
        block_rows=block_rows,
        progress=progress,
    )


def issues_of(
    learnt: ConfidentLearning,
    probabilities: Matrix,
    *,
    method: Method = "prune_by_noise_rate",
    score: Score = DEFAULT,
    keep_per_class: int = 1,
    block_rows: int | None = None,
    progress: Progress | None = None,
) -> Issues:
    """`find_issues` where confident learning has counted already; `probabilities` are those that it counted."""
    check_score(score)
    check_method(method)
    if keep_per_class < 0:
        raise ValueError(f"keep_per_class must be at least 0, got {keep_per_class}")
    labels, rows = learnt.labels, learnt.rows
    if method == "confident_off_diagonal":
        mask = (learnt.classes >= 0) & (learnt.classes != labels)
    else:
        mask = np.ones(len(labels), bool)
        if method != "prune_by_noise_rate":
            kept = np.maximum(learnt.calibrated.diagonal(), keep_per_class)
            mask &= lowest_of_each_class(rows.own, labels, learnt.class_counts - kept)
        if method != "by_class":
            counts = counts_to_prune(learnt.calibrated, learnt.class_counts, keep_per_class)
            matrix = open_matrix(probabilities, "Probabilities")
            blocks = row_blocks(matrix, "comparing pairs of classes", block_rows, progress)
            mask &= largest_margins(blocks, labels, counts)
    mask &= rows.other - rows.own > TOLERANCE
    scores, found = quality(learnt, probabilities, score, progress=progress), mask.nonzero()[0]
    return Issues(mask, found, scores, predicted_class(rows, labels)).ranked_by(scores)


def counts_to_prune(calibrated: np.ndarray, class_counts: np.ndarray, keep: int) -> np.ndarray:
    """How many samples (C, C) of label i to prune for probably being of class j; 0 on the diagonal.

    A diagonal count below `keep` is raised to it, taking equal parts, rounded down, from the row's other counts.
    """
    diagonal = calibrated.diagonal()
    lacking = np.maximum(keep - diagonal, 0)
    others = np.maximum(np.count_nonzero(calibrated, axis=1) - 1, 1)
    counts = np.floor(np.maximum(calibrated - (lacking / others)[:, None], 0)).astype(np.int64)
    np.fill_diagonal(counts, 0)
    counts[class_counts <= keep] = 0
    return counts


def lowest_of_each_class(own: np.ndarray, labels: np.ndarray, counts: np.ndarray) -> np.ndarray:
    """Mask (N,) of the counts[k] samples labelled k with the lowest self-confidence `own` (N,)."""
    order = np.lexsort((own, labels))
    mask = np.zeros(len(labels), bool)
    mask[order] = _rank_in_group(labels[order]) < counts[labels[order]]
    return mask


def largest_margins(blocks: Iterator[tuple[int, np.ndarray]], labels: np.ndarray, counts: np.ndarray) -> np.ndarray:
    """Mask (N,) of the counts[i, j] samples labelled i with the largest p[j] - p[i], for all pairs in one pass.

    blocks: as from `row_blocks`. counts (C, C): 0 on the diagonal. Of each pair the best so far are kept; the worst
    of a full pair is the cutoff that later rows must exceed. Without cutoffs every class of every row is a candidate,
    so the first pieces are short. Memory: 48 bytes for each sample to be found and one C x C matrix besides a block.
    """
    size, wanted = len(counts), counts.ravel()
    cutoff = np.where(counts > 0, -np.inf, np.inf)
    kept = pending = _Candidates.none()
    for start, block in _growing(blocks):
        given = labels[start : start + len(block)]
        margins = block - block[np.arange(len(block)), given][:, None]
        cells = np.flatnonzero(margins > cutoff[given])
        place, other = np.divmod(cells, size)
        pending = pending.and_then(_Candidates(given[place] * size + other, margins.ravel()[cells], start + place))
        if len(pending.rows) > max(len(kept.rows), PENDING):
            kept, pending = kept.and_then(pending).best(wanted, cutoff), _Candidates.none()
    kept = kept.and_then(pending).best(wanted, cutoff)
    mask = np.zeros(len(labels), bool)
    mask[kept.rows] = True
    return mask


def _growing(blocks: Iterator[tuple[int, np.ndarray]]) -> Iterator[tuple[int, np.ndarray]]:
    """The same rows in pieces that double from `FIRST_ROWS` until they are the blocks."""
    size = FIRST_ROWS
    for start, block in blocks:
        at = 0
        while at < len(block):
            yield start + at, block[at : at + size]
            at, size = at + size, size * 2


class _Candidates(NamedTuple):
    """Samples for pairs of classes: pair i * C + j, margin and row of each, aligned; equal margins in order of rows."""

    pairs: np.ndarray
    margins: np.ndarray
    rows: np.ndarray

    @staticmethod
    def none() -> "_Candidates":
        return _Candidates(np.empty(0, np.int64), np.empty(0), np.empty(0, np.int64))

    def and_then(self, later: "_Candidates") -> "_Candidates":
        return _Candidates(*(np.concatenate(columns) for columns in zip(self, later, strict=True)))

    def best(self, wanted: np.ndarray, cutoff: np.ndarray) -> "_Candidates":
        """The wanted[pair] largest margins of each pair; the last of each full pair goes into `cutoff`."""
        order = np.lexsort((-self.margins, self.pairs))
        pairs = self.pairs[order]
        rank = _rank_in_group(pairs)
        last = rank == wanted[pairs] - 1
        cutoff.ravel()[pairs[last]] = self.margins[order[last]]
        order = order[rank < wanted[pairs]]
        return _Candidates(*(column[order] for column in self))


def _rank_in_group(groups: np.ndarray) -> np.ndarray:
    """Position of each element among its equals, for sorted groups (N,)."""
    begins = np.flatnonzero(np.concatenate(([True], groups[1:] != groups[:-1]))) if len(groups) else groups
    return np.arange(len(groups)) - np.repeat(begins, np.diff(begins, append=len(groups)))


def check_method(method: str) -> None:
    """Raise SpecError unless this is the name of a method."""
    if method not in get_args(Method):
        raise SpecError(f"The method to find issues must be one of {', '.join(get_args(Method))}, got '{method}'.")
