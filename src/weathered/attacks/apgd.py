"""APGD, auto projected gradient descent: PGD with momentum whose step size halves by itself where it stops gaining.

Source: Croce and Hein, "Reliable Evaluation of Adversarial Robustness with an Ensemble of Diverse Parameter-free
Attacks", ICML 2020, algorithm 1 and section 4.
    z = P(x_t + eta u_t),   x_(t+1) = P(x_t + 0.75 (z - x_t) + 0.25 (x_t - x_(t-1)))       u_t: unit ascent direction
eta begins at 2 epsilon. At each checkpoint it is halved, and the search goes back to its best point, for inputs whose
objective rose in less than three quarters of the steps since the last checkpoint, or whose best value and step size
are what they were there. Checkpoints lie at 0.22 of the steps, then at distances that shrink by 0.03 down to 0.06.
Objectives: cross entropy; for targets the difference of logits relative to their spread, which scaling does not change,
    DLR_t = -(z_y - z_t) / (z_(1) - (z_(3) + z_(4)) / 2)                          z_(i): logits in falling order
With three classes the spread is z_(1) - z_(3); with two it is left out, as no ratio of them depends on the input.
Limits: the search never returns less than its start; epsilon = 0 gives x.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial
from typing import NamedTuple

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from weathered.attacks.base import (
    Attack,
    Norm,
    Objective,
    Passes,
    Search,
    check_count,
    cross_entropy,
    loss_and_gradient,
    per_row,
)

MOMENTUM = 0.75
"""Weight of the projected gradient step against the last movement."""

RISING = 0.75
"""Share of steps that must raise the objective for the step size to stay."""


def checkpoints(steps: int) -> list[int]:
    """The steps, counted from 1, after which step sizes are looked at. steps >= 1."""
    share, gap, found = 0.22, 0.22, []
    while (point := math.ceil(round(share * steps, 9))) < steps:
        if not found or point > found[-1]:
            found.append(point)
        gap = max(gap - 0.03, 0.06)
        share += gap
    return found


def targeted_dlr(
    logits: Float[Tensor, "N C"], labels: Int[Tensor, "N"], targets: Int[Tensor, "N"]
) -> Float[Tensor, "N"]:
    """The logit of the target minus that of the label, over the spread of the largest logits; see the module.

    C >= 2. Invariant to shifts and, for C >= 3, to positive scaling of the logits.
    """
    gap = (logits.gather(1, targets[:, None]) - logits.gather(1, labels[:, None])).squeeze(1)
    if logits.shape[1] == 2:
        return gap
    top = logits.topk(min(4, logits.shape[1]), dim=1).values
    return gap / (top[:, 0] - top[:, 2:].mean(1)).clamp_min(1e-12)


class _State(NamedTuple):
    """Where the search stands for each open row; all (N, ...)."""

    z: Tensor
    previous: Tensor
    gradient: Tensor
    value: Tensor
    best: Tensor
    best_gradient: Tensor
    best_value: Tensor
    step: Tensor
    rises: Tensor
    best_then: Tensor
    halved_then: Tensor

    def keep(self, rows: Bool[Tensor, "N"]) -> _State:
        return _State(*(part[rows] for part in self))


def climb(
    model: nn.Module,
    found: Search,
    start: Tensor,
    objective: Callable[[Int[Tensor, "N"]], Objective],
    steps: int,
) -> None:
    """Search from `start` (N, ...) for the open rows, and note what is found.

    objective: the positions of rows in the batch to the objective for them. steps >= 1.
    """
    ball = found.ball
    value, gradient, logits = loss_and_gradient(model, start, objective(found.open))
    no = torch.zeros_like(value, dtype=torch.bool)
    state = _State(
        start, start, gradient, value, start, gradient, value,
        torch.full_like(value, 2 * ball.epsilon), torch.zeros_like(value), value, no,
    )  # fmt: skip
    if (stays := found.note(start, logits)) is not None:
        state, ball = state.keep(stays), found.ball
    last, marks = 0, checkpoints(steps)
    for done in range(1, steps + 1):
        if not len(found.open):
            return
        moved = ball.project(state.z + per_row(state.step, state.z) * ball.direction(state.gradient))
        if done > 1:
            push = MOMENTUM * (moved - state.z) + (1 - MOMENTUM) * (state.z - state.previous)
            moved = ball.project(state.z + push)
        value, gradient, logits = loss_and_gradient(model, moved, objective(found.open))
        state = _advance(state, moved, value, gradient)
        if done in marks:
            state, last = _look(state, done - last), done
        if (stays := found.note(moved, logits)) is not None:
            state, ball = state.keep(stays), found.ball


def _advance(state: _State, moved: Tensor, value: Tensor, gradient: Tensor) -> _State:
    higher = value > state.best_value
    rows = per_row(higher, moved)
    return state._replace(
        z=moved,
        previous=state.z,
        gradient=gradient,
        value=value,
        best=torch.where(rows, moved, state.best),
        best_gradient=torch.where(rows, gradient, state.best_gradient),
        best_value=torch.where(higher, value, state.best_value),
        rises=state.rises + (value > state.value),
    )


def _look(state: _State, interval: int) -> _State:
    """A checkpoint: halve step sizes that gain nothing, and go back to the best point there."""
    few = state.rises < RISING * interval
    stuck = ~state.halved_then & (state.best_value <= state.best_then)
    halve = few | stuck
    rows = per_row(halve, state.z)
    return state._replace(
        z=torch.where(rows, state.best, state.z),
        gradient=torch.where(rows, state.best_gradient, state.gradient),
        value=torch.where(halve, state.best_value, state.value),
        step=torch.where(halve, state.step / 2, state.step),
        rises=torch.zeros_like(state.rises),
        best_then=state.best_value,
        halved_then=halve,
    )


class APGDCrossEntropy(Attack):
    """APGD on cross entropy. steps, restarts >= 1; epsilon, norm, early_stop: as in `Attack`. Draws random starts."""

    def __init__(
        self,
        epsilon: float = 8 / 255,
        norm: Norm = "linf",
        steps: int = 100,
        restarts: int = 1,
        early_stop: bool = True,
    ):
        super().__init__(epsilon, norm, early_stop)
        check_count("steps", steps)
        check_count("restarts", restarts)
        self.steps, self.restarts = steps, restarts

    def passes(self) -> Passes:
        return Passes(forward=0, backward=self.restarts * (self.steps + 1))

    def search(self, model: nn.Module, found: Search, logits: Float[Tensor, "B C"], rng: torch.Generator) -> None:
        for objective in self.objectives(found, logits) * self.restarts:
            if len(found.open):
                climb(model, found, found.drawn(rng), objective, self.steps)

    def objectives(self, found: Search, logits: Float[Tensor, "B C"]) -> list[Callable[[Tensor], Objective]]:
        """What is climbed in turn, each from a start of its own: positions of rows to the objective for them."""
        return [lambda rows: partial(cross_entropy, labels=found.labels[rows])]


class APGDTargeted(APGDCrossEntropy):
    """APGD on the targeted ratio of logits, one search for each of the most likely wrong classes in turn.

    steps, restarts >= 1. targets >= 1: wrong classes tried, all where there are fewer; the order is that of the logits
    of the unperturbed input. epsilon, norm, early_stop: as in `Attack`. Draws random starts.
    """

    def __init__(
        self,
        epsilon: float = 8 / 255,
        norm: Norm = "linf",
        steps: int = 100,
        targets: int = 9,
        restarts: int = 1,
        early_stop: bool = True,
    ):
        super().__init__(epsilon, norm, steps, restarts, early_stop)
        check_count("targets", targets)
        self.targets = targets

    def passes(self) -> Passes:
        return Passes(forward=0, backward=self.targets * super().passes().backward)

    def objectives(self, found: Search, logits: Float[Tensor, "B C"]) -> list[Callable[[Tensor], Objective]]:
        wrong = logits.scatter(1, found.labels[:, None], -torch.inf)
        order = wrong.topk(min(self.targets, logits.shape[1] - 1), dim=1).indices
        return [
            lambda rows, goals=goals: partial(targeted_dlr, labels=found.labels[rows], targets=goals[rows])
            for goals in order.T
        ]
