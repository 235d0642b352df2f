"""Evidence against a label besides one model's probabilities: training dynamics, a second network, and neighbours.

All scores are lower = more suspicious, as in `scores`.

Area under the margin (Pleiss et al., "Identifying mislabeled data using the area under the margin ranking", NeurIPS
2020): the mean over epochs of z[y] - max_{k != y} z[k] for the logits z, measured while the sample is trained on. A
wrong label is learnt against the pull of the sample's like, so its margin stays low until it is memorised. Their
threshold: some samples are given a class of their own that fits none of them, and what scores no higher than nearly
all of those is suspect.
"""

from typing import NamedTuple

import numpy as np
from torch import Tensor

from weathered.audit.labels.blocks import Matrix, as_array, check_labels, check_probabilities, open_matrix, row_blocks
from weathered.audit.labels.neighbours import Backend, nearest_neighbours
from weathered.core.errors import DataError


class TwoNetworks(NamedTuple):
    """What two networks say of the same labels, arrays (N,).

    self_confidence: the mean of p[y] over the two, in [0, 1]. agreement: 1 - JS(p, q) / log 2 in [0, 1] for the
    Jensen-Shannon divergence of their predictions, 1 where they are equal. both_against: bool, whether both predict
    the same class and it is not the label.
    """

    self_confidence: np.ndarray
    agreement: np.ndarray
    both_against: np.ndarray


def margins(logits: Matrix, labels: np.ndarray | Tensor) -> np.ndarray:
    """Margin (N,) of the label over the best other class, z[y] - max_{k != y} z[k]; one epoch's part of the area.

    logits (N, C), C >= 2: finite. labels (N,): in [0, C). Raises DataError if they do not fit, naming the row.
    """
    matrix = open_matrix(logits, "Logits")
    if matrix.shape[1] < 2:
        raise DataError("A margin needs logits of at least 2 classes, got 1 column.")
    given = check_labels(labels, *matrix.shape)
    found = np.empty(len(matrix))
    for start, block in row_blocks(matrix, "margins"):
        finite = np.isfinite(block).all(axis=1)
        if not finite.all():
            raise DataError(f"Logits must be finite, row {start + int((~finite).argmax())} is not.")
        rows, own = np.arange(len(block)), given[start : start + len(block)]
        rest = block.copy()
        rest[rows, own] = -np.inf
        found[start : start + len(block)] = block[rows, own] - rest.max(axis=1)
    return found


def area_under_margin(margins: np.ndarray | Tensor) -> np.ndarray:
    """Mean margin (N,) over epochs; lower = more suspicious.

    margins (E, N): one row per epoch; NaN where a sample was not seen. Raises DataError if a sample was never seen.
    """
    return _mean_over_epochs(margins, "margins")


def mean_loss_score(losses: np.ndarray | Tensor) -> np.ndarray:
    """Minus the mean loss (N,) over epochs, so that lower = more suspicious. Arguments as in `area_under_margin`."""
    return -_mean_over_epochs(losses, "losses")


def margin_threshold(area: np.ndarray, threshold_rows: np.ndarray, quantile: float = 0.99) -> float:
    """The area at or below which a label is suspect: this quantile of the samples of the extra class.

    area (N,): from `area_under_margin`. threshold_rows: rows that were trained under a class of their own. quantile in
    [0, 1]: 0.99 is the paper's. Raises DataError if there are no such rows, ValueError if the quantile is out of range.
    """
    if not 0 <= quantile <= 1:
        raise ValueError(f"quantile must be in [0, 1], got {quantile}")
    if not len(threshold_rows):
        raise DataError("The threshold of the area under the margin needs samples of the extra class, got none.")
    return float(np.quantile(area[threshold_rows], quantile))


def two_networks(first: Matrix, second: Matrix, labels: np.ndarray | Tensor) -> TwoNetworks:
    """Compare what two networks predict for the same samples.

    first, second (N, C): probabilities, out-of-sample. labels (N,): in [0, C). Ties for the most probable class go to
    the lowest. Raises DataError if they do not fit, naming the row.
    """
    one, two = open_matrix(first, "The first network's output"), open_matrix(second, "The second network's output")
    if one.shape != two.shape:
        raise DataError(f"Two networks need predictions of one shape, got {tuple(one.shape)} and {tuple(two.shape)}.")
    given = check_labels(labels, *one.shape)
    confidence, agreement, against = np.empty(len(one)), np.empty(len(one)), np.empty(len(one), bool)
    pairs = zip(row_blocks(one, "two networks"), row_blocks(two, "two networks"), strict=True)
    for (start, p), (_, q) in pairs:
        check_probabilities(p, start)
        check_probabilities(q, start)
        part = slice(start, start + len(p))
        rows, own = np.arange(len(p)), given[part]
        confidence[part] = (p[rows, own] + q[rows, own]) / 2
        divergence = _entropy((p + q) / 2) - (_entropy(p) + _entropy(q)) / 2
        agreement[part] = np.clip(1 - divergence / np.log(2), 0, 1)
        best = p.argmax(axis=1)
        against[part] = (best == q.argmax(axis=1)) & (best != own)
    return TwoNetworks(confidence, agreement, against)


def neighbour_agreement(
    features: np.ndarray | Tensor, labels: np.ndarray | Tensor, k: int = 10, backend: Backend = "torch"
) -> np.ndarray:
    """Share (N,) of the k nearest neighbours by cosine similarity that have the same label; lower = more suspicious.

    features (N, D): finite. labels (N,): integers >= 0. k in [1, N - 1]. backend: see `nearest_neighbours`. In [0, 1];
    the share of a label among all samples is what to expect by chance.
    Raises DataError if shapes or values do not fit.
    """
    rows = nearest_neighbours(features, k, backend).rows
    given = check_labels(labels, len(rows), np.iinfo(np.int64).max)
    return (given[rows] == given[:, None]).mean(axis=1)


def _mean_over_epochs(values: np.ndarray | Tensor, name: str) -> np.ndarray:
    array = as_array(values)
    if array.ndim != 2 or 0 in array.shape:
        raise DataError(f"Expected {name} (E, N) of at least one epoch and sample, got shape {array.shape}.")
    total, seen = np.zeros(array.shape[1]), np.zeros(array.shape[1], np.int64)
    for epoch in array:
        known = ~np.isnan(epoch)
        total += np.where(known, epoch, 0)
        seen += known
    if not seen.all():
        raise DataError(f"Sample {int(seen.argmin())} has no {name} in any epoch. Leave it out.")
    return total / seen


def _entropy(p: np.ndarray) -> np.ndarray:
    return -(p * np.log(np.maximum(p, np.finfo(np.float64).tiny))).sum(axis=1)
