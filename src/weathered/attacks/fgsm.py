"""FGSM, the fast gradient sign method: one step of full length along the gradient of cross entropy.

Source: Goodfellow et al., "Explaining and Harnessing Adversarial Examples", ICLR 2015.
    x' = clip(x + epsilon * sign grad_x CE(f(x), y))
With norm l2 the step follows the unit gradient. Limits: epsilon = 0 gives x; for a linear model of two classes it is
the worst case in the box. One step says little of robustness: a network trained against one step may give way to two.
"""

from __future__ import annotations

from functools import partial

import torch
from jaxtyping import Float
from torch import Tensor, nn

from weathered.attacks.base import Attack, Passes, Search, ascend, cross_entropy


class FGSM(Attack):
    """One step of the length epsilon. epsilon, norm, early_stop: as in `Attack`. Draws nothing."""

    def passes(self) -> Passes:
        return Passes(forward=1, backward=1)

    def search(self, model: nn.Module, found: Search, logits: Float[Tensor, "B C"], rng: torch.Generator) -> None:
        ball, objective = found.ball, partial(cross_entropy, labels=found.targets)
        moved = ascend(model, ball, ball.x, objective, self.epsilon, 1)
        with torch.no_grad():
            found.note(moved, model(moved))
