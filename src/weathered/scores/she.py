"""SHE: how little the features resemble those that the predicted class had in training.

Source: Zhang et al., "Out-of-Distribution Detection based on In-Distribution Data Patterns Memorization with Modern
Hopfield Energy", ICLR 2023, the simplified form. With m_c the mean feature of the training samples of class c that the
network classifies right, and c the predicted class,
    s(h) = -<h, m_c>
They threshold minus this. Limits: scaling h scales the score, so it asks for large features as well as for the right
direction. A class without a sample classified right is represented by the mean of all its samples.
"""

from typing import Self

import torch
from jaxtyping import Float, Int
from torch import Tensor

from weathered.core.errors import Incompatible
from weathered.core.facts import Traits
from weathered.scores.base import Evidence, Score, by_rows, check_matrix, learnt, need


def she_score(
    features: Float[Tensor, "N D"], predicted: Int[Tensor, "N"], means: Float[Tensor, "C D"]
) -> Float[Tensor, "N"]:
    """Minus the inner product of each row with the mean of its predicted class.

    features (N, D), means (C, D): finite. predicted (N,): classes below C. Returns (N,) float64, any real numbers,
    higher = more out-of-distribution. Raises ValueError if shapes or classes do not fit.
    Source: Zhang et al., ICLR 2023 (they threshold minus this).
    """
    check_matrix("features", features)
    check_matrix("means", means)
    if features.shape[1] != means.shape[1] or predicted.shape != features.shape[:1]:
        raise ValueError(
            f"features (N, D), predicted (N,) and means (C, D) do not fit: {tuple(features.shape)}, "
            f"{tuple(predicted.shape)}, {tuple(means.shape)}"
        )
    if len(predicted) and not 0 <= int(predicted.min()) <= int(predicted.max()) < len(means):
        raise ValueError(f"predicted classes must be in [0, {len(means) - 1}]")
    wide = means.to(features.device).double()
    return by_rows(lambda h, c: -(h.double() * wide[c]).sum(1), features, predicted, width=features.shape[1])


class SHE(Score):
    """Minus the inner product with the mean training feature of the predicted class. Zhang et al., ICLR 2023.

    means_ (C, D) float64: what was learnt. Needs features and logits; fitted on logits too it leaves out training
    samples that are classified wrong, as the paper does.
    """

    fitted = ("means_",)
    traits = Traits(needs={"features": "it compares them with those of the predicted class"})

    def __init__(self):
        self.means_: Tensor | None = None

    @torch.no_grad()
    def fit(self, features: Float[Tensor, "N D"], labels: Int[Tensor, "N"], logits: Tensor | None = None) -> Self:
        """Take the mean feature of each class. labels (N,): integers >= 0. logits (N, C): count right answers only.

        Raises ValueError for rows that do not fit, values that are not finite, or no row.
        """
        check_matrix("features", features)
        if not len(features) or labels.shape != features.shape[:1] or int(labels.min()) < 0:
            raise ValueError(f"fit needs at least one row and a label >= 0 for each, got {tuple(labels.shape)}")
        if logits is not None and len(logits) != len(features):
            raise ValueError(f"got {len(features)} rows of features but {len(logits)} rows of logits")
        right = torch.ones_like(labels, dtype=torch.bool) if logits is None else logits.argmax(1) == labels
        classes = int(labels.max()) + 1 if logits is None else max(logits.shape[1], int(labels.max()) + 1)
        every, chosen = (self._means(features, labels, rows, classes) for rows in (torch.ones_like(right), right))
        counts = labels[right].bincount(minlength=classes)
        self.means_ = torch.where(counts[:, None] > 0, chosen, every)
        return self

    def fit_evidence(self, evidence: Evidence, labels: Int[Tensor, "N"]) -> Self:
        return self.fit(need(evidence.features, "features", self), labels, evidence.logits)

    @staticmethod
    def _means(features: Tensor, labels: Tensor, rows: Tensor, classes: int) -> Float[Tensor, "C D"]:
        y = labels[rows].long()
        sums = features.new_zeros(classes, features.shape[1], dtype=torch.float64)
        counts = y.bincount(minlength=classes).clamp_min(1)
        return sums.index_add_(0, y, features[rows].double()) / counts[:, None].double()

    @torch.no_grad()
    def score(self, evidence: Evidence) -> Float[Tensor, "N"]:
        """Scores (N,), higher = more out-of-distribution; raises ValueError before `fit`."""
        means = learnt(self.means_, self)
        features, logits = need(evidence.features, "features", self), need(evidence.logits, "logits", self)
        if logits.shape[1] > len(means):
            raise Incompatible(f"SHE has learnt {len(means)} classes, but the model tells {logits.shape[1]} apart.")
        return she_score(features, logits.argmax(1), means)
