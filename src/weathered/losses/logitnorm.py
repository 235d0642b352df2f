"""LogitNorm: give every row of logits the same norm before the loss, so that only their direction is trained.

Source: Wei et al., "Mitigating Neural Network Overconfidence with Logit Normalization", ICML 2022.
u = z / |z|, L = base(u / tau, y). The gradient with cross entropy is (I - u u^T)(softmax(u / tau) - onehot(y)) /
(tau |z|): never along z, and smaller the larger z is. With C classes cross entropy then lies in
[log(1 + (C-1) exp(-sqrt(C / (C-1)) / tau)), log(1 + (C-1) exp(sqrt(2) / tau))].
Limits: |z| = 1 / tau is the base loss; tau -> infinity is log C; tau -> 0 is a hard maximum.
"""

import math

import torch
from jaxtyping import Float
from torch import Tensor

from weathered.core.roles import Loss
from weathered.losses.base import WrappingLoss


def normalise_logits(logits: Float[Tensor, "B C"], tau: float) -> Float[Tensor, "B C"]:
    """Each row divided by `tau` times its Euclidean norm; rows of norm 1 / tau.

    logits (B, C), any real numbers, C >= 2. tau > 0. Returns at least float32, the type of the norm.
    A row whose norm is within rounding of 0 has no direction: it becomes zeros, and its gradient is 0. NaN stays NaN,
    and a row whose norm overflows (above 1.8e19 in float32) becomes NaN, so that logits that diverge are noticed.
    Raises ValueError if tau is out of range or logits are not (B, C) with C >= 2.
    """
    check_tau(tau)
    if logits.ndim != 2 or logits.shape[1] < 2:
        raise ValueError(f"logits must be (B, C) with at least 2 classes, got shape {tuple(logits.shape)}")
    wide = logits.float() if logits.dtype.itemsize < 4 else logits
    norm = torch.linalg.vector_norm(wide, dim=1, keepdim=True).nan_to_num(nan=math.nan, posinf=math.nan)
    smallest = torch.finfo(wide.dtype).eps
    # clamped before it divides, so that a row of zeros has no NaN gradient
    return wide * (1 / (tau * norm.clamp_min(smallest))).masked_fill(norm <= smallest, 0.0)


def check_tau(tau: float) -> None:
    """Raise ValueError unless tau > 0 and finite."""
    if not (tau > 0 and math.isfinite(tau)):
        raise ValueError(f"tau must be > 0 and finite, got {tau}")


class LogitNorm(WrappingLoss):
    """Scale each row of logits to the norm 1 / tau, then apply `base`. Wei et al., ICML 2022.

    tau > 0: temperature; more classes need a smaller one. base: any loss of logits and labels, cross entropy by
    default; smoothing and mixtures apply to the scaled logits.
    Used in training only: predictions and scores are those of the raw logits, whose order is the same.
    The gradient is that of `base` divided by tau times the norm: networks without batch normalisation, whose logits
    start small, need a learning rate as much smaller. A last layer that starts at zero gets no gradient at all.
    """

    def __init__(self, tau: float = 0.04, base: Loss | None = None):
        check_tau(tau)
        super().__init__(base)
        self.tau = tau

    def transform_logits(self, logits: Float[Tensor, "B C"]) -> Float[Tensor, "B C"]:
        return normalise_logits(logits, self.tau)
