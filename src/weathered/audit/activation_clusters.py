"""What features of the training rows say of planted ones: two clusters within a class, and its spectral signature.

Activation clustering, Chen et al., "Detecting Backdoor Attacks on Deep Neural Networks by Activation Clustering",
SafeAI 2019: within each class the features are reduced to 10 independent components and split by 2-means; rows of a
trigger lie together, so that the smaller cluster holds them. Independent components are a rotation of whitened
principal ones, which 2-means cannot tell apart, so these are taken. A class stands out by its silhouette.
Spectral signatures, Tran, Li and Madry, "Spectral Signatures in Backdoor Attacks", NeurIPS 2018: the squared projection
of a row, less the mean of its class, on the first principal direction of the class; planted rows tend to score high.
Limits: a class that really has two kinds of images is split like a poisoned one.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple, cast

import numpy as np

COMPONENTS = 10
MOST = 2000
"""Rows of a class whose pairs the silhouette looks at."""

LEAST_ROWS = 10
"""Rows that a class needs to be split."""


class Clusters(NamedTuple):
    """What is said of C classes and N rows.

    silhouette (C,) in [-1, 1] and share (C,) of the smaller cluster, NaN for a class with too few rows. smaller (N,):
    whether a row lies in the smaller cluster of its class. spectral (N,): its score.
    """

    silhouette: np.ndarray
    share: np.ndarray
    smaller: np.ndarray
    spectral: np.ndarray


def whitened(features: np.ndarray, components: int = COMPONENTS) -> np.ndarray:
    """The first principal components of rows (n, D), each of variance 1; directions without variance are left out."""
    centred = features - features.mean(0)
    left, values, _ = np.linalg.svd(centred, full_matrices=False)
    kept = values[:components] > 1e-6 * max(values[0], 1e-12)
    return left[:, :components][:, kept] * np.sqrt(len(features))


def spectral_scores(features: np.ndarray) -> np.ndarray:
    """Squared projections of rows (n, D), less their mean, on their first principal direction, (n,)."""
    centred = features - features.mean(0)
    return (centred @ np.linalg.svd(centred, full_matrices=False)[2][0]) ** 2


def cluster_classes(
    features: np.ndarray,
    labels: np.ndarray,
    num_classes: int,
    seed: int,
    watch: Callable[[int, int], None] | None = None,
) -> Clusters:
    """Split the features of each class in two, and score its rows.

    features (N, D), finite. labels (N,) in [0, num_classes). seed in [0, 2^32): of 2-means. watch: told how many of how
    many classes are done. Raises ValueError for features that are not finite.
    """
    if not np.isfinite(features).all():
        raise ValueError("features must be finite to be clustered")
    from sklearn.cluster import KMeans
    from sklearn.metrics import silhouette_score

    wide = features.astype(np.float64)
    silhouette, share = np.full(num_classes, np.nan), np.full(num_classes, np.nan)
    smaller, spectral = np.zeros(len(labels), dtype=bool), np.zeros(len(labels))
    for label in range(num_classes):
        rows = np.flatnonzero(labels == label)
        if len(rows) >= LEAST_ROWS:
            spectral[rows] = spectral_scores(wide[rows])
            reduced = whitened(wide[rows])
            if reduced.shape[1] and len(np.unique(reduced, axis=0)) > 2:
                cluster = cast(Any, KMeans)(2, n_init=10, random_state=seed).fit_predict(reduced)
                few = cluster == int(cluster.sum() * 2 <= len(cluster))
                sample = min(MOST, len(rows))
                silhouette[label] = silhouette_score(reduced, cluster, sample_size=sample, random_state=seed)
                share[label], smaller[rows] = few.mean(), few
        if watch is not None:
            watch(label + 1, num_classes)
    return Clusters(silhouette, share, smaller, spectral)


def standing_out(values: np.ndarray) -> np.ndarray:
    """How many robust deviations each value lies above the median of all; 0 for NaN, which takes no part."""
    known = values[np.isfinite(values)]
    if not len(known):
        return np.zeros(len(values))
    middle = np.median(known)
    # 1.4826 makes it the deviation of normal draws
    spread = 1.4826 * np.median(np.abs(known - middle))
    return np.where(np.isfinite(values), (np.nan_to_num(values) - middle) / max(spread, 1e-9), 0.0)
