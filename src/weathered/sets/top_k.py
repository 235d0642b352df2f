"""Top-K: the K most probable labels of each input, the rule that average-K is compared with.

K = 1 is the usual prediction. For other than whole K each set holds floor(K) labels and, with probability
K - floor(K), the next one, so that its expected size is K. Of equal entries the lowest classes come first.
"""

import math
from typing import Self

import numpy as np
import torch
from jaxtyping import Bool, Float

from weathered.audit.labels.blocks import Matrix, row_blocks
from weathered.core.roles import Part
from weathered.sets.base import check_scores, check_size, check_size_for, uniform


def largest(block: Float[np.ndarray, "B C"], count: int) -> Bool[np.ndarray, "B C"]:
    """The `count` largest entries of each row, in [0, C]; of equal entries those of the lowest classes."""
    if count == 0:
        return np.zeros(block.shape, dtype=bool)
    place = block.shape[1] - count
    last = np.partition(block, place, axis=1)[:, place, None]
    above, equal = block > last, block == last
    missing = count - above.sum(axis=1, keepdims=True)
    return above | (equal & (equal.cumsum(axis=1) <= missing))


class TopK(Part):
    """Sets of k labels for each input: the most probable ones.

    k in [0, C], any real: the size, see the module for other than whole numbers.
    Raises ValueError if k < 0 or not finite.
    """

    def __init__(self, k: float):
        check_size(k)
        self.k = k

    def fit(self, probabilities: Matrix) -> Self:
        """Learn nothing; there so that it can stand where `AverageK` does."""
        return self

    def predict(self, probabilities: Matrix, rng: torch.Generator | None = None) -> Bool[np.ndarray, "N C"]:
        """Which labels are in the set of each input, (N, C) bool.

        probabilities (N, C), float. rng: one draw for each input if k is not whole; without one, those of seed 0.
        Raises DataError for NaN or no float matrix, ValueError if k > C. Warns if a row does not sum to 1.
        """
        matrix = check_scores(probabilities)
        check_size_for(self.k, matrix.shape[1])
        whole = math.floor(self.k)
        rest = self.k - whole
        one_more = uniform(len(matrix), rng) < rest if rest else np.zeros(len(matrix), dtype=bool)
        mask = np.empty(tuple(matrix.shape), dtype=bool)
        for start, block in row_blocks(matrix, "predicting"):
            part = slice(start, start + len(block))
            mask[part] = largest(block, whole)
            more = one_more[part]
            if more.any():
                mask[part][more] = largest(block[more], whole + 1)
        return mask
