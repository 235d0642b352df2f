"""Certified Linf radii of a network of distances, from the margin of its logits: exact arithmetic, no sampling.

Each logit of a `linf-net` at p = infinity changes by no more than the normalised input, so a change of x by up to r in
each value moves the gap between two logits by at most 2 r / std. With o_1 the largest logit and o_2 the next the
decision stands for every x' with ||x' - x||_inf <= r if
    o_1 - o_2 > 2 r / std
which gives the radius std (o_1 - o_2) / 2, reached by no change. What float32 may round is taken off the margin.
Limits: a tie has the radius 0; bounds of all layers one by one (`interval_bounds`) certify no less.
Source: Zhang et al., ICML 2021 (arXiv 2102.05363) and ICLR 2022 (arXiv 2110.06850).
"""

from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from weathered.attacks.base import check_unit_range
from weathered.core.predict import eval_mode
from weathered.nn.linf_net import check_certifiable

CHUNK = 512
"""Images that pass through the network at a time."""


def margin_radius(logits: Float[Tensor, "B C"], scale: float, rounding: float = 0.0) -> Float[Tensor, "B"]:
    """scale (o_1 - o_2) / 2 for the two largest logits, float64 >= 0: the decision stands below this radius.

    logits (B, C), C >= 2, each of which changes by at most 1 / scale of what the input does. scale > 0, a standard
    deviation in units of the input. rounding >= 0: how wrong a logit may be, taken off four times: two logits, of x and
    of what it is changed to.
    """
    if logits.ndim != 2 or logits.shape[1] < 2:
        raise ValueError(f"logits must be (B, at least 2), got shape {tuple(logits.shape)}")
    if not (scale > 0 and rounding >= 0):
        raise ValueError(f"scale must be > 0 and rounding >= 0, got {scale} and {rounding}")
    first, second = logits.double().topk(2, dim=1).values.unbind(1)
    return scale / 2 * (first - second - 4 * rounding).clamp_min(0)


@dataclass(frozen=True)
class LinfCertificate:
    """Decisions (B,) int64 and radii (B,) float64 of B images, in units of inputs in [0, 1].

    No change of every value by at most r turns a decision whose radius is larger than r; a radius of r itself proves
    nothing about r.
    """

    labels: Int[Tensor, "B"]
    radii: Float[Tensor, "B"]

    def certifies(self, labels: Int[Tensor, "B"], radius: float) -> Bool[Tensor, "B"]:
        """Which decisions are the given classes and stand within `radius` >= 0, which a radius must exceed."""
        if labels.shape != self.labels.shape:
            raise ValueError(f"labels must be {len(self.labels)} classes, got shape {tuple(labels.shape)}")
        if not radius >= 0:
            raise ValueError(f"radius must be >= 0, got {radius}")
        return (self.labels == labels.to(self.labels)) & (self.radii > radius)


class LinfMargin:
    """Certify a `linf-net` by the margins of its logits: one forward pass, no random draw, no failure probability."""

    def certify(self, model: nn.Module, x: Float[Tensor, "B ..."]) -> LinfCertificate:
        """Decide, and certify a radius for, each image.

        model: a `linf-net`; it runs in evaluation mode and gets its modes back. x: floats in [0, 1].
        Raises Incompatible for another model or one whose exponent is finite, ValueError for inputs out of range.
        """
        network = check_certifiable(model)
        check_unit_range(x, "LinfMargin")
        with torch.no_grad(), eval_mode(network):
            logits = torch.cat([network(part) for part in x.split(CHUNK)])
        return LinfCertificate(logits.argmax(1), margin_radius(logits, network.scale, network.rounding))
