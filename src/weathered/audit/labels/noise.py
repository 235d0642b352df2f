"""How much label noise there is, and from which class to which, with intervals.

From the calibrated confident joint Q (C, C), rows for the given label and columns for the estimated true class
(Northcutt et al., JAIR 2021, section 3.1):

    noise rate                      1 - trace(Q) / N
    P(given = i | true = j)         Q[i, j] / sum of column j
    P(true = j | given = i)         Q[i, j] / sum of row i

Intervals come from a bootstrap over samples that estimates thresholds, joint and calibration anew each time (Efron and
Tibshirani, 1993), turned into Wilson intervals whose n gives the same variance, the effective sample size (Korn and
Graubard, Survey Methodology 1998). They say how far the estimate would move with other samples. They do not say how far
it lies from the truth: a model that errs like the labels, or is not sure where it should be, biases the estimate.

No (resamples, N, C) work is needed: a class matters to a row only if its probability exceeds the lowest of the
resampled thresholds, and no class matters below the second that exceeds the highest. One pass collects those.
"""

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from scipy import stats

from weathered.audit.labels.blocks import Matrix, open_matrix, row_blocks
from weathered.audit.labels.confident import (
    TOLERANCE,
    ConfidentLearning,
    at_least_one_on_the_diagonal,
    calibrate,
    rows_to_one,
    thresholds_of,
)
from weathered.core.watch import Progress
from weathered.stats import Estimate

MOST_CLASSES_PER_ROW = 8
"""Classes of a row that a resample can choose from; further ones, of lower probability, are left out."""


class Shares(NamedTuple):
    """A matrix (C, C) whose rows sum to 1, and its 95 % bounds; NaN in rows that nothing is known of."""

    value: np.ndarray
    low: np.ndarray
    high: np.ndarray


@dataclass(frozen=True)
class NoiseEstimate:
    """Estimated label noise, with 95 % intervals.

    rate: share of wrong labels. transition[j, i]: P(given = i | true = j). inverse[i, j]: P(true = j | given = i).
    """

    rate: Estimate
    transition: Shares
    inverse: Shares


class _Choices(NamedTuple):
    """The classes that a row may confidently belong to, most probable first within a row: row, class, probability."""

    rows: np.ndarray
    classes: np.ndarray
    values: np.ndarray


def estimate_noise(
    learnt: ConfidentLearning,
    probabilities: Matrix,
    rng: torch.Generator,
    *,
    resamples: int = 200,
    block_rows: int | None = None,
    progress: Progress | None = None,
) -> NoiseEstimate:
    """Noise rate and transition matrices of a finished count, with bootstrap intervals; one pass of `probabilities`.

    learnt: from `confident_learning` on the same probabilities. rng: a generator on the CPU. resamples >= 2: 200 know
    a standard error to about 5 %. Raises ValueError if resamples < 2.
    """
    if resamples < 2:
        raise ValueError(f"resamples must be at least 2, got {resamples}")
    n, size = len(learnt.labels), len(learnt.class_counts)
    state = rng.get_state()
    bars = np.stack([_bars(learnt, _draw(n, rng)) for _ in range(resamples)])
    choices = _choices(probabilities, bars.min(axis=0), bars.max(axis=0), block_rows, progress)
    top = _top(learnt) if learnt.argmax_over == "all" else None
    estimate = _estimates(calibrate(learnt.joint, learnt.class_counts))
    spread = [_Spread(part) for part in estimate]
    # the same draws again: holding them would take resamples x N
    rng.set_state(state)
    for number in range(resamples):
        weights = _draw(n, rng)
        counts = np.bincount(learnt.labels, weights=weights, minlength=size)
        joint = at_least_one_on_the_diagonal(_joint(choices, bars[number], learnt, weights, top))
        for kept, part in zip(spread, _estimates(calibrate(joint, counts)), strict=True):
            kept.add(part)
        if progress is not None:
            progress("resampling", number + 1, resamples)
    confident = learnt.joint.astype(float)
    behind = (np.array(float(n)), confident.sum(axis=0)[:, None], confident.sum(axis=1)[:, None])
    rate, transition, inverse = (
        Shares(part, *effective_wilson(part, kept.variance(), few, n))
        for part, kept, few in zip(estimate, spread, behind, strict=True)
    )
    return NoiseEstimate(Estimate(float(rate.value), float(rate.low), float(rate.high), n), transition, inverse)


def effective_wilson(
    share: np.ndarray, variance: np.ndarray, fallback: np.ndarray, most: int, confidence: float = 0.95
) -> tuple[np.ndarray, np.ndarray]:
    """Wilson bounds of shares whose n gives them this variance, at most `most`; NaN where the share is NaN.

    fallback: the n where the variance is 0 or the share is 0 or 1, of which a variance says nothing.
    """
    known = (variance > 0) & (share > 0) & (share < 1)
    n = np.broadcast_to(np.maximum(fallback, 1), share.shape).astype(float)
    n = np.minimum(np.divide(share * (1 - share), variance, out=n, where=known), most)
    z = float(stats.norm.ppf(0.5 + confidence / 2))
    centre = (share + z * z / (2 * n)) / (1 + z * z / n)
    half = z / (1 + z * z / n) * np.sqrt(np.maximum(share * (1 - share), 0) / n + z * z / (4 * n * n))
    low = np.where(share <= 0, 0.0, np.maximum(centre - half, 0))
    high = np.where(share >= 1, 1.0, np.minimum(centre + half, 1))
    unknown = np.isnan(share)
    return np.where(unknown, np.nan, low), np.where(unknown, np.nan, high)


def _draw(n: int, rng: torch.Generator) -> np.ndarray:
    """How often each of n samples is drawn in a resample of n."""
    return np.bincount(torch.randint(n, (n,), generator=rng).numpy(), minlength=n)


def _bars(learnt: ConfidentLearning, weights: np.ndarray) -> np.ndarray:
    """What a probability must reach in a resample, (C,)."""
    size = len(learnt.class_counts)
    counts = np.bincount(learnt.labels, weights=weights, minlength=size)
    sums = np.bincount(learnt.labels, weights=weights * learnt.rows.own, minlength=size)
    return thresholds_of(sums, counts) - TOLERANCE


def _choices(
    probabilities: Matrix, lowest: np.ndarray, highest: np.ndarray, block_rows: int | None, progress: Progress | None
) -> _Choices:
    parts = []
    matrix = open_matrix(probabilities, "Probabilities")
    for start, block in row_blocks(matrix, "preparing resamples", block_rows, progress):
        rows = np.arange(len(block))
        sure = np.where(block >= highest, block, -1.0)
        sure[rows, sure.argmax(axis=1)] = -1
        row, column = ((block >= lowest) & (block >= sure.max(axis=1)[:, None])).nonzero()
        values = block[row, column]
        order = np.lexsort((column, -values, row))
        row = row[order]
        rank = np.arange(len(row)) - np.searchsorted(row, row)
        order, row = order[rank < MOST_CLASSES_PER_ROW], row[rank < MOST_CLASSES_PER_ROW]
        parts.append(_Choices(start + row, column[order], values[order]))
    return _Choices(*(np.concatenate(columns) for columns in zip(*parts, strict=True)))


def _joint(
    choices: _Choices, bars: np.ndarray, learnt: ConfidentLearning, weights: np.ndarray, top: np.ndarray | None
) -> np.ndarray:
    """The confident joint (C, C) of a resample, as float64; top (N,) where it counts for rows with several classes."""
    size = len(bars)
    reached = np.flatnonzero(choices.values >= bars[choices.classes])
    row, classes = choices.rows[reached], choices.classes[reached]
    begins = np.flatnonzero(np.diff(row, prepend=-1))
    if top is None:
        classes, row = classes[begins], row[begins]
    else:
        several = np.diff(begins, append=len(row)) > 1
        classes, row = np.where(several, top[row[begins]], classes[begins]), row[begins]
    cells = np.bincount(learnt.labels[row] * size + classes, weights=weights[row], minlength=size * size)
    return cells.reshape(size, size)


def _top(learnt: ConfidentLearning) -> np.ndarray:
    """The most probable class of each row, the lowest of equals."""
    own, other, other_class, _ = learnt.rows
    top = np.where(own > other, learnt.labels, other_class)
    return np.where(own == other, np.minimum(learnt.labels, other_class), top)


def _estimates(calibrated: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Noise rate (), transition (C, C) and inverse (C, C) of a calibrated joint."""
    rate = np.asarray(1 - calibrated.trace() / calibrated.sum())
    return rate, rows_to_one(calibrated.T), rows_to_one(calibrated)


class _Spread:
    """Running variance of resampled arrays, element by element; NaN is passed over."""

    def __init__(self, around: np.ndarray):
        self.around = around
        self.count, self.sums, self.squares = (np.zeros(around.shape) for _ in range(3))

    def add(self, values: np.ndarray) -> None:
        # differences from the estimate are small, so that squaring them loses no digits
        away = values - self.around
        known = ~np.isnan(away)
        away = np.where(known, away, 0.0)
        self.count += known
        self.sums += away
        self.squares += away * away

    def variance(self) -> np.ndarray:
        count = np.maximum(self.count, 1)
        return np.maximum(self.squares / count - np.square(self.sums / count), 0)
