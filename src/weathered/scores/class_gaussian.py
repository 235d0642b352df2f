"""Means of classes and their spread, learnt in pieces: what scores of distance to class means share."""

import math
from typing import Any, NamedTuple, Self

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn.functional import pad

from weathered.core.facts import Traits
from weathered.scores.base import CHUNK_VALUES, Score, by_rows, check_matrix, learnt


class Whitened(NamedTuple):
    """centre (D,): subtracted first. basis (D, D): inverse of the upper Cholesky factor. means (C, D): whitened too."""

    centre: Tensor
    basis: Tensor
    means: Tensor


def whiten(means: Float[Tensor, "C D"], covariance: Float[Tensor, "D D"]) -> Whitened:
    """Prepare class means for distances under `covariance`, in float64; raises ValueError if it is not positive."""
    factor, info = torch.linalg.cholesky_ex(covariance.double())
    if int(info) or not bool(torch.isfinite(factor).all()):
        raise ValueError("the covariance is not positive definite; raise ridge, or drop features that never vary")
    identity = torch.eye(len(factor)).to(factor)
    basis = torch.linalg.solve_triangular(factor, identity, upper=False).T.contiguous()
    centre = means.double().mean(0)
    return Whitened(centre, basis, (means.double() - centre) @ basis)


def nearest(features: Float[Tensor, "N D"], space: Whitened) -> Float[Tensor, "N"]:
    """Squared distance (N,) to the nearest of the whitened means, in blocks of rows, never (N, C, D) at once."""
    if features.shape[1] != len(space.centre):
        raise ValueError(f"features must have the width {len(space.centre)} of the means, got {features.shape[1]}")

    def rows(h: Tensor, precision: torch.dtype) -> Tensor:
        basis, means = space.basis.to(precision), space.means.to(precision)
        u = (h.double() - space.centre).to(precision) @ basis
        closest = torch.addmm(means.square().sum(1) / 2, u, means.T, alpha=-1).argmin(1)
        return (u - means[closest]).square().sum(1).double()

    def block(h: Tensor) -> Tensor:
        if h.dtype != torch.float64 and torch.isfinite(fast := rows(h, torch.float32)).all():
            return fast
        return rows(h, torch.float64)  # also where a square exceeds what float32 holds

    return by_rows(block, features, width=max(space.means.shape))


class ClassGaussian(Score):
    """Base of scores from class means and the pooled within-class covariance of the features.

    ridge >= 0: added to the diagonal of a covariance, in squared units of the features.
    means_ (C, D), scatter_ (D, D) and class_counts_ (C,), float64 and int64: what was learnt. Classes without samples
    are left out of distances. Covariances divide by N.
    """

    fitted = ("means_", "scatter_", "class_counts_")
    traits = Traits(needs={"features": "it measures distances between them"})

    def __init__(self, ridge: float = 1e-6):
        if not (ridge >= 0 and math.isfinite(ridge)):
            raise ValueError(f"ridge must be >= 0 and finite, got {ridge}")
        self.ridge = ridge
        self.means_: Tensor | None = None
        self.scatter_: Tensor | None = None
        self.class_counts_: Tensor | None = None

    def fit(self, features: Float[Tensor, "N D"], labels: Int[Tensor, "N"]) -> Self:
        """Forget everything and learn these rows; arguments and errors as in `partial_fit`, and at least one row."""
        self._check(features, labels, None)
        if not len(labels):
            raise ValueError("fit needs at least one row, got none")
        self.means_ = self.scatter_ = self.class_counts_ = None
        self.forget_space()
        return self.partial_fit(features, labels)

    @torch.no_grad()
    def partial_fit(self, features: Float[Tensor, "N D"], labels: Int[Tensor, "N"]) -> Self:
        """Learn more rows, of old or new classes; any split of the data gives the same up to rounding in float64.

        features (N, D): finite floats. labels (N,): integers >= 0. Returns self.
        Raises ValueError before anything changes if values, shapes or D do not fit.
        """
        self._check(features, labels, None if self.means_ is None else self.means_.shape[1])
        step = max(1, CHUNK_VALUES // features.shape[1])
        for start in range(0, len(labels), step):
            self._merge(features[start : start + step].double(), labels[start : start + step].long())
        return self

    @property
    def covariance_(self) -> Float[Tensor, "D D"]:
        """The pooled within-class covariance, without the ridge."""
        return learnt(self.scatter_, self) / int(learnt(self.class_counts_, self).sum())

    @property
    def seen_means(self) -> Float[Tensor, "K D"]:
        """Means of the classes that had samples."""
        return learnt(self.means_, self)[learnt(self.class_counts_, self) > 0]

    def with_ridge(self, covariance: Float[Tensor, "D D"]) -> Float[Tensor, "D D"]:
        """A covariance with the ridge on its diagonal."""
        return covariance + self.ridge * torch.eye(len(covariance)).to(covariance)

    def forget_space(self) -> None:
        """Drop what was computed from the statistics, which have changed."""

    def load_state_dict(self, state: dict[str, Any]) -> None:
        super().load_state_dict(state)
        self.forget_space()

    def _merge(self, h: Tensor, y: Tensor) -> None:
        """Add a block: scatter within the block, and between old and new means of each class (Chan et al., 1979)."""
        width, classes = h.shape[1], int(y.max()) + 1
        counts = (
            torch.zeros(0, dtype=torch.int64, device=h.device) if self.class_counts_ is None else self.class_counts_
        )
        means = h.new_zeros(0, width) if self.means_ is None else self.means_
        scatter = h.new_zeros(width, width) if self.scatter_ is None else self.scatter_
        classes = max(classes, len(counts))
        counts, means = pad(counts, (0, classes - len(counts))), pad(means, (0, 0, 0, classes - len(means)))
        new = y.bincount(minlength=classes)
        block = h.new_zeros(classes, width).index_add_(0, y, h) / new.clamp_min(1)[:, None]
        # double before dividing: torch divides integers in float32
        step = (new.double() / (counts + new).clamp_min(1))[:, None]
        within, between = h - block[y], (block - means) * (counts[:, None] * step).sqrt()
        self.scatter_ = scatter + within.T @ within + between.T @ between
        self.means_ = means + (block - means) * step
        self.class_counts_ = counts + new
        self.forget_space()

    @staticmethod
    def _check(features: Tensor, labels: Tensor, width: int | None) -> None:
        check_matrix("features", features)
        if width is not None and features.shape[1] != width:
            raise ValueError(f"features must have the width {width} of the first call, got {features.shape[1]}")
        if labels.shape != features.shape[:1] or labels.is_floating_point() or labels.dtype == torch.bool:
            raise ValueError(
                f"labels must be integers ({len(features)},), got shape {tuple(labels.shape)} of {labels.dtype}"
            )
        if len(labels) and int(labels.min()) < 0:
            raise ValueError(
                f"labels must be >= 0, got {int(labels.min())} in row {int(labels.argmin())}; drop it first"
            )
