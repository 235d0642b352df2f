"""Bins of confidence: half-open from the left, (low, high], and the first also holds 0."""

from typing import NamedTuple

import numpy as np


class Bins(NamedTuple):
    """Bins of confidence: edges (K + 1,) and the bin in [0, K) of each sample, (N,) int64."""

    edges: np.ndarray
    of_sample: np.ndarray


def bin_confidence(confidence: np.ndarray, bins: int = 15, equal_mass: bool = False) -> Bins:
    """Sort confidences (N,) in [0, 1] into bins (low, high]; the first also holds 0.

    equal_mass: edges at the quantiles of the confidences instead of equal widths. Equal confidences are never
    split, so there may be fewer bins than asked for.
    Raises ValueError if there is no confidence, one is outside [0, 1], or bins < 1.
    """
    if bins < 1:
        raise ValueError(f"bins must be at least 1, got {bins}")
    if not len(confidence) or not (confidence.min() >= 0 and confidence.max() <= 1):
        raise ValueError("expected at least one confidence, all of them in [0, 1]")
    edges = np.arange(bins + 1) / bins
    if equal_mass:
        edges = np.unique(np.concatenate(([0.0, 1.0], np.quantile(confidence, edges[1:-1], method="inverted_cdf"))))
        return Bins(edges, np.maximum(np.searchsorted(edges, confidence, side="left") - 1, 0))
    # the product may round over an edge, which comparing with the edges themselves mends; much faster than a search
    of_sample = np.maximum(np.ceil(confidence * bins).astype(np.int64) - 1, 0)
    of_sample -= (confidence <= edges[of_sample]) & (of_sample > 0)
    of_sample += confidence > edges[of_sample + 1]
    return Bins(edges, of_sample)
