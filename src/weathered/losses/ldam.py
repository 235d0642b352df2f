"""LDAM: cross entropy on scaled cosines, with a margin that is larger for rarer classes.

Source: Cao et al., "Learning Imbalanced Datasets with Label-Distribution-Aware Margin Loss", NeurIPS 2019.
m_k = max_margin n_k^(-1/4) / max_j n_j^(-1/4); L = -log softmax(scale (c - m_y onehot(y)))[y] for cosines c.
Limits: max_margin = 0 is cross entropy of scale * c; equal counts give every class max_margin.
The cosine head is part of the method: with another head and scale 30 training diverges.
"""

import math

from jaxtyping import Float, Int
from torch import Tensor
from torch.nn import functional as F

from weathered.core.facts import Traits
from weathered.core.roles import Part
from weathered.weighting.base import ClassCounts, check_class_counts, check_labels

TOLERANCE = 1e-2
"""How far a cosine may exceed 1 by rounding: the next number of bfloat16 after 1 is 1.0078."""


def class_margins(class_counts: ClassCounts, max_margin: float) -> Float[Tensor, "C"]:
    """Margins proportional to n^(-1/4), the rarest class having `max_margin`; (C,) float64, in units of the cosine.

    Raises ValueError for a class without samples, or max_margin below 0.
    """
    if not (max_margin >= 0 and math.isfinite(max_margin)):
        raise ValueError(f"max_margin must be >= 0 and finite, got {max_margin}")
    counts = check_class_counts(class_counts)
    return max_margin * (counts.min() / counts) ** 0.25


def ldam(
    logits: Float[Tensor, "B C"], labels: Int[Tensor, "B"], margins: Float[Tensor, "C"], scale: float
) -> Float[Tensor, "B"]:
    """Cross entropy of `scale` times the cosines, from which the margin of the label was taken; nats, per sample.

    logits (B, C): cosines in [-1, 1]. labels (B,) in [0, C). margins (C,) >= 0. scale > 0.
    Raises ValueError for logits beyond 1, labels outside the classes, or a number of classes that differs.
    """
    if logits.ndim != 2 or logits.shape[1] != len(margins):
        raise ValueError(f"logits must be (B, {len(margins)}), one for each class count, got {tuple(logits.shape)}")
    check_labels(labels, len(margins))
    check_cosines(logits)
    column = labels[:, None]
    # in place, on the scaled copy: which spares a second copy
    shifted = (scale * logits).scatter_add_(1, column, -scale * margins.to(logits)[column])
    return F.cross_entropy(shifted, labels, reduction="none")


def check_cosines(logits: Float[Tensor, "B C"]) -> None:
    """Raise ValueError for logits beyond 1."""
    low, high = (float(end) for end in logits.detach().aminmax()) if logits.numel() else (0.0, 0.0)
    largest = max(high, -low)
    if largest > 1 + TOLERANCE:
        raise ValueError(
            f"LDAM needs cosines in [-1, 1] as logits, got {largest:.4g} in absolute value; "
            "end the model in a cosine head without a scale (head=cosine)"
        )


class LDAM(Part):
    """Cross entropy on scaled cosines with a margin that grows for rarer classes.

    class_counts (C,): training samples of each class, all positive. max_margin >= 0: margin of the rarest class in
    units of the cosine. scale > 0: multiplies the cosines; the head brings none of its own.
    Needs a cosine head. Networks without batch normalisation may lose most of their units at a scale of 30; a smaller
    scale and a lower learning rate help. Losses with margins are not comparable with those of other methods.
    """

    traits = Traits(
        needs={
            "class_counts": "margins are n^(-1/4)",
            "cosine_head": "margins and scale are meant for logits in [-1, 1]",
        }
    )

    def __init__(self, class_counts: ClassCounts, max_margin: float = 0.5, scale: float = 30.0):
        if not (scale > 0 and math.isfinite(scale)):
            raise ValueError(f"scale must be > 0 and finite, got {scale}")
        self.margins, self.scale = class_margins(class_counts, max_margin), scale

    def __call__(self, logits: Float[Tensor, "B C"], labels: Int[Tensor, "B"]) -> Float[Tensor, "B"]:
        return ldam(logits, labels, self.margins, self.scale)

    def test_logits(self, logits: Float[Tensor, "B C"]) -> Float[Tensor, "B C"]:
        """The scaled cosines without margin, whose softmax is the probability."""
        return self.scale * logits

    def scaled(self, logits: Float[Tensor, "B C"]) -> Float[Tensor, "B C"]:
        """What `of_scaled` takes. Raises ValueError for logits beyond 1."""
        check_cosines(logits)
        return self.scale * logits

    def of_scaled(self, logits: Float[Tensor, "B C"], labels: Int[Tensor, "B"]) -> Float[Tensor, "B"]:
        """The loss on cosines that were scaled before, and perhaps changed since, as by a prior of the classes."""
        check_labels(labels, len(self.margins))
        column = labels[:, None]
        shifted = logits.scatter_add(1, column, -self.scale * self.margins.to(logits)[column])
        return F.cross_entropy(shifted, labels, reduction="none")
