"""ABSGD: weight samples by exp(loss / temperature) against a running average of its mean.

Source: Qi et al., "Attentional-Biased Stochastic Gradient Descent", TMLR 2023; the temperature is their lambda.
u = (1 - gamma) u + gamma alpha mean_j exp(l_j / temperature); p_i = exp(l_i / temperature) / (B u); loss sum_i p_i l_i.
With gamma = alpha = 1 its gradient is that of temperature * log mean exp(l / temperature) on the batch.
A positive temperature raises large losses (rare classes), a negative one lowers them (wrong labels).
Limits: temperature -> +-infinity is the plain mean; 0+ takes the largest loss only, 0- the smallest only.

With class weights w the loss of a sample is w_y l throughout, in the exponent too, as in the released code, which also
has a form for wrong labels that adds the plain mean: p_i + 1/B in place of p_i.

u is kept as its logarithm, because exp(l / temperature) overflows. Small positive temperatures put all weight on one
or two samples; 2 is a safe start.
"""

import math
from typing import Any, Literal

import torch
from jaxtyping import Float, Int
from torch import Tensor

from weathered.core.errors import NonFinite
from weathered.core.facts import Traits
from weathered.core.roles import Part
from weathered.core.target import Target, as_target
from weathered.weighting.base import ClassCounts, Rule, class_weights, mixture_weights


def absgd_weights(
    losses: Float[Tensor, "B"], logu: float, temperature: float, gamma: float = 0.9, alpha: float = 1.0
) -> tuple[Float[Tensor, "B"], float]:
    """Weights B * p (B,), without gradient, and the logarithm of the new running average.

    losses (B,) finite, B >= 1. logu: logarithm of the average before this batch, minus infinity for 0.
    temperature: not 0. gamma in (0, 1]: rate of the average. alpha > 0: scale of the batch's term in it.
    Raises ValueError for losses of another shape or an empty batch, NonFinite for NaN or infinite ones.
    """
    if losses.ndim != 1 or not len(losses):
        raise ValueError(f"losses must be (B,), one for each sample and not reduced, got shape {tuple(losses.shape)}")
    if not bool(torch.isfinite(losses).all()):
        row = int((~torch.isfinite(losses)).nonzero()[0])
        raise NonFinite(f"losses must be finite, got {float(losses[row])} at position {row}")
    scaled = losses.detach().double() / temperature
    batch = float(torch.logsumexp(scaled, 0)) - math.log(len(losses)) + math.log(gamma * alpha)
    kept = logu + math.log1p(-gamma) if gamma < 1 else -math.inf
    high, low = max(batch, kept), min(batch, kept)
    logu = high + math.log1p(math.exp(low - high))
    return (scaled - logu).exp().to(losses.dtype), logu


class ABSGD(Part):
    """Weights proportional to exp(loss / temperature), against a running average.

    temperature: any number but 0; about -1 where labels are wrong, 2 to 5 where classes are rare. It has no default,
    since its sign chooses the problem. gamma in (0, 1] and alpha > 0: see `absgd_weights`; alpha divides the weights.
    start in [0, 1]: progress of training from which weights differ from 1; the source trains plainly before. Begun
    when all losses are near 0, it changes nothing. first: what the average holds before the first batch. `batch`:
    that batch's own value, so that weights average 1 / alpha; `zero`, as in the released code: the first weights are
    larger by 1 / (gamma * alpha). add_mean: add 1 to the weights from `start` on, and so the plain mean to the loss.

    rule: class weights from class_counts (C,) that multiply the losses first, `effective` with beta or `inverse`, see
    `class_weights`; they sum to C and are not divided by their mean over the batch. By default there are none.
    classes_start in [0, 1]: progress from which they do. Without a rule neither counts nor target are read.
    """

    traits = Traits(batchwise=True)

    def __init__(
        self,
        temperature: float,
        gamma: float = 0.9,
        alpha: float = 1.0,
        start: float = 0.0,
        first: Literal["batch", "zero"] = "batch",
        add_mean: bool = False,
        rule: Rule | Literal["none"] = "none",
        beta: float = 0.9999,
        classes_start: float = 0.0,
        class_counts: ClassCounts | None = None,
    ):
        if temperature == 0 or not math.isfinite(temperature):
            raise ValueError(f"temperature must be finite and not 0, got {temperature}")
        if not 0 < gamma <= 1:
            raise ValueError(f"gamma must be in (0, 1], got {gamma}")
        if not (alpha > 0 and math.isfinite(alpha)):
            raise ValueError(f"alpha must be > 0 and finite, got {alpha}")
        for name, share in (("start", start), ("classes_start", classes_start)):
            if not 0 <= share <= 1:
                raise ValueError(f"{name} must be in [0, 1], a share of training and not an epoch, got {share}")
        if first not in ("batch", "zero"):
            raise ValueError(f"first must be 'batch' or 'zero', got '{first}'")
        self.temperature, self.gamma, self.alpha = temperature, gamma, alpha
        self.start, self.first, self.add_mean, self.classes_start = start, first, add_mean, classes_start
        self.class_weights: Float[Tensor, "C"] | None = None
        if rule != "none":
            if class_counts is None:
                raise ValueError(f"rule={rule} needs class_counts, the number of training samples of each class")
            self.class_weights = class_weights(class_counts, beta, rule)
            self.traits = Traits(needs={"class_counts": "class weights come from the counts"}, batchwise=True)
        self.logu: float | None = None

    def __call__(
        self, losses: Float[Tensor, "B"], target: Target | Int[Tensor, "B"], progress: float
    ) -> Float[Tensor, "B"]:
        losses = losses.detach()
        if self.class_weights is None or progress < self.classes_start:
            return self._sample_weights(losses, progress)
        of_class = mixture_weights(self.class_weights, as_target(target), losses)
        return of_class * self._sample_weights(of_class * losses, progress)

    def _sample_weights(self, losses: Tensor, progress: float) -> Tensor:
        if progress < self.start:
            return torch.ones_like(losses)
        if self.logu is not None:
            weights, self.logu = absgd_weights(losses, self.logu, self.temperature, self.gamma, self.alpha)
        elif self.first == "zero":
            weights, self.logu = absgd_weights(losses, -math.inf, self.temperature, self.gamma, self.alpha)
        else:
            # the fixed point of the average for this batch
            weights, self.logu = absgd_weights(losses, -math.inf, self.temperature, 1.0, self.alpha)
        return weights + 1 if self.add_mean else weights

    def state_dict(self) -> dict[str, Any]:
        return {"logu": self.logu}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.logu = None if state["logu"] is None else float(state["logu"])
