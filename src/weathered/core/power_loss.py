"""The loss (1 - p^q) / q of a probability p: minus the q-logarithm of p, which several losses are made of.

q = 0 is -log p, q = 1 is 1 - p. For q > 0 it is at most 1 / q; for q < 0 it grows faster than -log p.
"""

import math

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn import functional as F

from weathered.losses.cross_entropy import cross_entropy

STEEPEST = 30.0
"""For q < 0 the loss goes on linearly where p^q passes exp(30), and float32 would overflow from exp(88) on."""


def minus_q_log(log_p: Float[Tensor, "..."], q: float) -> Float[Tensor, "..."]:
    """(1 - p^q) / q from log p, elementwise, same shape. log_p <= 0, q finite."""
    if q == 0:
        return -log_p
    exponent = q * log_p
    if q > 0:
        # expm1 keeps its digits where p^q is close to 1
        return -torch.expm1(exponent) / q
    beyond = (exponent - STEEPEST).clamp_min(0)
    return (torch.expm1(exponent.clamp_max(STEEPEST)) + math.exp(STEEPEST) * beyond) / -q


def power_loss(logits: Float[Tensor, "B C"], labels: Int[Tensor, "B"], q: float) -> Float[Tensor, "B"]:
    """(1 - p^q) / q of the label's softmax probability p, per sample.

    logits (B, C), any real numbers; labels (B,) in [0, C), else an error as in cross entropy. The gradient is p^q
    times that of cross entropy.
    """
    return minus_q_log(-cross_entropy(logits, labels), q)


def soft_power_loss(logits: Float[Tensor, "B C"], target: Float[Tensor, "B C"], q: float) -> Float[Tensor, "B"]:
    """The losses of the classes, averaged with the weights `target` (B, C); its rows are taken to sum to 1."""
    return (target * minus_q_log(F.log_softmax(logits, 1), q)).sum(1)
