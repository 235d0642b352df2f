"""Several annotators per sample: consensus, and how far each annotator can be trusted.

Consensus by majority, or by the model of Dawid and Skene ("Maximum likelihood estimation of observer error-rates using
the EM algorithm", Applied Statistics 1979): each annotator m has a confusion matrix P(label = l | true = c), the same
for all samples, and labels are independent given the true class. EM alternates between the posterior of the true
classes and the matrices, from the shares of votes on. It weighs an annotator by how reliable he is and undoes constant
confusions; where the annotators share an error, no consensus sees it.

Agreement beyond chance is Krippendorff's alpha for nominal data (Krippendorff, Content Analysis, 2004, chapter 11),
which allows for missing labels: 1 is perfect agreement, 0 is what chance gives.
"""

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from scipy import sparse
from scipy.special import logsumexp
from torch import Tensor

from weathered.core.errors import DataError
from weathered.stats import Estimate, proportion_interval

MISSING = -1

VALUES_AT_ONCE = 2**21
"""Resampled weights that are held at a time: 16 MiB."""


class Consensus(NamedTuple):
    """labels (N,): the most voted or most probable class, the lowest of equals. confidence (N,): its share of the votes
    or its probability. tied (N,): bool, whether another class has as much.
    """

    labels: np.ndarray
    confidence: np.ndarray
    tied: np.ndarray


class AnnotatorQuality(NamedTuple):
    """One annotator, with 95 % intervals of Wilson; None where there is nothing to measure it by.

    accuracy: share of his labels that equal the consensus, in which his own votes count. agreement: probability that
    another annotator of the same sample, picked at random, gave the same label; n is the samples with another label.
    """

    labelled: int
    accuracy: Estimate | None
    agreement: Estimate | None


@dataclass(frozen=True)
class DawidSkene:
    """A fitted model of Dawid and Skene for N samples, M annotators and C classes.

    posterior (N, C): of the true class. prior (C,): shares of the true classes. confusion (M, C, C): P(label = l |
    true = c) at [m, c, l]. objective: log posterior density (nats, up to a constant) after each iteration; it never
    falls. converged: whether the last step was below the tolerance. labelled (M,): labels of each annotator.
    """

    posterior: np.ndarray
    prior: np.ndarray
    confusion: np.ndarray
    objective: np.ndarray
    converged: bool
    labelled: np.ndarray

    @property
    def consensus(self) -> Consensus:
        return _consensus(self.posterior)

    @property
    def quality(self) -> list[Estimate | None]:
        """Probability that each annotator labels a random sample rightly, under the model; None without labels.

        Intervals are Wilson's for as many samples as he labelled, and take the consensus as known.
        """
        right = np.einsum("mcc,c->m", self.confusion, self.prior).clip(0, 1)
        return [proportion_interval(r * n, int(n)) if n else None for r, n in zip(right, self.labelled, strict=True)]


def majority_vote(labels: np.ndarray | Tensor, num_classes: int) -> Consensus:
    """The most frequent label of each sample.

    labels (N, M): in [0, C), -1 where an annotator gave none. Raises DataError if they do not fit or a sample has none.
    """
    votes = vote_counts(check_annotations(labels, num_classes), num_classes)
    return _consensus(votes / votes.sum(axis=1, keepdims=True))


def dawid_skene(
    labels: np.ndarray | Tensor,
    num_classes: int,
    *,
    smoothing: float = 0.01,
    tolerance: float = 1e-8,
    most_iterations: int = 500,
) -> DawidSkene:
    """Fit the model of Dawid and Skene by EM.

    labels (N, M): in [0, C), -1 where an annotator gave none. smoothing > 0: added to each count, which is a Dirichlet
    prior and keeps every error possible; towards 0 this is maximum likelihood. tolerance: EM stops when the objective
    gains less than this per label. Memory grows with N C and M C^2.
    Raises DataError as `majority_vote`, and ValueError if smoothing or most_iterations is out of range.
    """
    if not smoothing > 0 or most_iterations < 1:
        raise ValueError(f"expected smoothing > 0 and most_iterations >= 1, got {smoothing} and {most_iterations}")
    given = check_annotations(labels, num_classes)
    n, annotators = given.shape
    # one column per annotator and label, so that both steps are products of matrices
    row, who = (given != MISSING).nonzero()
    column = who * num_classes + given[row, who]
    chosen = sparse.csr_matrix((np.ones(len(row)), (row, column)), shape=(n, annotators * num_classes))
    votes = vote_counts(given, num_classes)
    posterior = votes / votes.sum(axis=1, keepdims=True)
    prior, confusion, objective, converged = np.empty(0), np.empty(0), [], False
    while not converged and len(objective) < most_iterations:
        prior = posterior.sum(axis=0) + smoothing
        prior /= prior.sum()
        # (annotator, label, true class)
        confusion = (chosen.T @ posterior).reshape(annotators, num_classes, num_classes) + smoothing
        confusion /= confusion.sum(axis=1, keepdims=True)
        logs = np.log(confusion)
        joint = chosen @ logs.reshape(-1, num_classes) + np.log(prior)
        evidence = np.asarray(logsumexp(joint, axis=1, keepdims=True))
        posterior = np.exp(joint - evidence)
        objective.append(float(evidence.sum() + smoothing * (logs.sum() + np.log(prior).sum())))
        converged = len(objective) > 1 and objective[-1] - objective[-2] <= tolerance * len(row)
    labelled = np.bincount(who, minlength=annotators)
    return DawidSkene(posterior, prior, confusion.swapaxes(1, 2), np.array(objective), converged, labelled)


def annotator_quality(labels: np.ndarray | Tensor, consensus: np.ndarray, num_classes: int) -> list[AnnotatorQuality]:
    """Accuracy of each annotator against a consensus (N,), and agreement with the other annotators.

    labels (N, M): in [0, C), -1 where an annotator gave none. Raises DataError as `majority_vote`.
    """
    given = check_annotations(labels, num_classes)
    votes = vote_counts(given, num_classes)
    row, who = (given != MISSING).nonzero()
    label, others = given[row, who], votes.sum(axis=1)[row] - 1
    size = given.shape[1]
    labelled, right = np.bincount(who, minlength=size), np.bincount(who, label == consensus[row], size)
    paired = others > 0
    share = (votes[row, label][paired] - 1) / others[paired]
    pairs, same = np.bincount(who[paired], minlength=size), np.bincount(who[paired], share, size)
    return [
        AnnotatorQuality(
            int(labelled[m]),
            proportion_interval(right[m], int(labelled[m])) if labelled[m] else None,
            proportion_interval(min(same[m], pairs[m]), int(pairs[m])) if pairs[m] else None,
        )
        for m in range(size)
    ]


def krippendorff_alpha(
    labels: np.ndarray | Tensor, num_classes: int, rng: torch.Generator, *, resamples: int = 1000
) -> Estimate:
    """Agreement of annotators beyond chance, 1 = perfect, 0 = chance, with the bootstrap interval over samples.

    labels (N, M): in [0, C), -1 where an annotator gave none; n counts the samples with at least two labels.
    rng: a generator on the CPU. Raises DataError as `majority_vote`, or if no sample has two labels, or all labels
    are of one class, where chance agrees always.
    """
    votes = vote_counts(check_annotations(labels, num_classes), num_classes)
    votes = votes[votes.sum(axis=1) > 1]
    if not len(votes) or np.count_nonzero(votes.sum(axis=0)) < 2:
        raise DataError("Agreement beyond chance needs samples with two labels, and labels of at least two classes.")
    totals = votes.sum(axis=1)
    disagreeing = (np.square(totals) - np.square(votes).sum(axis=1)) / (totals - 1)
    value = float(_alpha(disagreeing.sum()[None], votes.sum(axis=0)[None])[0])
    n, drawn = len(votes), []
    at_once = max(1, VALUES_AT_ONCE // n)
    for start in range(0, resamples, at_once):
        count = min(at_once, resamples - start)
        picked = torch.randint(n, (count, n), generator=rng).numpy() + np.arange(count)[:, None] * n
        weights = np.bincount(picked.ravel(), minlength=count * n).reshape(count, n)
        drawn.append(_alpha(weights @ disagreeing, weights @ votes))
    low, high = (float(q) for q in np.nanquantile(np.concatenate(drawn), [0.025, 0.975]))
    return Estimate(value, min(low, value), max(high, value), n)


def _alpha(disagreeing: np.ndarray, counts: np.ndarray) -> np.ndarray:
    """Alpha (R,) of observed disagreements (R,) and counts of classes (R, C); NaN where only one class occurs."""
    n = counts.sum(axis=1)
    expected = (np.square(n) - np.square(counts).sum(axis=1)) / (n - 1)
    return 1 - np.divide(disagreeing, expected, out=np.full(len(n), np.nan), where=expected > 0)


def vote_counts(labels: np.ndarray, num_classes: int) -> np.ndarray:
    """Votes (N, C) float64 for each class, from labels (N, M) with -1 for none."""
    row, who = (labels != MISSING).nonzero()
    cells = np.bincount(row * num_classes + labels[row, who], minlength=len(labels) * num_classes)
    return cells.reshape(-1, num_classes).astype(float)


def check_annotations(labels: np.ndarray | Tensor, num_classes: int) -> np.ndarray:
    """Labels (N, M) as int64. Raises DataError for other shapes or values, and for a sample without any label."""
    array = labels.detach().cpu().numpy() if isinstance(labels, Tensor) else np.asarray(labels)
    if array.ndim != 2 or 0 in array.shape or array.dtype.kind not in "iu":
        raise DataError(f"Labels of several annotators must be integers (N, M), got {array.dtype} {array.shape}.")
    outside = (array < MISSING) | (array >= num_classes)
    if outside.any():
        row, who = (int(place[0]) for place in outside.nonzero())
        raise DataError(
            f"Labels must be in [0, {num_classes - 1}], or -1 where there is none, got {array[row, who]} of annotator "
            f"{who} in row {row}."
        )
    empty = (array == MISSING).all(axis=1)
    if empty.any():
        raise DataError(f"Row {int(empty.argmax())} has no label of any annotator. Leave such rows out.")
    return array.astype(np.int64)


def _consensus(shares: np.ndarray) -> Consensus:
    best = shares.max(axis=1)
    return Consensus(shares.argmax(axis=1), best, (shares == best[:, None]).sum(axis=1) > 1)
