"""What rules that give sets of labels share: checked scores, the m-th largest of many, and draws for equal ones."""

import math
import warnings
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Int
from torch import Tensor

from weathered.audit.labels.blocks import SUM_TOLERANCE, Matrix, as_array, open_matrix, row_blocks
from weathered.core.errors import DataError
from weathered.core.rng import generator

SAMPLE = 2**16
"""Scores drawn to guess where the threshold lies; so many or fewer in all are looked at without a guess."""

CACHED_VALUES = 2**16
"""Scores compared at a time in the selection: 512 KiB, which stay in the processor's cache."""


class Place(NamedTuple):
    """The m-th largest of many values: the value, how many are strictly above it, and how many are equal to it."""

    value: float
    above: int
    equal: int


def mth_largest(scores: Matrix, m: int) -> Place:
    """The m-th largest of all entries of a matrix, exactly, without sorting or copying them all.

    scores (N, C): floats without NaN. m in [1, N C]. Two entries drawn at random bracket the one looked for, one pass
    counts what lies above and keeps what lies between, a few per cent at most; where it was missed, which has a
    probability of about 1e-9, a wider bracket follows. The result does not depend on the draws.
    Raises ValueError if m is out of range, or no such entry is found because of NaN.
    """
    matrix = open_matrix(scores, "Scores")
    rows, columns = matrix.shape
    size = rows * columns
    if not 1 <= m <= size:
        raise ValueError(f"m must be in [1, {size}] for {rows} times {columns} scores, got {m}")
    drawn = _drawn(matrix) if size > SAMPLE else np.empty(0)
    share = m / size
    centre, width = share * len(drawn), 6 * math.sqrt(share * (1 - share) * len(drawn)) + 2
    while True:
        low, high = _descending(drawn, math.ceil(centre + width)), _descending(drawn, math.floor(centre - width))
        above, from_high, between, from_low = _counts(matrix, low, high)
        if above < m <= from_high:
            return Place(high, above, from_high - above)
        if from_high < m <= from_high + len(between):
            value = float(np.partition(between, from_high - m)[from_high - m])
            return Place(value, from_high + int((between > value).sum()), int((between == value).sum()))
        if from_high + len(between) < m <= from_low:
            return Place(low, from_high + len(between), from_low - from_high - len(between))
        if low == -math.inf and high == math.inf:
            raise DataError("Scores must not be NaN, but some are.")
        width *= 4


def _drawn(matrix: np.ndarray | Tensor) -> np.ndarray:
    """SAMPLE entries, drawn with replacement and sorted; always the same places."""
    rng = np.random.default_rng(0)
    rows, columns = (rng.integers(length, size=SAMPLE) for length in matrix.shape)
    if isinstance(matrix, Tensor):
        return np.sort(as_array(matrix[torch.from_numpy(rows), torch.from_numpy(columns)]))
    return np.sort(as_array(matrix[rows, columns]))


def _descending(ascending: np.ndarray, rank: int) -> float:
    """The entry of that rank, the largest has rank 1; infinite beyond the ends."""
    if rank < 1:
        return math.inf
    return float(ascending[-rank]) if rank <= len(ascending) else -math.inf


def _counts(matrix: np.ndarray | Tensor, low: float, high: float) -> tuple[int, int, np.ndarray, int]:
    """How many entries are > high and >= high, the entries in (low, high), and how many are >= low.

    The ends are counted and not kept: a saturated softmax may put most entries on one value.
    """
    above = from_high = from_low = 0
    kept = []
    for _, block in row_blocks(matrix, "counting", max(1, CACHED_VALUES // matrix.shape[1])):
        high_enough = block >= high
        above += int(np.count_nonzero(block > high))
        from_high += int(np.count_nonzero(high_enough))
        from_low += int(np.count_nonzero(block >= low))
        kept.append(block[(block > low) & ~high_enough])
    return above, from_high, np.concatenate(kept), from_low


def check_scores(scores: Matrix, num_classes: int | None = None) -> np.ndarray | Tensor:
    """The matrix (N, C) behind scores, read through once.

    Raises DataError if it is no matrix of floats with N, C >= 1, holds NaN, or has another number of columns than
    `num_classes`. Warns where a row does not sum to 1 within 1e-3: logits in place of probabilities give other sets,
    but any scores that can be compared between inputs may be given.
    """
    matrix = open_matrix(scores, "Scores")
    if num_classes is not None and matrix.shape[1] != num_classes:
        raise DataError(f"The rule was fitted to {num_classes} classes, but the scores have {matrix.shape[1]} columns.")
    odd = None
    for start, block in row_blocks(matrix, "reading the scores"):
        with np.errstate(invalid="ignore"):
            sums = block.sum(axis=1)
        # infinities of both signs sum to NaN as well, so its rows are looked at again
        broken = np.isnan(sums)
        if broken.any() and (broken := np.isnan(block).any(axis=1)).any():
            raise DataError(f"Scores must not be NaN, but row {start + int(broken.argmax())} holds NaN.")
        off = ~(np.abs(sums - 1) <= SUM_TOLERANCE)
        if odd is None and off.any():
            odd = start + int(off.argmax()), float(sums[off.argmax()])
    if odd is not None:
        warnings.warn(
            f"row {odd[0]} sums to {odd[1]:.6g} instead of 1; if these are logits, give their softmax, because one "
            "threshold for all inputs means something else on logits",
            stacklevel=3,
        )
    return matrix


def check_size(k: float) -> None:
    """Raise ValueError unless k is a finite number >= 0."""
    if not (k >= 0 and math.isfinite(k)):
        raise ValueError(f"k must be a finite number >= 0, got {k}")


def check_size_for(k: float, num_classes: int) -> None:
    """Raise ValueError if sets would need more labels than there are."""
    if k > num_classes:
        raise ValueError(f"k must be in [0, {num_classes}] for {num_classes} classes, got {k}")


def uniform(size: int, rng: torch.Generator | None) -> np.ndarray:
    """Draws from [0, 1), float64 (size,); without a generator, those of seed 0."""
    rng = generator(0, "sets") if rng is None else rng
    return torch.rand(size, generator=rng, dtype=torch.float64, device=rng.device).cpu().numpy()


def own_scores(matrix: np.ndarray | Tensor, labels: Int[np.ndarray, "N"]) -> np.ndarray:
    """The score of the label of each row, float64 (N,)."""
    own = np.empty(len(matrix))
    for start, block in row_blocks(matrix, "reading the scores"):
        rows = np.arange(len(block))
        own[start : start + len(block)] = block[rows, labels[start + rows]]
    return own
