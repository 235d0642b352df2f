"""How well a score separates in-distribution (ID) from out-of-distribution (OOD) inputs, with 95 % intervals.

Scores are higher = more OOD. "FPR at 95 % TPR" names two different numbers, depending on which side is called
positive; here each has its own name. `fpr_at_id_acceptance` is the share of OOD inputs that pass as ID where 95 % of
ID inputs are accepted, as in most papers; `fpr_at_ood_recall` is the share of ID inputs that are flagged where 95 % of
OOD inputs are caught, as in OpenOOD. They are equal only by accident.
"""

from collections.abc import Callable
from typing import cast

import numpy as np
import torch
from jaxtyping import Float
from scipy import optimize, stats
from sklearn.metrics import roc_auc_score
from torch import Tensor

from weathered.scores.base import acceptance_rank, threshold_at_tpr
from weathered.stats import Estimate

THRESHOLDS = 512
"""Evenly spread quantiles of the threshold over which the interval of a false positive rate is averaged."""


def auroc(id_scores: Float[Tensor, "N"], ood_scores: Float[Tensor, "M"], confidence: float = 0.95) -> Estimate:
    """Probability that an OOD input scores higher than an ID input, a tie counting half; n is N + M.

    id_scores (N,), ood_scores (M,): higher = more OOD, N, M >= 1, no NaN; infinities are ranked.
    The interval holds every value A that is less than z standard errors away from the estimate, with the variance of
    Hanley and McNeil (Radiology 1982) at A: it stays open where the separation is perfect (Newcombe, Statistics in
    Medicine 2006, method 5). Raises ValueError if a side is empty or holds NaN.
    """
    id_array, ood_array = _arrays(id_scores, ood_scores)
    ranks = stats.rankdata(np.concatenate([id_array, ood_array]), method="dense")
    value = float(roc_auc_score(np.repeat([0, 1], [len(id_array), len(ood_array)]), ranks))
    z = float(stats.norm.ppf(0.5 + confidence / 2))

    def excess(area: float) -> float:
        return (area - value) ** 2 - z * z * _variance(area, len(id_array), len(ood_array))

    # the variance is 0 at both ends, which are roots of their own; the interval's roots are the inner ones
    inside = min(max(value, 1e-12), 1 - 1e-12)
    low = 0.0 if value <= 0 else _root(excess, 0.0, inside)
    high = 1.0 if value >= 1 else _root(excess, inside, 1.0)
    return Estimate(value, low, high, len(id_array) + len(ood_array))


def _variance(area: float, ids: int, oods: int) -> float:
    half = (ids + oods) / 2 - 1
    return area * (1 - area) * (1 + half * (1 - area) / (2 - area) + half * area / (1 + area)) / (ids * oods)


def fpr_at_id_acceptance(
    id_scores: Float[Tensor, "N"], ood_scores: Float[Tensor, "M"], accept: float = 0.95, confidence: float = 0.95
) -> Estimate:
    """Share of OOD inputs that pass as ID at the threshold that accepts `accept` of the ID inputs; n is M.

    id_scores (N,), ood_scores (M,): higher = more OOD, N, M >= 1, no NaN. accept in (0, 1]. The threshold is
    `threshold_at_tpr(id_scores, accept)`; a score equal to it passes. In [0, 1], lower is better, `accept` by chance.
    The interval is that of Jeffreys for a share, averaged over the bootstrap distribution of the threshold, which is
    known in closed form; it is computed, not drawn. Raises ValueError if a value is out of range.
    """
    id_array, ood_array = _arrays(id_scores, ood_scores)
    return _share_below(id_array, ood_array, accept, confidence)


def fpr_at_ood_recall(
    id_scores: Float[Tensor, "N"], ood_scores: Float[Tensor, "M"], recall: float = 0.95, confidence: float = 0.95
) -> Estimate:
    """Share of ID inputs that are flagged at the threshold that catches `recall` of the OOD inputs; n is N.

    The convention of OpenOOD. A score equal to the threshold is flagged. Arguments, interval and errors as in
    `fpr_at_id_acceptance`, with the two sides exchanged.
    """
    id_array, ood_array = _arrays(id_scores, ood_scores)
    return _share_below(-ood_array, -id_array, recall, confidence)


def _share_below(kept: np.ndarray, other: np.ndarray, share: float, confidence: float) -> Estimate:
    """Share of `other` that is <= the threshold below which `share` of `kept` lies."""
    threshold = threshold_at_tpr(torch.from_numpy(kept), share)
    size, ranked, rank = len(kept), np.sort(kept), acceptance_rank(len(kept), share)
    # the rank-th smallest of `size` bootstrap draws sits at floor(size * U) for U the rank-th of `size` uniforms
    levels = stats.beta.ppf((np.arange(THRESHOLDS) + 0.5) / THRESHOLDS, rank, size - rank + 1)
    places = np.minimum((levels * size).astype(np.int64), size - 1)
    below = np.searchsorted(np.sort(other), ranked[places], side="right")
    counts, weights = np.unique(below, return_counts=True)

    def level(x: float) -> float:
        return float(weights @ stats.beta.cdf(x, counts + 0.5, len(other) - counts + 0.5)) / THRESHOLDS

    value = float((other <= threshold).mean())
    low = _root(lambda x: level(x) - (1 - confidence) / 2, 0.0, 1.0)
    high = _root(lambda x: level(x) - (1 + confidence) / 2, 0.0, 1.0)
    return Estimate(value, min(low, value) if value > 0 else 0.0, max(high, value) if value < 1 else 1.0, len(other))


def _root(function: Callable[[float], float], low: float, high: float) -> float:
    return cast(float, optimize.brentq(function, low, high))


def _arrays(id_scores: Tensor, ood_scores: Tensor) -> tuple[np.ndarray, np.ndarray]:
    for name, values in (("ID", id_scores), ("OOD", ood_scores)):
        if values.ndim != 1 or not len(values):
            raise ValueError(f"{name} scores must be (N,) with N >= 1, got shape {tuple(values.shape)}")
        if bool(torch.isnan(values).any()):
            raise ValueError(f"{name} scores must not be NaN, row {int(torch.isnan(values).nonzero()[0])} is")
    return id_scores.detach().double().cpu().numpy(), ood_scores.detach().double().cpu().numpy()
