"""LogitClip: cap the norm of the logits before any loss, so that a wrong label's loss is bounded.

Source: Wei et al., "Mitigating Memorization of Noisy Labels by Clipping the Model Prediction", ICML 2023.
c(z) = delta z / |z|_p where |z|_p > tau, else z. For delta <= tau and c = 2^(1 - 1/p) cross entropy then lies in
[log(1 + (C-1) exp(-c tau)), log(1 + (C-1) exp(c tau))].
Limits: tau above every norm is the base loss; every norm above tau is LogitNorm with temperature 1/delta.
The authors' released code sets delta = 1/tau, which is another method; ask for it with delta.
"""

import math

from jaxtyping import Float
from torch import Tensor

from weathered.core.roles import Loss
from weathered.losses.base import WrappingLoss


def clip_logits(
    logits: Float[Tensor, "B C"], tau: float, delta: float | None = None, p: float = 2.0
) -> Float[Tensor, "B C"]:
    """Rescale each row whose p-norm exceeds `tau` to norm `delta` (default tau); other rows keep value and gradient.

    logits (B, C), any real numbers. tau > 0, infinity switches clipping off; delta > 0; p >= 1.
    Returns the same shape and dtype; the norm is taken in at least float32. NaN stays NaN, and a row whose norm
    overflows (above 1.8e19 in float32 with p = 2) becomes NaN, so that clipping hides no divergence.
    Raises ValueError if an argument is out of range or logits are not two-dimensional.
    """
    check_arguments(tau, delta, p)
    if logits.ndim != 2:
        raise ValueError(f"logits must be (B, C), got shape {tuple(logits.shape)}")
    if math.isinf(tau):
        return logits
    wide = logits.float() if logits.dtype.itemsize < 4 else logits
    norm = wide.norm(p=p, dim=1, keepdim=True).nan_to_num(nan=math.nan, posinf=math.nan)
    # the unclipped branch never divides, so that a row of zeros has no NaN gradient
    scale = (tau if delta is None else delta) / norm.clamp_min(tau)
    return logits * scale.masked_fill(norm <= tau, 1.0).to(logits.dtype)


def check_arguments(tau: float, delta: float | None, p: float) -> None:
    """Raise ValueError unless tau > 0, delta > 0 and p >= 1."""
    if not tau > 0:
        raise ValueError(f"tau must be > 0, got {tau}")
    if delta is not None and not (delta > 0 and math.isfinite(delta)):
        raise ValueError(f"delta must be > 0 and finite, got {delta}")
    if not p >= 1:
        raise ValueError(f"p must be >= 1, got {p}")


class LogitClip(WrappingLoss):
    """Cap the norm of the logits at `tau`, then apply `base`.

    tau > 0: norm above which a row is clipped. delta > 0: norm after clipping, default tau; 1/tau gives the
    behaviour of the released code. p >= 1: order of the norm. base: any loss of logits and labels.
    Used in training only: predictions are made from the raw logits, whose order is the same.
    """

    def __init__(self, tau: float = 1.0, delta: float | None = None, p: float = 2.0, base: Loss | None = None):
        check_arguments(tau, delta, p)
        super().__init__(base)
        self.tau, self.delta, self.p = tau, delta, p

    def transform_logits(self, logits: Float[Tensor, "B C"]) -> Float[Tensor, "B C"]:
        return clip_logits(logits, self.tau, self.delta, self.p)
