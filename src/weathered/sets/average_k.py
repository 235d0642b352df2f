"""Average-K: every label above one threshold for all inputs, so that sets hold K labels on average instead of K each.

Source: Lorieul, Joly and Shasha, "Classification Under Ambiguity: When Is Average-K Better Than Top-K?", 2021
(arXiv 2112.08851). Let s (n, C) be the scores of n held-out inputs, best their probabilities, and m = round(K n):

    threshold = the m-th largest of all n C scores;   m = 0: infinity;   K = C: minus infinity
    set(x) = {c : s_c(x) > threshold}, and each c with s_c(x) = threshold besides with probability q
    q = clip((K - A) / T, 0, 1),   A, T = held-out scores above the threshold, and equal to it, per input

On the held-out inputs the expected size is then within 1 / (2 n) of K, and K itself where K n is whole. Known
probabilities make this the rule with the fewest errors of all whose mean size is K; estimated ones need not. Limits:
K = 0 gives empty sets, K = C all labels; rows that are permutations of one vector give the K largest of each row, and
so do two classes with K = 1. Sets grow with K. A function that rises strictly, the same for all scores, changes no set;
the temperature of a softmax changes rows differently and so does change them.
"""

import math
from typing import Any, Literal, NamedTuple, Self, get_args

import numpy as np
import torch
from jaxtyping import Bool

from weathered.audit.labels.blocks import Matrix, open_matrix, row_blocks
from weathered.core.roles import Part
from weathered.sets.base import check_scores, check_size, check_size_for, mth_largest, uniform

Ties = Literal["random", "include", "exclude"]


class Cut(NamedTuple):
    """A rule on scores: those above the threshold are in, those equal to it with probability q in [0, 1]."""

    threshold: float
    q: float
    expected_size: float


def global_cut(scores: Matrix, k: float, ties: Ties = "random") -> Cut:
    """The threshold that leaves k labels per input on average, as the module says.

    scores (N, C): without NaN. ties: `include` is q = 1, `exclude` is q = 0. Raises ValueError unless 0 <= k <= C.
    """
    matrix = open_matrix(scores, "Scores")
    rows, num_classes = matrix.shape
    check_size(k)
    check_size_for(k, num_classes)
    m = round(k * rows)
    if k == num_classes:
        # new inputs may have scores below all that were seen
        return Cut(-math.inf, 1.0, float(num_classes))
    if m == 0:
        return Cut(math.inf, 0.0, 0.0)
    value, above, equal = mth_largest(matrix, m)
    q = {"random": min(max((k * rows - above) / equal, 0.0), 1.0), "include": 1.0, "exclude": 0.0}[ties]
    return Cut(value, q, (above + q * equal) / rows)


class AverageK(Part):
    """Sets of labels that hold k labels on average: one threshold on the scores of all classes and inputs. 2021.

    k in [0, C], any real: the mean size. ties: what happens to scores equal to the threshold; `random` lets them in
    with the probability that makes the mean size k, `include` all, `exclude` none.
    Nothing keeps a set from being empty; k = 1 leaves many empty. Nothing promises coverage; see `Conformal`.
    Learnt: threshold_, q_ (the probability for equal scores), num_classes_, expected_size_ (the mean size on the
    held-out inputs, apart from the draws).
    Raises ValueError if k < 0 or not finite, or ties is another word.
    Source: Lorieul et al., arXiv 2112.08851.
    """

    def __init__(self, k: float, ties: Ties = "random"):
        check_size(k)
        if ties not in get_args(Ties):
            raise ValueError(f"ties must be 'random', 'include' or 'exclude', got '{ties}'")
        self.k = k
        self.ties: Ties = ties
        self.threshold_: float | None = None
        self.q_: float | None = None
        self.num_classes_: int | None = None
        self.expected_size_: float | None = None

    def fit(self, probabilities: Matrix) -> Self:
        """Choose the threshold on held-out inputs, without labels.

        probabilities (N, C), float: of inputs the model was not trained on, because on those it is too sure of itself;
        from a softmax in float64 where logits are far apart, because in float32 many become exactly 0 or 1.
        Raises DataError, which is a ValueError, for NaN, no row or no float matrix; ValueError if k > C. Warns if a
        row does not sum to 1.
        """
        matrix = check_scores(probabilities)
        self.threshold_, self.q_, self.expected_size_ = global_cut(matrix, self.k, self.ties)
        self.num_classes_ = matrix.shape[1]
        return self

    def predict(self, probabilities: Matrix, rng: torch.Generator | None = None) -> Bool[np.ndarray, "N C"]:
        """Which labels are in the set of each input, (N, C) bool; the set of an input does not depend on the others.

        probabilities (N, C), float. rng: draws for scores equal to the threshold; without one, those of seed 0, so
        that a call repeats. Give one where inputs come in pieces, else all pieces see the same draws.
        Raises ValueError before `fit`; DataError for NaN, another number of classes, or no float matrix. Warns if a
        row does not sum to 1.
        """
        if self.threshold_ is None or self.q_ is None or self.num_classes_ is None:
            raise ValueError("this AverageK has not been fitted; call fit with probabilities of held-out inputs first")
        matrix = check_scores(probabilities, self.num_classes_)
        mask, equal = np.empty(tuple(matrix.shape), dtype=bool), []
        for start, block in row_blocks(matrix, "predicting"):
            mask[start : start + len(block)] = block > self.threshold_
            equal.append(np.flatnonzero(block == self.threshold_) + start * self.num_classes_)
        places = np.concatenate(equal)
        mask.reshape(-1)[places] = uniform(len(places), rng) < self.q_
        return mask

    def state_dict(self) -> dict[str, Any]:
        """What was learnt; empty before `fit`."""
        state = {name: getattr(self, name) for name in _LEARNT}
        return {} if self.threshold_ is None else state

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take back what `state_dict` gave. Raises ValueError if it holds something else."""
        if set(state) not in (set(), set(_LEARNT)):
            raise ValueError(f"AverageK learns {sorted(_LEARNT)}, but the state holds {sorted(state)}")
        for name in _LEARNT:
            setattr(self, name, state.get(name))


_LEARNT = ("threshold_", "q_", "num_classes_", "expected_size_")
