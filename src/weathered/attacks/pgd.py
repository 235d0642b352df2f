"""PGD, projected gradient descent: many small steps up the cross entropy, each brought back into the budget.

Source: Madry et al., "Towards Deep Learning Models Resistant to Adversarial Attacks", ICLR 2018.
    x_0 uniform in the ball,   x_(t+1) = P(x_t + step_size * sign grad_x CE(f(x_t), y))
With norm l2 a step follows the unit gradient. Limits: one step from x of length epsilon is FGSM; epsilon = 0 gives x.
"""

from __future__ import annotations

import math
from functools import partial

import torch
from jaxtyping import Float
from torch import Tensor, nn

from weathered.attacks.base import Attack, Norm, Passes, Search, check_count, cross_entropy, loss_and_gradient


class PGD(Attack):
    """Steps along the gradient of cross entropy, from random starts.

    steps >= 1. step_size > 0: length of a step, 2.5 epsilon / steps by default, which reaches any point of the ball.
    restarts >= 1: the best of so many starts counts. random_start: begin evenly in the ball, otherwise at x.
    epsilon, norm, early_stop: as in `Attack`.
    """

    def __init__(
        self,
        epsilon: float = 8 / 255,
        norm: Norm = "linf",
        steps: int = 20,
        step_size: float | None = None,
        restarts: int = 1,
        random_start: bool = True,
        early_stop: bool = True,
    ):
        super().__init__(epsilon, norm, early_stop)
        check_count("steps", steps)
        check_count("restarts", restarts)
        if step_size is not None and not (step_size > 0 and math.isfinite(step_size)):
            raise ValueError(f"step_size must be > 0 and finite, got {step_size}")
        if restarts > 1 and not random_start:
            raise ValueError("restarts from the same input find the same; leave random_start on, or use one restart")
        self.steps, self.restarts, self.random_start = steps, restarts, random_start
        self.step_size = 2.5 * epsilon / steps if step_size is None else step_size

    def passes(self) -> Passes:
        return Passes(forward=self.restarts, backward=self.restarts * self.steps)

    def search(self, model: nn.Module, found: Search, logits: Float[Tensor, "B C"], rng: torch.Generator) -> None:
        for _ in range(self.restarts):
            if not len(found.open):
                return
            self._climb(model, found, found.drawn(rng) if self.random_start else found.ball.x)

    def _climb(self, model: nn.Module, found: Search, z: Tensor) -> None:
        ball = found.ball
        for _ in range(self.steps):
            _, gradient, answers = loss_and_gradient(model, z, partial(cross_entropy, labels=found.targets))
            if (stays := found.note(z, answers)) is not None:
                if not len(found.open):
                    return
                z, gradient, ball = z[stays], gradient[stays], found.ball
            z = ball.project(z + self.step_size * ball.direction(gradient))
        with torch.no_grad():
            found.note(z, model(z))
