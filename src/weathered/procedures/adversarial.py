"""What adversarial training shares: the budget of each epoch, and the attack of a step."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from weathered.attacks.base import Ball, Norm, Objective, ascend, check_budget, check_count, check_unit_range
from weathered.core import distributed
from weathered.core.facts import Traits, name_of
from weathered.core.predict import AtTestTime, eval_mode
from weathered.core.procedure import Procedure
from weathered.procedures.base import check_range

if TYPE_CHECKING:
    from weathered.core.run import Run


def epsilon_at(epsilon: float, epoch: int, epochs: int, warm_up: float) -> float:
    """The budget of an epoch, counted from 0: epsilon * min(1, epoch / W), W = warm_up * epochs; epsilon for W = 0.

    It is 0 in the first epoch of a warm-up and constant within an epoch.
    """
    ramp = warm_up * epochs
    # a share of epochs such as 0.1 * 30 is a little more than 3
    return epsilon * epoch / ramp if epoch < ramp - 1e-9 else epsilon


class AdversarialTraining(Procedure):
    """Base of procedures that attack each batch first.

    epsilon: budget in units of inputs in [0, 1]. norm: linf or l2. steps >= 1 of the length reach * epsilon / steps,
    reach > 0. warm_up in [0, 1]: share of training over which the budget rises from 0, once per epoch; steps keep
    their length. Raises ValueError for arguments out of range, and for inputs outside [0, 1].
    """

    traits = Traits(
        needs={"range01": "keeps its attack in [0, 1]"},
        honours=Procedure.traits.honours,
    )

    def __init__(self, epsilon: float, norm: Norm, steps: int, reach: float, warm_up: float):
        check_budget(epsilon, norm)
        check_count("steps", steps)
        check_range("reach", reach, reach > 0 and math.isfinite(reach), "(0, infinity)")
        check_range("warm_up", warm_up, 0 <= warm_up <= 1, "[0, 1]")
        self.epsilon, self.steps, self.reach, self.warm_up = epsilon, steps, reach, warm_up
        self.norm: Norm = norm

    def epsilon_now(self, run: Run) -> float:
        """The budget of the present epoch."""
        return epsilon_at(self.epsilon, run.epoch, run.settings.epochs, self.warm_up)

    def climbed(self, run: Run, x: Tensor, objective: Objective, start: Tensor | None = None) -> Tensor:
        """Inputs of the present budget around x that raise the objective, the network in evaluation mode.

        start: where the steps begin, a point drawn evenly from the budget by default. Returns x for a budget of 0.
        """
        check_unit_range(x, name_of(self))
        epsilon = self.epsilon_now(run)
        if epsilon == 0:
            return x
        ball, model = Ball.around(x, epsilon, self.norm), AtTestTime(run)
        start = self._even(run, ball) if start is None else start
        with eval_mode(model):
            return ascend(model, ball, start, objective, self.reach * self.epsilon / self.steps, self.steps)

    def _even(self, run: Run, ball: Ball) -> Tensor:
        """A point of each ball; drawn for the inputs of all devices, so that their number changes nothing."""
        rng = run.generator("attack start", device=ball.x.device, shared=True)
        everyone = Ball.around(run.gather(ball.x), ball.epsilon, ball.norm)
        return distributed.local(run.fabric, everyone.random(rng))


def noise_like(run: Run, x: Tensor, name: str) -> Tensor:
    """Standard normal noise for this process's inputs, drawn for those of all devices together."""
    rng = run.generator(name, device=x.device, shared=True)
    shape = (len(x) * run.fabric.world_size, *x.shape[1:])
    return distributed.local(run.fabric, torch.randn(shape, generator=rng, device=x.device))
