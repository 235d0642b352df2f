"""Split conformal sets: one threshold as in average-K, but chosen for coverage, from labelled held-out inputs.

Let s_i be the probability of the true class of held-out input i of n and j = floor(miscoverage (n + 1)). The set of an
input holds all classes with a probability of at least the j-th smallest s_i; j = 0 gives all labels. For exchangeable
inputs the set then holds the true label with a probability of at least 1 - miscoverage, whatever the model, and without
ties of at most 1 / (n + 1) more. The size follows from that; average-K fixes the size and promises no coverage.

Source: Papadopoulos et al., ECML 2002, for the split; Sadinle, Lei and Wasserman, JASA 2019, for this score.
"""

import math
from typing import Any, Self

import numpy as np
from jaxtyping import Bool, Int
from torch import Tensor

from weathered.audit.labels.blocks import Matrix, check_labels, row_blocks
from weathered.core.roles import Part
from weathered.sets.base import check_scores, own_scores


class Conformal(Part):
    """Sets of labels that miss the true one with a probability of at most `miscoverage`. JASA 2019.

    miscoverage in (0, 1): the share of sets that may miss the label. Learnt: threshold_, num_classes_.
    Raises ValueError if miscoverage is out of range.
    """

    def __init__(self, miscoverage: float):
        if not 0 < miscoverage < 1:
            raise ValueError(f"miscoverage must be in (0, 1), got {miscoverage}")
        self.miscoverage = miscoverage
        self.threshold_: float | None = None
        self.num_classes_: int | None = None

    def fit(self, probabilities: Matrix, labels: Int[np.ndarray, "N"] | Int[Tensor, "N"]) -> Self:
        """Choose the threshold on held-out inputs with their labels.

        probabilities (N, C), float, labels (N,) in [0, C): of inputs the model was not trained on. With fewer than
        1 / miscoverage - 1 inputs all sets hold all labels.
        Raises DataError for NaN, no row, no float matrix, or labels that do not fit. Warns if a row does not sum to 1.
        """
        matrix = check_scores(probabilities)
        own = own_scores(matrix, check_labels(labels, *matrix.shape))
        # rounded, because 0.29 * 100 is a little less than 29
        rank = math.floor(round(self.miscoverage * (len(own) + 1), 9))
        self.threshold_ = float(np.partition(own, rank - 1)[rank - 1]) if rank else -math.inf
        self.num_classes_ = matrix.shape[1]
        return self

    def predict(self, probabilities: Matrix) -> Bool[np.ndarray, "N C"]:
        """Which labels are in the set of each input, (N, C) bool; sets may be empty.

        Raises ValueError before `fit`; DataError for NaN, another number of classes, or no float matrix. Warns if a
        row does not sum to 1.
        """
        if self.threshold_ is None:
            raise ValueError("this Conformal has not been fitted; call fit with probabilities and labels first")
        matrix = check_scores(probabilities, self.num_classes_)
        return np.concatenate([block >= self.threshold_ for _, block in row_blocks(matrix, "predicting")])

    def state_dict(self) -> dict[str, Any]:
        """What was learnt; empty before `fit`."""
        return {} if self.threshold_ is None else {name: getattr(self, name) for name in _LEARNT}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take back what `state_dict` gave. Raises ValueError if it holds something else."""
        if set(state) not in (set(), set(_LEARNT)):
            raise ValueError(f"Conformal learns {sorted(_LEARNT)}, but the state holds {sorted(state)}")
        for name in _LEARNT:
            setattr(self, name, state.get(name))


_LEARNT = ("threshold_", "num_classes_")
