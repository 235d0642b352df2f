"""Probability that the label is right once the label noise is taken out of the model's probabilities.

A model that was trained on noisy labels predicts them: p[i] = P(given = i | x) = sum_j q[j] T[j, i], where T[j, i] is
P(given = i | true = j), estimated by the calibrated confident joint, and q[j] = P(true = j | x). The score is q[y].

q is found by the steps of expectation maximisation for a mixture of the rows of T, from q = p (Richardson, JOSA 1972;
Lucy, The Astronomical Journal 1974; Dempster, Laird and Rubin, JRSS B 1977):

    q[j] <- q[j] sum_i T[j, i] p[i] / r[i]     with  r[i] = sum_k q[k] T[k, i]

No step makes the likelihood sum_i p[i] log r[i] smaller. Few are taken: T and p are estimates, and many steps would fit
their errors. `ITERATIONS` was chosen on CIFAR-10N, on a draw of images on which the
claims about rankings judge nothing.

Limits: where T is the identity, q is p and the score the self-confidence; a prediction that is certain stays so.
"""

import numpy as np

from weathered.audit.labels.blocks import Matrix, open_matrix, row_blocks
from weathered.audit.labels.confident import ConfidentLearning, calibrate, rows_to_one
from weathered.core.watch import Progress

ITERATIONS = 3


def corrected_confidence(
    learnt: ConfidentLearning, probabilities: Matrix, *, iterations: int = ITERATIONS, progress: Progress | None = None
) -> np.ndarray:
    """q[y] (N,) float64 in [0, 1] of each label, lower = more suspicious.

    learnt: from `confident_learning` on the same probabilities (N, C). iterations >= 0. Blocks have one size, whatever
    other passes take, because products of matrices are rounded by their shapes. Raises ValueError if iterations < 0.
    """
    if iterations < 0:
        raise ValueError(f"iterations must be at least 0, got {iterations}")
    transition = estimated_transition(learnt)
    found = np.empty(len(learnt.labels))
    matrix = open_matrix(probabilities, "Probabilities")
    for start, block in row_blocks(matrix, "taking out the noise", None, progress):
        part = slice(start, start + len(block))
        found[part] = true_class(block, transition, iterations)[np.arange(len(block)), learnt.labels[part]]
    return found


def estimated_transition(learnt: ConfidentLearning) -> np.ndarray:
    """T (C, C), rows sum to 1: true class by given label; a class that no sample is labelled as keeps its name."""
    shares = rows_to_one(calibrate(learnt.joint, learnt.class_counts).T)
    return np.where(np.isnan(shares), np.eye(len(shares)), shares)


def true_class(probabilities: np.ndarray, transition: np.ndarray, iterations: int = ITERATIONS) -> np.ndarray:
    """q (B, C) after some steps from q = p. probabilities (B, C) sum to 1; transition (C, C): positive diagonal."""
    q = probabilities / probabilities.sum(axis=1, keepdims=True)
    target = q
    for _ in range(iterations):
        mixed = q @ transition
        # where nothing is mixed nothing was predicted either
        weight = np.divide(target, mixed, out=np.zeros_like(mixed), where=mixed > 0)
        q = q * (weight @ transition.T)
        q /= q.sum(axis=1, keepdims=True)
    return q
