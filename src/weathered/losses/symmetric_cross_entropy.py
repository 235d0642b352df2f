"""Symmetric cross entropy: cross entropy plus the same with label and prediction exchanged, which noise moves less.

Source: Wang et al., "Symmetric Cross Entropy for Robust Learning with Noisy Labels", ICCV 2019.
L = alpha H(t, p) + beta H(p, t) for p = softmax(z) and the label's distribution t, with log 0 in H(p, t) set to A < 0.
For one label H(p, t) = -A (1 - p_y): the absolute error, summed over the classes, times -A / 2.
Limits: beta = 0 is alpha times cross entropy; alpha = 0 is bounded by -A beta.
The authors' code cuts t at 1e-4, which is A = log 1e-4 = -9.21; ask for it with log_zero.
"""

import math

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn import functional as F

from weathered.core.roles import Part
from weathered.losses.cross_entropy import cross_entropy


def check_weights(alpha: float, beta: float, log_zero: float) -> None:
    """Raise ValueError unless alpha, beta >= 0 and not both 0, and log_zero < 0; all finite."""
    for name, value in (("alpha", alpha), ("beta", beta)):
        if not (value >= 0 and math.isfinite(value)):
            raise ValueError(f"{name} must be >= 0 and finite, got {value}")
    if alpha == beta == 0:
        raise ValueError("alpha and beta must not both be 0: the loss would be 0 everywhere")
    if not (log_zero < 0 and math.isfinite(log_zero)):
        raise ValueError(f"log_zero must be < 0 and finite, got {log_zero}")


def symmetric_cross_entropy(
    logits: Float[Tensor, "B C"],
    labels: Int[Tensor, "B"],
    alpha: float = 0.1,
    beta: float = 1.0,
    log_zero: float = -4.0,
) -> Float[Tensor, "B"]:
    """alpha (-log p_y) + beta (-log_zero) (1 - p_y) per sample, >= 0.

    logits (B, C), any real numbers; labels (B,) in [0, C), else an error as in cross entropy. Raises ValueError unless
    alpha, beta >= 0, not both 0, and log_zero < 0.
    """
    check_weights(alpha, beta, log_zero)
    entropy = cross_entropy(logits, labels)
    # 1 - p without cancellation
    return alpha * entropy + beta * log_zero * torch.expm1(-entropy)


def soft_symmetric_cross_entropy(
    logits: Float[Tensor, "B C"],
    target: Float[Tensor, "B C"],
    alpha: float = 0.1,
    beta: float = 1.0,
    log_zero: float = -4.0,
) -> Float[Tensor, "B"]:
    """alpha H(t, p) + beta H(p, t) per sample against distributions `target` (B, C); log t is at least log_zero.

    Not linear in the target. Raises ValueError as `symmetric_cross_entropy`.
    """
    check_weights(alpha, beta, log_zero)
    log_p = F.log_softmax(logits, 1)
    # cut before the logarithm, so that a share of 0 has no NaN gradient
    log_target = target.clamp_min(math.exp(log_zero)).log()
    return -(alpha * target * log_p + beta * log_p.exp() * log_target).sum(1)


class SymmetricCrossEntropy(Part):
    """Cross entropy plus reverse cross entropy, per sample. Wang et al., ICCV 2019.

    alpha >= 0: weight of cross entropy, which learns hard classes. beta >= 0: weight of the reverse, which resists
    noise. log_zero < 0: what log 0 stands for, A in the paper. Defaults are the authors' for CIFAR-10.
    """

    def __init__(self, alpha: float = 0.1, beta: float = 1.0, log_zero: float = -4.0):
        check_weights(alpha, beta, log_zero)
        self.alpha, self.beta, self.log_zero = alpha, beta, log_zero

    def __call__(self, logits: Float[Tensor, "B C"], labels: Int[Tensor, "B"]) -> Float[Tensor, "B"]:
        return symmetric_cross_entropy(logits, labels, self.alpha, self.beta, self.log_zero)

    def soft(self, logits: Float[Tensor, "B C"], target: Float[Tensor, "B C"]) -> Float[Tensor, "B"]:
        """The loss against a distribution per sample, (B, C) with rows that sum to 1."""
        return soft_symmetric_cross_entropy(logits, target, self.alpha, self.beta, self.log_zero)
