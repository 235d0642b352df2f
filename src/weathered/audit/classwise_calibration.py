"""Class-wise calibration: whether the probability of each class, not only of the predicted one, can be believed.

Source: Kull et al., "Beyond temperature scaling", NeurIPS 2019. The error of class c is the expected calibration error
of p_c against whether the label is c, over bins of p_c of equal width; the class-wise error is its mean over classes.
Limits: for two classes with p_1 = 1 - p_0 both errors are equal up to the ends of bins; one-hot predictions have the
share of wrong labels and wrong predictions of each class.
"""

from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from weathered.audit.binning import bin_confidence
from weathered.audit.per_sample import CHUNK_VALUES, check_predictions
from weathered.stats import Estimate

BLOCKS = 100
"""Random parts of the samples that the bootstrap draws; with fewer samples each is a part of its own."""


class ClasswiseCalibration(NamedTuple):
    """mean: the class-wise calibration error with its interval. by_class (C,): the error of each class."""

    mean: Estimate
    by_class: np.ndarray


def classwise_calibration(
    logits: Float[Tensor, "N C"],
    labels: Int[Tensor, "N"],
    rng: torch.Generator,
    bins: int = 15,
    resamples: int = 1000,
    level: float = 0.95,
) -> ClasswiseCalibration:
    """Class-wise calibration error in [0, 1], with the basic bootstrap interval over random parts of the samples.

    logits (N, C) whose softmax is the model's probability, labels (N,) in [0, C). rng: on the CPU. Memory grows with
    100 C bins. Raises ValueError if shapes, labels or logits do not fit, or bins or resamples < 1.
    """
    check_predictions(logits, labels)
    if resamples < 1:
        raise ValueError(f"resamples must be at least 1, got {resamples}")
    size, classes = logits.shape
    parts = min(size, BLOCKS)
    block = torch.randperm(size, generator=rng) % parts
    gaps = np.zeros((parts, classes * bins))
    rows = max(1, CHUNK_VALUES // classes)
    for start in range(0, size, rows):
        chunk = slice(start, start + rows)
        p = logits[chunk].detach().cpu().double().softmax(1).numpy()
        place = bin_confidence(p.ravel(), bins).of_sample.reshape(p.shape)
        gap = p.copy()
        gap[np.arange(len(p)), labels[chunk].cpu().numpy()] -= 1
        cell = (block[chunk].numpy()[:, None] * classes + np.arange(classes)) * bins + place
        gaps += np.bincount(cell.ravel(), weights=gap.ravel(), minlength=gaps.size).reshape(gaps.shape)
    number = np.bincount(block.numpy(), minlength=parts)
    drawn = torch.randint(parts, (resamples, parts), generator=rng).numpy()
    times = np.zeros((resamples, parts))
    np.add.at(times, (np.arange(resamples)[:, None], drawn), 1)
    draws = np.empty(resamples)
    for start in range(0, resamples, 64):
        chosen = times[start : start + 64]
        draws[start : start + 64] = np.abs(chosen @ gaps).sum(1) / (chosen @ number) / classes
    by_class = np.abs(gaps.sum(0)).reshape(classes, bins).sum(1) / size
    value = float(by_class.mean())
    low, high = (float(q) for q in np.quantile(draws, [(1 - level) / 2, (1 + level) / 2]))
    # reflected, because drawing again adds to a bias that the estimate already has
    return ClasswiseCalibration(
        Estimate(value, min(value, max(0.0, 2 * value - high)), max(value, min(1.0, 2 * value - low)), size), by_class
    )
