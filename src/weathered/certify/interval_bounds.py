"""Interval bounds: pass a box around each input through the network, layer by layer, and compare what logits may be.

For z in [l, u] with centre c and half width h:
    affine layer    W c + b -/+ |W| h
    monotone layer  f(l) and f(u)                        ReLU, maxima and means over positions
    Linf distance   [max_i max(l_i - w_i, w_i - u_i, 0), max_i max(u_i - w_i, w_i - l_i)] for each unit
x is certified if the least logit of its decision lies above the largest one of every other class. Each bound is right
but not the tightest: layers are bounded as if coordinates moved on their own. The box ends at 0 and 1, where inputs do.
Limits: epsilon = 0 gives the logits themselves; of a `linf-net` no interval is wider than 2 epsilon / std, so it
certifies whatever a margin does.
Source: Gowal et al., "Scalable Verified Training for Provably Robust Image Classification", ICCV 2019; of layers of
distances: Zhang et al., ICLR 2022.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import cast

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn
from torch.nn import functional as F

from weathered.attacks.base import check_budget, check_unit_range
from weathered.core.errors import Incompatible
from weathered.core.facts import name_of
from weathered.core.predict import eval_mode
from weathered.nn.cnn_small import CNNSmall
from weathered.nn.linf_net import LinfNetwork, check_certifiable
from weathered.nn.mlp import MLP
from weathered.nn.network import Network

CHUNK = 256
"""Images whose boxes pass through the network at a time."""

MONOTONE = (nn.ReLU, nn.Flatten, nn.Identity)


def logit_bounds(
    model: nn.Module, lower: Float[Tensor, "B ..."], upper: Float[Tensor, "B ..."]
) -> tuple[Float[Tensor, "B C"], Float[Tensor, "B C"]]:
    """The least and the largest logits over all images of a box, bounds that hold but are not the tightest.

    model: `linf-net`, `mlp` or `cnn_small:norm=none`, in evaluation mode. lower, upper: ends of the boxes, as images.
    Raises Incompatible for any other network, and for a `linf-net` of a finite exponent.
    """
    if isinstance(model, LinfNetwork):
        return check_certifiable(model).bounds(lower, upper)
    body = model.body if isinstance(model, Network) else None
    if not isinstance(body, (MLP, CNNSmall)):
        raise Incompatible(
            f"interval bounds do not pass through {name_of(model if body is None else body)}; use --model linf-net, "
            "mlp or cnn_small:norm=none."
        )
    network = cast(Network, model)
    ends = network.normalize(lower), network.normalize(upper)
    if isinstance(body, MLP):
        ends = _through(body.layers, *ends)
    else:
        for number, stage in enumerate(body.stages):
            ends = _through(cast(nn.Sequential, stage), *(body.stage_input(end, number) for end in ends))
        ends = body.forward_head(ends[0]), body.forward_head(ends[1])
    return _through([network.get_classifier()], *ends)


def _through(modules: Iterable[nn.Module], lower: Tensor, upper: Tensor) -> tuple[Tensor, Tensor]:
    for module in modules:
        if isinstance(module, nn.Sequential):
            lower, upper = _through(module, lower, upper)
        elif isinstance(module, MONOTONE):
            lower, upper = module(lower), module(upper)
        elif isinstance(module, (nn.Linear, nn.Conv2d)):
            centre, half = module((lower + upper) / 2), (upper - lower) / 2
            size = module.weight.abs()
            if isinstance(module, nn.Linear):
                spread = F.linear(half, size)
            else:
                spread = F.conv2d(half, size, None, module.stride, module.padding, module.dilation, module.groups)
            lower, upper = centre - spread, centre + spread
        else:
            raise Incompatible(
                f"interval bounds do not pass through {name_of(module)}; build the model without it, as in "
                "cnn_small:norm=none."
            )
    return lower, upper


@dataclass(frozen=True)
class IntervalCertificate:
    """Of B images the decisions (B,), whether they stand in the whole box (B,), and bounds of all logits (B, C)."""

    labels: Int[Tensor, "B"]
    certified: Bool[Tensor, "B"]
    lower: Float[Tensor, "B C"]
    upper: Float[Tensor, "B C"]


class IntervalBounds:
    """Certify that no change of each value by up to `epsilon` turns a decision, by bounds of all logits.

    epsilon in [0, 1], in units of inputs. What float32 may round is allowed for in a `linf-net`, not in ReLU networks.
    """

    def __init__(self, epsilon: float):
        check_budget(epsilon, "linf")
        self.epsilon = epsilon

    def certify(self, model: nn.Module, x: Float[Tensor, "B ..."]) -> IntervalCertificate:
        """Decide, and bound the logits of, each image.

        model: as in `logit_bounds`; it runs in evaluation mode and gets its modes back. x: floats in [0, 1].
        Raises Incompatible for another model, ValueError for inputs out of range.
        """
        check_unit_range(x, "IntervalBounds")
        slack = 4 * model.rounding if isinstance(model, LinfNetwork) else 0.0
        parts = []
        with torch.no_grad(), eval_mode(model):
            for part in x.split(CHUNK):
                box = (part - self.epsilon).clamp_min(0), (part + self.epsilon).clamp_max(1)
                parts.append((model(part).argmax(1), *logit_bounds(model, *box)))
        labels, lower, upper = (torch.cat(found) for found in zip(*parts, strict=True))
        worst = lower.gather(1, labels[:, None]).squeeze(1)
        rival = upper.scatter(1, labels[:, None], -torch.inf).amax(1)
        return IntervalCertificate(labels, worst - rival > slack, lower, upper)
