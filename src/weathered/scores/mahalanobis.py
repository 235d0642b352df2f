"""Mahalanobis: distance of the features to the nearest class mean, in units of the spread within classes.

Source: Lee et al., "A Simple Unified Framework for Detecting Out-of-Distribution Samples and Adversarial Attacks",
NeurIPS 2018, eqs. 1 and 2, on the last features only, without their input step and layer ensemble. With class means
mu_c and the pooled covariance S = 1/N sum_i (h_i - mu_yi)(h_i - mu_yi)^T of the training features,

    s(h) = min_c (h - mu_c)^T (S + ridge I)^-1 (h - mu_c)

a squared distance. They threshold minus this, higher = in-distribution. Limits: S + ridge I = I is the squared
Euclidean distance to the nearest mean; one class is the squared Mahalanobis distance of textbooks.

Features and means are whitened once by the Cholesky factor of S, so that all classes cost one matrix product and not
one quadratic form each; the distance to the class found is then taken from the difference itself. Learning is in
float64. Centred float32 features are scored in float32: that adds errors of the size their own rounding has made.
"""

import torch
from jaxtyping import Float
from torch import Tensor

from weathered.scores.base import Evidence, check_matrix, need
from weathered.scores.class_gaussian import ClassGaussian, Whitened, nearest, whiten


def mahalanobis_score(
    features: Float[Tensor, "N D"], means: Float[Tensor, "C D"], covariance: Float[Tensor, "D D"]
) -> Float[Tensor, "N"]:
    """Squared Mahalanobis distance to the nearest class mean.

    features (N, D), means (C, D), covariance (D, D) symmetric and positive definite; finite. Returns (N,) float64,
    >= 0, higher = more out-of-distribution. Cost O(N D (C + D) + D^3). Raises ValueError if shapes do not fit, values
    are not finite or the covariance is not positive definite. Source: Lee et al., NeurIPS 2018, eq. 2 (they threshold
    minus this).
    """
    for name, values in (("features", features), ("means", means), ("covariance", covariance)):
        check_matrix(name, values)
    width = means.shape[1]
    if not len(means) or covariance.shape != (width, width):
        raise ValueError(f"means (C, D) and covariance (D, D) do not fit: {tuple(means.shape)}, {covariance.shape}")
    return nearest(features, whiten(means, covariance))


class Mahalanobis(ClassGaussian):
    """Squared distance to the nearest class mean under the pooled within-class covariance. Lee et al., NeurIPS 2018.

    ridge >= 0: added to the diagonal of the covariance, in squared units of the features. What is learnt: see
    `ClassGaussian`. The covariance divides by N, as in the paper, not by N - C. Needs features.
    """

    _space: Whitened | None = None

    def forget_space(self) -> None:
        self._space = None

    @torch.no_grad()
    def score(self, evidence: Evidence) -> Float[Tensor, "N"]:
        """Squared distances (N,), higher = more out-of-distribution; raises ValueError before `fit`."""
        features = need(evidence.features, "features", self)
        check_matrix("features", features)
        if self._space is None:
            self._space = whiten(self.seen_means, self.with_ridge(self.covariance_))
        return nearest(features, self._space)
