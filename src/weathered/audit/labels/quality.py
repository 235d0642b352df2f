"""The score of each label by its name, whether it needs its row alone or what was counted over all rows."""

import numpy as np
from torch import Tensor

from weathered.audit.labels.blocks import Matrix
from weathered.audit.labels.confident import ConfidentLearning, confident_learning
from weathered.audit.labels.corrected_confidence import corrected_confidence
from weathered.audit.labels.scores import Score, check_score, of_row, row_summary
from weathered.core.watch import Progress

DEFAULT: Score = "corrected_confidence"
"""Chosen on CIFAR-10N; the claims `label-audit-worst` and `label-audit-aggregate` measure it."""


def quality(
    learnt: ConfidentLearning, probabilities: Matrix, score: Score = DEFAULT, *, progress: Progress | None = None
) -> np.ndarray:
    """One of the scores (N,) where confident learning has counted already, lower = more suspicious.

    Only `corrected_confidence` reads the probabilities. Raises SpecError if the name is unknown, and ValueError if the
    entropy is asked for but was not computed.
    """
    check_score(score)
    if score == "corrected_confidence":
        return corrected_confidence(learnt, probabilities, progress=progress)
    return of_row(learnt.rows, score)


def label_quality(
    probabilities: Matrix,
    labels: np.ndarray | Tensor,
    score: Score = DEFAULT,
    *,
    block_rows: int | None = None,
    progress: Progress | None = None,
) -> np.ndarray:
    """Score (N,) float64 of each label, in [0, 1] up to the rounding of the rows' sums, lower = more suspicious.

    probabilities (N, C), C >= 2: out-of-sample, rows that sum to 1. labels (N,): in [0, C). block_rows: rows read at a
    time, which changes no result. Raises DataError as `row_summary`, SpecError if `score` is unknown.
    """
    check_score(score)
    if score == "corrected_confidence":
        learnt = confident_learning(probabilities, labels, block_rows=block_rows, progress=progress)
        return quality(learnt, probabilities, score, progress=progress)
    entropy = score == "confidence_weighted_entropy"
    return of_row(row_summary(probabilities, labels, entropy=entropy, block_rows=block_rows, progress=progress), score)
