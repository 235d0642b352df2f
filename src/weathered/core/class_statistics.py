"""What tells classes apart: mean and covariance of their features, kept batch by batch, and who is taken for whom.

With m new rows of a class that has seen N, their mean b and covariance S_b (divided by m), and r = m / (N + m):
    S <- (1 - r) S + r S_b + r (1 - r) (mu - b)(mu - b)^T;    mu <- (1 - r) mu + r b;    N <- N + m
which is exact: whatever the batches and their order, the result is that of all rows at once.
Source: Chan, Golub and LeVeque, "Updating formulae and a pairwise algorithm for computing sample variances", 1979;
in this form Wang et al., "Implicit Semantic Data Augmentation for Deep Networks", NeurIPS 2019.
"""

from typing import Any, Literal

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn import functional as F

from weathered.core.roles import Part
from weathered.weighting.base import check_labels

Covariance = Literal["full", "diagonal"]
"""Whether a class has a matrix (D, D), or only the variances (D,) of its features."""

LARGEST = 2**28
"""Numbers that full covariances may hold, 1 GiB in float32: 100 classes of 1638 features, 1000 of 518."""


def check_covariance(
    kind: Covariance, num_classes: int, dimension: int, remedy: str = "use covariance=diagonal"
) -> None:
    """Raise ValueError for another kind, or where full covariances would hold more than `LARGEST` numbers."""
    if kind not in ("full", "diagonal"):
        raise ValueError(f"covariance must be 'full' or 'diagonal', got '{kind}'")
    size = num_classes * dimension**2
    if kind == "full" and size > LARGEST:
        raise ValueError(
            f"full covariances of {num_classes} classes and {dimension} features would hold {size:,} numbers, more "
            f"than {LARGEST:,}; {remedy}"
        )


class ClassStatistics(Part):
    """Running mean and covariance of the features of each class.

    num_classes: K >= 1. dimension: D >= 1. covariance: `full` or `diagonal`, see `check_covariance`.
    counts (K,) int64, means (K, D), covariances (K, D, D) or (K, D), divided by the count: all 0 where a class has not
    been seen. Raises ValueError for sizes below 1, or full covariances beyond `LARGEST` numbers.
    """

    def __init__(
        self,
        num_classes: int,
        dimension: int,
        covariance: Covariance = "full",
        device: torch.device | str = "cpu",
        dtype: torch.dtype = torch.float32,
    ):
        for name, size in (("num_classes", num_classes), ("dimension", dimension)):
            if size < 1:
                raise ValueError(f"{name} must be at least 1, got {size}")
        check_covariance(covariance, num_classes, dimension)
        self.num_classes, self.dimension, self.covariance = num_classes, dimension, covariance
        shape = (dimension, dimension) if covariance == "full" else (dimension,)
        self.counts = torch.zeros(num_classes, dtype=torch.int64, device=device)
        self.means = torch.zeros(num_classes, dimension, dtype=dtype, device=device)
        self.covariances = torch.zeros(num_classes, *shape, dtype=dtype, device=device)

    @property
    def unseen(self) -> list[int]:
        """The classes without a row so far."""
        return (self.counts == 0).nonzero()[:, 0].tolist()

    @torch.no_grad()
    def update(self, features: Float[Tensor, "B D"], labels: Int[Tensor, "B"]) -> None:
        """Take in the rows of a batch, without gradient.

        features (B, D), finite. labels (B,) in [0, K). Memory beside the state: P times the largest class of the batch
        times D for P classes in it, and their covariances. Raises ValueError for other shapes, labels outside, or
        features that are not finite.
        """
        if features.ndim != 2 or features.shape[1] != self.dimension or labels.shape != features.shape[:1]:
            raise ValueError(
                f"expected features (B, {self.dimension}) and labels (B,), got {tuple(features.shape)} and "
                f"{tuple(labels.shape)}"
            )
        check_labels(labels, self.num_classes)
        if not len(labels):
            return
        if not bool(torch.isfinite(features).all()):
            raise ValueError("features must be finite, but some are not")
        rows = features.to(self.means)
        present, place, new = labels.unique(return_inverse=True, return_counts=True)
        weight = new.to(rows)[:, None]
        centre = torch.zeros_like(self.means[present]).index_add_(0, place, rows) / weight
        away = rows - centre[place]
        share = weight / (self.counts[present, None] + weight)
        moved = self.means[present] - centre
        if self.covariance == "full":
            found = _scatter(away, place, new) / weight[..., None]
            moved_by, ratio = moved[:, :, None] * moved[:, None, :], share[..., None]
        else:
            found = torch.zeros_like(centre).index_add_(0, place, away.square()) / weight
            moved_by, ratio = moved.square(), share
        old = self.covariances[present]
        self.covariances[present] = (1 - ratio) * old + ratio * found + ratio * (1 - ratio) * moved_by
        self.means[present] -= share * moved
        self.counts[present] += new

    def state_dict(self) -> dict[str, Any]:
        return {"counts": self.counts, "means": self.means, "covariances": self.covariances}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        for name, value in self.state_dict().items():
            value.copy_(state[name])


def _scatter(away: Float[Tensor, "B D"], place: Int[Tensor, "B"], counts: Int[Tensor, "P"]) -> Float[Tensor, "P D D"]:
    """Sums of the outer products of the rows of each class, as one product of rows padded to the largest class."""
    order = place.argsort(stable=True)
    first = counts.cumsum(0) - counts
    number = torch.arange(len(place), device=place.device) - first[place[order]]
    padded = away.new_zeros(len(counts), int(counts.max()), away.shape[1])
    padded[place[order], number] = away[order]
    return padded.transpose(1, 2) @ padded


def confusion_graph(
    predictions: Int[Tensor, "N"] | Float[Tensor, "N K"], labels: Int[Tensor, "N"], num_classes: int
) -> Float[Tensor, "K K"]:
    """G[c, j]: share of the rows of class c predicted as j, or their mean probability of j; float64, rows sum to 1.

    predictions: classes (N,), or probabilities (N, K) whose rows sum to 1. labels (N,) in [0, K). A class without rows
    is like itself alone. Raises ValueError for labels or predictions outside, or shapes that do not fit.
    """
    check_labels(labels, num_classes)
    wide = predictions.ndim == 2
    if labels.ndim != 1 or predictions.shape != ((len(labels), num_classes) if wide else labels.shape):
        raise ValueError(
            f"expected predictions (N,) or (N, {num_classes}) and labels (N,), got {tuple(predictions.shape)} and "
            f"{tuple(labels.shape)}"
        )
    if wide:
        # written so that NaN fails it too
        if not bool((predictions >= 0).all()) or not bool(((predictions.sum(1) - 1).abs() <= 1e-4).all()):
            raise ValueError("probabilities must be >= 0 and sum to 1 in each row; give the softmax of logits")
        rows = predictions.double()
    else:
        check_labels(predictions, num_classes)
        rows = F.one_hot(predictions.long(), num_classes).double()
    total = rows.new_zeros(num_classes, num_classes).index_add_(0, labels, rows)
    size = total.sum(1, keepdim=True)
    return torch.where(size > 0, total / size.clamp_min(torch.finfo(size.dtype).tiny), torch.eye(num_classes).to(total))
