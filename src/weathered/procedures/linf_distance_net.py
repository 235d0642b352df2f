"""Training of a network of Linf distances: a relaxation by Lp norms, and a clipped hinge beside cross entropy.

Source: Zhang et al., "Boosting the Certified Robustness of L-infinity Distance Nets", ICLR 2022; the hinge alone is
that of their "Towards Certifying L-infinity Robustness using Neural Networks with L-inf-dist Neurons", ICML 2021.
With logits o, eps the length `epsilon` in units of the normalised input, r rising from 0 at `start` to 1 at `end`:
    margin   m = 1 - (o_y - max_j!=y o_j) / (2 eps)
    mixture  min(max(m, 0), 1) + lambda CE(c o, y), lambda = lambda_start (lambda_end / lambda_start)^r, c learned
    hinge    3/4 max(m, 0) + 1/4 mean_j max(m_j, 0), m_j as m with class j alone, m_y = 0
    exponent p = p_start (p_end / p_start)^r, infinity from r = 1 on
At p = infinity a margin of more than 2 eps proves that no change of x by up to eps turns the decision. A sample on the
wrong side is on the flat top of the clipped hinge and learns from cross entropy alone.
Limits: lambda = 0 is the clipped hinge alone, which leaves many samples unlearned; a margin of 2 eps or more costs 0.
"""

from __future__ import annotations

import math
import warnings
from typing import TYPE_CHECKING, Literal, cast

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn import functional as F

from weathered.attacks.base import check_unit_range, margin
from weathered.core.batch import Batch
from weathered.core.facts import Traits
from weathered.core.procedure import Procedure
from weathered.nn.linf_net import LinfNetwork
from weathered.procedures.base import check_range

if TYPE_CHECKING:
    from weathered.core.run import Run

BETA2, ADAM_EPSILON = 0.99, 1e-10
"""Of Adam in this method: gradients are few and small, so that an epsilon of 1e-8 already changes what is learned."""

SETTLING = 20
"""Steps at p = infinity after which running means, of which each step renews a tenth, belong to that exponent."""

SCALE = "scale"
"""The name of the learned scale among the modules of a run."""


def ramp(progress: float, start: float, end: float) -> float:
    """How far a change from `start` to `end` of training has come, in [0, 1]."""
    return min(max((progress - start) / (end - start), 0.0), 1.0)


def geometric(first: float, last: float, share: float) -> float:
    """first (last / first)^share for numbers > 0; 0 where first is 0. share in [0, 1]."""
    return first * (last / first) ** share if first else 0.0


def margins(logits: Float[Tensor, "B C"], labels: Int[Tensor, "B"]) -> Float[Tensor, "B"]:
    """The label's logit minus the largest other one. logits (B, C), C >= 2."""
    return -margin(logits, labels)


def clipped_hinge(logits: Float[Tensor, "B C"], labels: Int[Tensor, "B"], epsilon: float) -> Float[Tensor, "B"]:
    """1 - margin / (2 epsilon), cut to [0, 1], without gradient where it is cut.

    epsilon > 0, in units of the logits. A margin <= 0 costs 1, one of 2 epsilon or more costs 0, both with gradient 0.
    """
    _check_epsilon(epsilon)
    gap = margins(logits, labels)
    sloping = (gap > 0) & (gap < 2 * epsilon)
    cost = 1 - gap / (2 * epsilon)
    return torch.where(sloping, cost, cost.detach().clamp(0, 1))


def hinge(logits: Float[Tensor, "B C"], labels: Int[Tensor, "B"], epsilon: float) -> Float[Tensor, "B"]:
    """3/4 of the largest and 1/4 of the mean of max(1 - (o_y - o_j) / (2 epsilon), 0) over the C classes, 0 for j = y.

    epsilon > 0, in units of the logits. Unbounded, and 0 from a margin of 2 epsilon on.
    """
    _check_epsilon(epsilon)
    costs = (1 - (logits.gather(1, labels[:, None]) - logits) / (2 * epsilon)).relu()
    costs = costs.scatter(1, labels[:, None], 0.0)
    return 0.75 * costs.amax(1) + 0.25 * costs.mean(1)


def _check_epsilon(epsilon: float) -> None:
    check_range("epsilon", epsilon, epsilon > 0 and math.isfinite(epsilon), "(0, infinity)")


class Scale(nn.Module):
    """A number that starts at 1 and, under Adam, moves at `rate` times the learning rate; it multiplies the input."""

    def __init__(self, rate: float):
        super().__init__()
        self.rate = rate
        # Adam moves each parameter by about the learning rate, whatever the size of its gradient
        self.value = nn.Parameter(torch.tensor(1 / rate))

    def forward(self, logits: Tensor) -> Tensor:
        return self.rate * self.value * logits


class LinfDistanceNet(Procedure):
    """Train a `linf-net` so that its margins certify, image by image, that no small change turns the decision.

    epsilon in (0, 1]: training asks for margins that certify this Linf length, in units of inputs in [0, 1]; the
    authors take 24/255 to certify 8/255 on CIFAR-10 and 0.45 for 0.3 on MNIST. loss: mixture, or hinge as in their
    first paper. lambda_start, lambda_end: weight of cross entropy in the mixture, both > 0 or both 0. p_start, p_end:
    exponents of the ramp, 1 <= p_start <= p_end, finite. 0 <= start < end < 1: shares of training where it begins and
    ends; from `end` on p is infinity, which needs some steps for the running means. scale_rate > 0: learning rate of
    the scale c, as a share of that of the weights, under Adam.

    Under Adam beta2 is 0.99 and epsilon 1e-10. Meant for Adam at a large rate such as 0.03 and no weight decay. Its
    losses are its own, so it calls neither loss, reweight nor term. The network is that of p = infinity whenever it
    predicts, is attacked or certified, also before training ends; good figures come late.
    Raises ValueError for arguments out of range, and for inputs outside [0, 1].
    """

    traits = Traits(
        needs={
            "linf_distances": "certifies by what layers of distances guarantee",
            "range01": "certifies lengths in units of [0, 1]",
            "hard_target": "asks for a margin of each sample's one given label",
        },
        honours=frozenset({"sampler", "transform", "stepper"}),
    )

    def __init__(
        self,
        epsilon: float = 24 / 255,
        loss: Literal["mixture", "hinge"] = "mixture",
        lambda_start: float = 0.1,
        lambda_end: float = 0.0005,
        p_start: float = 8.0,
        p_end: float = 1000.0,
        start: float = 0.08,
        end: float = 0.96,
        scale_rate: float = 0.2,
    ):
        check_range("epsilon", epsilon, 0 < epsilon <= 1, "(0, 1]")
        if loss not in ("mixture", "hinge"):
            raise ValueError(f"loss must be 'mixture' or 'hinge', got '{loss}'")
        if not (min(lambda_start, lambda_end) > 0 or lambda_start == lambda_end == 0):
            raise ValueError(
                f"lambda_start and lambda_end must both be > 0, or both 0, got {lambda_start} and {lambda_end}"
            )
        for name, value in (("lambda_start", lambda_start), ("lambda_end", lambda_end), ("p_end", p_end)):
            check_range(name, value, math.isfinite(value), "[0, infinity)")
        if not 1 <= p_start <= p_end:
            raise ValueError(f"p_start and p_end must be 1 <= p_start <= p_end, got {p_start} and {p_end}")
        if not 0 <= start < end < 1:
            raise ValueError(f"start and end must be 0 <= start < end < 1, got {start} and {end}")
        check_range("scale_rate", scale_rate, scale_rate > 0 and math.isfinite(scale_rate), "(0, infinity)")
        self.epsilon, self.loss_kind, self.scale_rate = epsilon, loss, scale_rate
        self.lambda_start, self.lambda_end, self.p_start, self.p_end = lambda_start, lambda_end, p_start, p_end
        self.start, self.end = start, end

    def setup(self, run: Run) -> dict[str, nn.Module]:
        mixes = self.loss_kind == "mixture" and self.lambda_start > 0
        return {SCALE: Scale(self.scale_rate)} if mixes else {}

    def exponent_at(self, progress: float) -> float:
        """The exponent of all layers at `progress` of training."""
        share = ramp(progress, self.start, self.end)
        return geometric(self.p_start, self.p_end, share) if share < 1 else math.inf

    def lambda_at(self, progress: float) -> float:
        """The weight of cross entropy at `progress` of training; it follows the exponent."""
        return geometric(self.lambda_start, self.lambda_end, ramp(progress, self.start, self.end))

    def before_epoch(self, run: Run) -> None:
        if run.step or not run.fabric.is_global_zero:
            return
        settled = sum(self.exponent_at(step / run.total_steps) == math.inf for step in range(run.total_steps))
        if settled < SETTLING:
            warnings.warn(
                f"LinfDistanceNet: {settled} of {run.total_steps} steps are at p = infinity, at which the network "
                f"predicts; its running means need about {SETTLING}. Train longer, or lower end (it is {self.end:g}).",
                stacklevel=2,
            )

    def update(self, run: Run, batch: Batch) -> None:
        for group in run.optimizer.param_groups:
            if "betas" in group:
                group["betas"], group["eps"] = (group["betas"][0], BETA2), ADAM_EPSILON
        super().update(run, batch)

    def loss(self, run: Run, batch: Batch) -> Float[Tensor, ""]:
        check_unit_range(batch.x, "LinfDistanceNet")
        labels, network = batch.target.single(), cast(LinfNetwork, run.model)
        network.exponent = self.exponent_at(run.progress)
        logits = run.forward(batch.x).logits
        epsilon = self.epsilon / network.scale
        if self.loss_kind == "hinge":
            return hinge(logits, labels, epsilon).mean()
        losses = clipped_hinge(logits, labels, epsilon)
        if SCALE in run.modules:
            scaled = run.modules[SCALE](logits)
            losses = losses + self.lambda_at(run.progress) * F.cross_entropy(scaled, labels, reduction="none")
        return losses.mean()

    def after_step(self, run: Run) -> None:
        if run.step + 1 == run.total_steps:
            # in a run of very few steps the ramp may not have come to its end
            cast(LinfNetwork, run.model).exponent = math.inf
