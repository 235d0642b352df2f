"""TRADES: the usual loss on clean inputs, plus how far predictions nearby can be driven from the clean ones.

Source: Zhang et al., "Theoretically Principled Trade-off between Robustness and Accuracy", ICML 2019.
    x' climbs KL(p(x) || p(x')) within the budget, the network in evaluation mode; labels are not asked for
    loss = L(f(x), y) + beta * mean KL(p(x) || p(x'))          p: softmax of the logits, in training mode
The gradient reaches both predictions. Limits: beta = 0 is supervised training; at epsilon = 0 the divergence is 0 where
the network is the same in both passes.
"""

from __future__ import annotations

import math
from functools import partial
from typing import TYPE_CHECKING, Literal

import torch
from jaxtyping import Float
from torch import Tensor

from weathered.attacks.base import Norm
from weathered.attacks.trades import SPREAD, divergence
from weathered.core.batch import Batch
from weathered.core.predict import AtTestTime, eval_mode
from weathered.procedures.adversarial import AdversarialTraining, noise_like
from weathered.procedures.base import check_range

if TYPE_CHECKING:
    from weathered.core.run import Run


class Trades(AdversarialTraining):
    """Train so that predictions change little nearby. Any loss part serves on the clean inputs.

    beta >= 0: weight of the divergence; more trades accuracy for robustness. epsilon in [0, 1] for linf. norm: linf or
    l2. steps >= 1, each of the length reach * epsilon / steps. start: `noise` begins at x plus noise of deviation
    0.001, as in the source, `even` at a point drawn evenly from the budget, as the light recipe does. warm_up in
    [0, 1]: share of training over which the budget rises from 0, epoch by epoch. Costs steps + 2 passes forward and
    backward.
    """

    def __init__(
        self,
        beta: float = 6.0,
        epsilon: float = 8 / 255,
        norm: Norm = "linf",
        steps: int = 10,
        reach: float = 2.5,
        start: Literal["noise", "even"] = "noise",
        warm_up: float = 0.0,
    ):
        super().__init__(epsilon, norm, steps, reach, warm_up)
        check_range("beta", beta, beta >= 0 and math.isfinite(beta), "[0, infinity)")
        if start not in ("noise", "even"):
            raise ValueError(f"start must be 'noise' or 'even', got '{start}'")
        self.beta, self.start = beta, start

    def loss(self, run: Run, batch: Batch) -> Float[Tensor, ""]:
        if self.beta == 0:
            return super().loss(run, batch)
        moved = self.climbed(run, batch.x, partial(divergence, self._clean(run, batch.x)), self._start(run, batch.x))
        output = run.forward(batch.x)
        natural = run.objective(output, batch)
        attacked = run.forward(moved).logits
        return natural + self.beta * divergence(run.test_logits(output.logits), run.test_logits(attacked)).mean()

    def _clean(self, run: Run, x: Tensor) -> Float[Tensor, "B C"]:
        model = AtTestTime(run)
        with torch.no_grad(), eval_mode(model):
            return model(x)

    def _start(self, run: Run, x: Tensor) -> Tensor | None:
        return x + SPREAD * noise_like(run, x, "trades start") if self.start == "noise" else None
