"""ASH: the energy of the logits after most activations were set to 0 and the rest were changed.

Source: Djurisic et al., "Extremely Simple Activation Shaping for Out-of-Distribution Detection", ICLR 2023. Of the D
features of an input, >= 0, the `percentile` smallest are set to 0; s1 is the sum before, s2 after, k the number kept:
    p   the rest stays        s   the rest is multiplied by exp(s1 / s2)        b   the rest becomes s1 / k
The score is the energy of W h' + b. They threshold minus this. Here it acts on the pooled features before the last
layer. Limits: percentile = 0 leaves p as Energy at T = 1, and multiplies by e in s.
"""

from typing import Literal, get_args

import torch
from jaxtyping import Float
from torch import Tensor

from weathered.core.errors import Incompatible
from weathered.core.facts import Traits
from weathered.scores.base import Evidence, Score, head_energy, need

Kind = Literal["p", "s", "b"]


def shaped(features: Float[Tensor, "N D"], percentile: float, kind: Kind) -> Float[Tensor, "N D"]:
    """Features after shaping, in float64; rows of zeros stay zeros. features (N, D): >= 0. percentile in [0, 100)."""
    h = features.double()
    keep = h.shape[1] - round(h.shape[1] * percentile / 100)
    top = h.topk(max(keep, 1), dim=1)
    before, after = h.sum(1, keepdim=True), top.values.sum(1, keepdim=True)
    if kind == "b":
        values = (before / top.values.shape[1]).expand_as(top.values)
    else:
        # where nothing is kept there is nothing to multiply
        values = top.values * (before / after.clamp_min(torch.finfo(h.dtype).tiny)).exp() if kind == "s" else top.values
    return torch.zeros_like(h).scatter(1, top.indices, torch.where(before > 0, values, 0.0))


def ash_score(
    features: Float[Tensor, "N D"],
    weight: Float[Tensor, "C D"],
    bias: Float[Tensor, "C"],
    percentile: float = 90.0,
    kind: Kind = "s",
) -> Float[Tensor, "N"]:
    """Energy of the last layer on shaped features.

    features (N, D): finite, >= 0, as after ReLU. weight (C, D), bias (C,): the last layer. percentile in [0, 100):
    share of each row that is set to 0. kind: p, s or b, see the module. Returns (N,) float64 in nats, any real numbers,
    higher = more out-of-distribution. Raises ValueError outside these ranges or for shapes that do not fit.
    Source: Djurisic et al., ICLR 2023 (they threshold the negative of this).
    """
    check_arguments(percentile, kind)
    if bool((features < 0).any()):
        raise ValueError("features must be >= 0, as after ReLU, to be shaped")
    return head_energy(features, weight, bias, lambda h: shaped(h, percentile, kind))


def check_arguments(percentile: float, kind: str) -> None:
    """Raise ValueError unless percentile lies in [0, 100) and the kind is known."""
    if not 0 <= percentile < 100:
        raise ValueError(f"percentile must be in [0, 100), got {percentile}")
    if kind not in get_args(Kind):
        raise ValueError(f"kind must be one of {', '.join(get_args(Kind))}, got '{kind}'")


class ASH(Score):
    """Energy after shaping the features. Needs features >= 0 and a linear head; nothing to fit.

    percentile in [0, 100): share of each input's features that is set to 0. kind: p, s or b, see the module.
    Djurisic et al., ICLR 2023.
    """

    traits = Traits(needs={"features": "it shapes them", "linear_head": "it computes logits from the shaped features"})

    def __init__(self, percentile: float = 90.0, kind: Kind = "s"):
        check_arguments(percentile, kind)
        self.percentile = percentile
        self.kind: Kind = kind

    @torch.no_grad()
    def score(self, evidence: Evidence) -> Float[Tensor, "N"]:
        """Scores (N,), higher = more out-of-distribution. Raises Incompatible for features below 0."""
        head, features = need(evidence.head, "head", self), need(evidence.features, "features", self)
        if bool((features < 0).any()):
            raise Incompatible("ASH needs features >= 0, as after ReLU, which this model does not give. Leave it out.")
        return ash_score(features, head.weight, head.bias, self.percentile, self.kind)
