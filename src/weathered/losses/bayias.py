"""Bayias: take the log-ratio of training and test prior out of what is learnt, by adding it to the logits in training.

Source: Xu et al., "Towards Calibrated Model for Long-Tailed Visual Recognition from Prior Perspective", NeurIPS 2021.
L = -log softmax(z + b)[y] for b = log(n / sum n) - log q, q the class prior of the test data; prediction takes z alone.
Limits: q = n / sum n is cross entropy, and so are equal counts with uniform q; uniform q is logit adjustment with
tau = 1, the balanced softmax, since softmax cancels the constant log C.
"""

from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor

from weathered.core.roles import Loss
from weathered.losses.base import ShiftedLoss, log_prior
from weathered.weighting.base import ClassCounts

Prior = Float[Tensor, "C"] | Sequence[float]
"""How likely each class is, up to a factor."""


def log_prior_ratio(class_counts: ClassCounts, test_prior: Prior | None = None) -> Float[Tensor, "C"]:
    """log(n / sum n) - log q, (C,) float64: positive for classes that are more frequent in training than in the test.

    class_counts (C,) > 0. test_prior (C,) > 0 and finite, scaled here to sum to 1; None for uniform.
    Raises ValueError for a class without samples, a prior of another length, or one that is not positive.
    """
    training = log_prior(class_counts)
    if test_prior is None:
        prior = torch.ones_like(training)
    else:
        # a list goes to float64 directly, not through float32
        prior = torch.as_tensor(test_prior, dtype=training.dtype, device=training.device)
        if prior.shape != training.shape:
            raise ValueError(
                f"test_prior must hold one number for each of {len(training)} classes, got shape {tuple(prior.shape)}"
            )
    wrong = ~((prior > 0) & prior.isfinite())
    if wrong.any():
        first = int(wrong.nonzero()[0])
        raise ValueError(
            f"test_prior must be > 0 and finite, got {float(prior[first]):g} for class {first}; for a class that "
            "the test lacks give a small number, or drop it"
        )
    return training - (prior / prior.sum()).log()


class Bayias(ShiftedLoss):
    """Cross entropy, or `base`, on z + log(n / sum n) - log q.

    class_counts (C,): training samples of each class, all positive. test_prior (C,): q, how likely each class is where
    the model is used, positive numbers that are scaled to sum to 1; None for uniform. base: any loss of logits.
    Predictions and confidences are those of the raw logits, which fit the test prior.
    Raises ValueError for counts or a prior that are not positive, or not of one length.
    Source: Xu et al., NeurIPS 2021.
    """

    def __init__(self, class_counts: ClassCounts, test_prior: Prior | None = None, base: Loss | None = None):
        super().__init__(log_prior_ratio(class_counts, test_prior), base)
