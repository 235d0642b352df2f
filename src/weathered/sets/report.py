"""What sets of labels are worth: how often they miss the label, how large they are, and top-K against average-K.

The error of a set rule is the share of inputs whose set lacks the label. Two rules can be compared only at equal mean
size, so every error stands beside the size that was really obtained.
"""

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Int
from torch import Tensor

from weathered.audit.labels.blocks import Matrix, check_labels, check_probabilities, open_matrix, row_blocks
from weathered.core.errors import DataError
from weathered.sets.average_k import global_cut
from weathered.sets.base import check_scores, check_size, check_size_for, mth_largest, own_scores
from weathered.sets.top_k import largest
from weathered.stats import Estimate, proportion_interval, sample_mean_interval


class SetReport(NamedTuple):
    """What was measured of N sets.

    error: share of sets without the label, Wilson interval. size: mean number of labels, normal interval.
    deviation: standard deviation of the number of labels over the N sets (divisor N). empty: share of sets without
    any label, Wilson interval. histogram (C + 1,) int64: how many sets hold 0, 1, ..., C labels.
    """

    error: Estimate
    size: Estimate
    deviation: float
    empty: Estimate
    histogram: np.ndarray


class CurvePoint(NamedTuple):
    """Both rules at one K, in expectation over the draws of equal scores and other than whole K.

    top_k, average_k: errors with Wilson intervals. gain: error of top-K minus error of average-K on the same inputs,
    normal interval, higher = better for average-K. size: mean size of the sets of average-K; those of top-K have K.
    """

    k: float
    top_k: Estimate
    average_k: Estimate
    gain: Estimate
    size: Estimate


def measure_sets(
    mask: Bool[np.ndarray, "N C"] | Bool[Tensor, "N C"], labels: Int[np.ndarray, "N"] | Int[Tensor, "N"]
) -> SetReport:
    """Error and sizes of sets.

    mask (N, C) bool: which labels are in the set, N, C >= 1. labels (N,): in [0, C).
    Raises DataError, which is a ValueError, if the mask is no matrix of booleans or the labels do not fit.
    """
    sets = mask.detach().cpu().numpy() if isinstance(mask, Tensor) else np.asarray(mask)
    if sets.dtype != bool or sets.ndim != 2 or 0 in sets.shape:
        raise DataError(
            f"Sets must be a matrix of booleans with at least one row and one column, got shape {sets.shape} of "
            f"{sets.dtype}."
        )
    n, num_classes = sets.shape
    truth = check_labels(labels, n, num_classes)
    sizes = sets.sum(axis=1)
    histogram = np.bincount(sizes, minlength=num_classes + 1)
    return SetReport(
        error=proportion_interval(int((~sets[np.arange(n), truth]).sum()), n),
        size=sample_mean_interval(sizes),
        deviation=float(sizes.std()),
        empty=proportion_interval(int(histogram[0]), n),
        histogram=histogram,
    )


def error_curve(
    probabilities_calibration: Matrix,
    probabilities: Matrix,
    labels: Int[np.ndarray, "N"] | Int[Tensor, "N"],
    ks: Sequence[float],
) -> list[CurvePoint]:
    """Errors of top-K and average-K for each K, since K is a free choice.

    probabilities_calibration (n, C): held-out inputs that choose the thresholds, without labels. probabilities (N, C)
    and labels (N,) in [0, C): inputs that measure. ks: values in [0, C]. Returns one point for each, in their order.
    Errors do not rise with K. Raises DataError for NaN or shapes and labels that do not fit, ValueError for a K out of
    range. Warns if a row does not sum to 1.
    """
    calibration = check_scores(probabilities_calibration)
    matrix = check_scores(probabilities, calibration.shape[1])
    truth = check_labels(labels, *matrix.shape)
    own, ranks = own_scores(matrix, truth), _ranks(matrix, truth)
    points = []
    for k in ks:
        threshold, q, _ = global_cut(calibration, k)
        sizes = np.concatenate(
            [
                (block > threshold).sum(axis=1) + q * (block == threshold).sum(axis=1)
                for _, block in row_blocks(matrix, "counting")
            ]
        )
        missed_by_top = 1 - np.clip(k - ranks, 0, 1)
        missed_by_average = 1 - np.where(own > threshold, 1.0, np.where(own == threshold, q, 0.0))
        points.append(
            CurvePoint(
                k=k,
                top_k=proportion_interval(float(missed_by_top.sum()), len(own)),
                average_k=proportion_interval(float(missed_by_average.sum()), len(own)),
                gain=sample_mean_interval(missed_by_top - missed_by_average),
                size=sample_mean_interval(sizes),
            )
        )
    return points


def ambiguity_gain(posteriors: Matrix, k: float) -> float:
    """Error of top-K minus error of average-K in closed form, for known posteriors of equally likely inputs; >= 0.

    posteriors (N, C): P(label | input), rows that sum to 1. k in [0, C]. With lambda the threshold of average-K and t
    in [0, 1] the probability with which top-K takes an entry eta, the gain is the mean over inputs of

        sum_c (1 - t_c) max(eta_c - lambda, 0) + t_c max(lambda - eta_c, 0)

    for whole K |eta - lambda| summed over what is in one of the two sets alone. It is 0 just where top-K is itself a
    rule with one threshold. Both rules have mean size k; where k N is not whole, average-K draws its last entry.
    Raises DataError unless rows are distributions, ValueError if k is out of range.
    Source: derived from the two rules' definitions in Lorieul et al., arXiv 2112.08851.
    """
    matrix = open_matrix(posteriors, "Posteriors")
    rows, num_classes = matrix.shape
    check_size(k)
    check_size_for(k, num_classes)
    for start, block in row_blocks(matrix, "reading the posteriors"):
        check_probabilities(block, start)
    if k in (0, num_classes):
        return 0.0
    # rounded up, unlike in AverageK: an entry that is drawn must be one that brings the mean size to k or above
    threshold = mth_largest(matrix, min(math.ceil(k * rows), rows * num_classes)).value
    whole = math.floor(k)
    total = 0.0
    for _, block in row_blocks(matrix, "comparing"):
        taken = (1 - (k - whole)) * largest(block, whole) + (k - whole) * largest(block, min(whole + 1, num_classes))
        distance = block - threshold
        total += float(((1 - taken) * np.maximum(distance, 0) + taken * np.maximum(-distance, 0)).sum())
    return total / rows


def _ranks(matrix: np.ndarray | Tensor, labels: np.ndarray) -> np.ndarray:
    """How many classes top-K takes before the label, (N,): those with a larger score, or an equal one and lower."""
    ranks = np.empty(len(matrix), dtype=np.int64)
    for start, block in row_blocks(matrix, "ranking"):
        truth = labels[start : start + len(block), None]
        own = np.take_along_axis(block, truth, axis=1)
        first = (block > own) | ((block == own) & (np.arange(block.shape[1]) < truth))
        ranks[start : start + len(block)] = first.sum(axis=1)
    return ranks
