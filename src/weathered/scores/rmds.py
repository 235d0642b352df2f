"""RMDS: the Mahalanobis distance to the nearest class, less that to all training data together.

Source: Ren et al., "A Simple Fix to Mahalanobis Distance for Improving Near-OOD Detection", 2021. With class means mu_c
and pooled within-class covariance S, mean mu_0 and covariance S_0 of all training features,
    s(h) = min_c (h - mu_c)^T S^-1 (h - mu_c) - (h - mu_0)^T S_0^-1 (h - mu_0)
They threshold minus this. What is common to all classes cancels, so near outliers, which share it, stand out. Limits:
one class scores 0 everywhere. S_0 is S plus the spread of the class means, so it is learnt in pieces as S is.
"""

import torch
from jaxtyping import Float
from torch import Tensor

from weathered.scores.base import Evidence, check_matrix, learnt, need
from weathered.scores.class_gaussian import ClassGaussian, Whitened, nearest, whiten


class RMDS(ClassGaussian):
    """Relative Mahalanobis distance. Ren et al., 2021.

    ridge >= 0: added to the diagonal of both covariances, in squared units of the features. What is learnt: see
    `ClassGaussian`. Needs features.
    """

    _spaces: tuple[Whitened, Whitened] | None = None

    def forget_space(self) -> None:
        self._spaces = None

    @property
    def total_mean_(self) -> Float[Tensor, "D"]:
        """The mean of all training features."""
        counts, means = learnt(self.class_counts_, self), learnt(self.means_, self)
        return (counts.double() / counts.sum()) @ means

    @property
    def total_covariance_(self) -> Float[Tensor, "D D"]:
        """The covariance of all training features about their mean, without the ridge."""
        counts, offsets = learnt(self.class_counts_, self).double(), learnt(self.means_, self) - self.total_mean_
        return self.covariance_ + (offsets * (counts / counts.sum())[:, None]).T @ offsets

    @torch.no_grad()
    def score(self, evidence: Evidence) -> Float[Tensor, "N"]:
        """Differences of squared distances (N,), any real numbers, higher = more out-of-distribution.

        Raises ValueError before `fit`.
        """
        features = need(evidence.features, "features", self)
        check_matrix("features", features)
        if self._spaces is None:
            self._spaces = (
                whiten(self.seen_means, self.with_ridge(self.covariance_)),
                whiten(self.total_mean_[None], self.with_ridge(self.total_covariance_)),
            )
        classes, everything = self._spaces
        return nearest(features, classes) - nearest(features, everything)
