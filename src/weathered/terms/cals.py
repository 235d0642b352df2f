"""CALS: a penalty on logits that lie more than a margin below the largest, by a weight of each class that is learned.

Source: Liu, Rony, Galdran, Dolz and Ben Ayed, "Class Adaptive Network Calibration", CVPR 2023, and the authors' code.
    h[i, k] = (max_j z[i, j] - z[i, k]) / margin - 1            at most 0 where the constraint holds
    loss = CE + mean over i and k of P(h[i, k], lambda[k], rho[k])
P is an augmented Lagrangian function with P(0) = 0 and P'(0) = lambda. After each epoch, on held-out data,
    lambda[k] <- mean over i of P'(h[i, k], lambda[k], rho[k]), each clipped to [lambda_min, lambda_max]
    rho[k] <- gamma rho[k], at most rho_max, where mean_i h[i, k] > tau max(the mean before, 0)
Limits: distances all within the margin and lambda = 0 leave cross entropy; lambda = 0 is rho / 2 relu(h)^2 for `phr`;
an endless margin adds a constant. A constant added to all logits of a sample changes nothing.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any, Literal

import torch
from jaxtyping import Float, Int
from torch import Tensor

from weathered.core import distributed
from weathered.core.batch import Batch
from weathered.core.facts import Traits
from weathered.core.pixels import IGNORE, MASK
from weathered.core.predict import predict_logits
from weathered.core.roles import Output, Part

if TYPE_CHECKING:
    from weathered.core.run import Run

Penalty = Literal["phr", "p2", "p3"]
"""Powell, Hestenes and Rockafellar's quadratic, or one of two functions that fall off as a hyperbola below 0."""

CHUNK = 1024
"""Samples whose constraints are held in float64 at a time."""


def constraint(logits: Float[Tensor, "B C ..."], margin: float, normalize: bool = True) -> Float[Tensor, "B ... C"]:
    """How far each logit lies below the largest, beyond the margin; the classes are the last axis of the result.

    logits (B, C) or (B, C, H, W), classes on axis 1. margin > 0, in logits. normalize: in units of the margin, so that
    the class of the largest logit has -1 instead of -margin. Returns float32, or float64 for float64.
    Raises ValueError for a margin out of range or logits of fewer than two axes.
    """
    if not (margin > 0 and math.isfinite(margin)):
        raise ValueError(f"margin must be > 0 and finite, got {margin}")
    if logits.ndim < 2:
        raise ValueError(f"logits must be (B, C) or (B, C, H, W), got {tuple(logits.shape)}")
    z = logits.movedim(1, -1)
    z = z.to(torch.promote_types(z.dtype, torch.float32))
    distance = z.amax(-1, keepdim=True) - z
    return distance / margin - 1 if normalize else distance - margin


def penalty(
    h: Float[Tensor, "..."], multipliers: Float[Tensor, "..."], rho: Float[Tensor, "..."], kind: Penalty = "phr"
) -> Float[Tensor, "..."]:
    """P(h, lambda, rho), elementwise: 0 at h = 0, and never falling in h for lambda >= 0.

    h: constraints, any real numbers. multipliers >= 0 and rho > 0 broadcast against them. Raises ValueError for a rho
    out of range or another kind. Source: Liu et al., CVPR 2023, and the authors' code for `p2` and `p3`.
    """
    _check(rho, kind)
    if kind == "phr":
        return (torch.addcmul(multipliers, rho, h).clamp_min(0).square() - multipliers**2) / (2 * rho)
    above, below = _sides(h)
    power = rho**2 * above**3 / 6 if kind == "p2" else 0
    rising = multipliers * above + multipliers * rho * above**2 + power
    return torch.where(h >= 0, rising, multipliers * below / (1 - rho * below))


def penalty_derivative(
    h: Float[Tensor, "..."], multipliers: Float[Tensor, "..."], rho: Float[Tensor, "..."], kind: Penalty = "phr"
) -> Float[Tensor, "..."]:
    """The derivative of `penalty` in h: lambda at h = 0, and never negative. Arguments and errors are the same."""
    _check(rho, kind)
    if kind == "phr":
        return (multipliers + rho * h).clamp_min(0)
    above, below = _sides(h)
    power = rho**2 * above**2 / 2 if kind == "p2" else 0
    rising = multipliers + 2 * multipliers * rho * above + power
    return torch.where(h >= 0, rising, multipliers / (1 - rho * below) ** 2)


def _sides(h: Tensor) -> tuple[Tensor, Tensor]:
    # a branch that is not taken must not divide by 0: its gradient would be NaN
    zero = torch.zeros_like(h)
    return torch.where(h >= 0, h, zero), torch.where(h < 0, h, zero)


def _check(rho: Tensor, kind: Penalty) -> None:
    if kind not in ("phr", "p2", "p3"):
        raise ValueError(f"penalty must be one of phr, p2, p3, got '{kind}'")
    if not bool((rho > 0).all()):
        raise ValueError(f"rho must be > 0, got {float(rho.min())}")


class CALS(Part):
    """Keep logits within a margin of the largest, by a penalty whose weight for each class is learned on held-out data.

    num_classes: C. margin > 0: in logits; about a third of the mean distance of a network trained without is a start.
    penalty, normalize: see `penalty` and `constraint`. 0 <= lambda_min <= lambda_max: bounds of the multipliers, which
    start at the lower one. lambda_step >= 1: epochs between their updates. 0 < rho_min <= rho_max: rho starts at the
    lower one. rho_step: epochs between chances to grow, 0 or -1 for none. gamma >= 1: factor of growth. tau >= 0:
    share of the last violation above which it grows. ignore_index: label of pixels that are left out where labels are
    given to `penalties` and `update`; labels serve no other purpose.

    In a run the multipliers follow the validation data after each epoch. Alone: add the mean of `penalties(logits)` to
    the loss; after an epoch `reset()`, `update(logits)` for each held-out batch in evaluation mode, `step(epochs)`.
    `multipliers` and `rho` (C,) float64. Raises ValueError for arguments out of range. Source: Liu et al., CVPR 2023.
    """

    traits = Traits(
        needs={
            "validation": "learns its multipliers on it",
            "num_classes": "keeps a multiplier for each class",
            "class_counts": "the logits of every class are measured, so all must be trained on",
        },
        per_pixel=True,
    )

    def __init__(
        self,
        num_classes: int,
        margin: float = 10.0,
        penalty: Penalty = "phr",
        lambda_min: float = 1e-6,
        lambda_max: float = 1e6,
        lambda_step: int = 1,
        rho_min: float = 1.0,
        rho_max: float = 10.0,
        rho_step: int = 10,
        gamma: float = 1.2,
        tau: float = 0.9,
        normalize: bool = True,
        ignore_index: int = IGNORE,
    ):
        if num_classes < 2:
            raise ValueError(f"num_classes must be at least 2, got {num_classes}")
        if not (margin > 0 and math.isfinite(margin)):
            raise ValueError(f"margin must be > 0 and finite, got {margin}")
        if not 0 <= lambda_min <= lambda_max < math.inf:
            raise ValueError(f"expected 0 <= lambda_min <= lambda_max, finite, got {lambda_min} and {lambda_max}")
        if not 0 < rho_min <= rho_max < math.inf:
            raise ValueError(f"expected 0 < rho_min <= rho_max, finite, got {rho_min} and {rho_max}")
        if lambda_step < 1 or rho_step < -1:
            raise ValueError(f"lambda_step must be at least 1 and rho_step at least -1, got {lambda_step}, {rho_step}")
        if not (gamma >= 1 and tau >= 0 and math.isfinite(gamma) and math.isfinite(tau)):
            raise ValueError(f"gamma must be >= 1 and tau >= 0, both finite, got {gamma} and {tau}")
        _check(torch.tensor(rho_min), penalty)
        self.kind: Penalty = penalty
        self.margin, self.normalize, self.ignore_index = margin, normalize, ignore_index
        self.lambda_min, self.lambda_max, self.lambda_step = lambda_min, lambda_max, lambda_step
        self.rho_min, self.rho_max, self.rho_step, self.gamma, self.tau = rho_min, rho_max, rho_step, gamma, tau
        self.num_classes = num_classes
        self._begin()

    def _begin(self) -> None:
        self.multipliers = torch.full((self.num_classes,), self.lambda_min, dtype=torch.float64)
        self.rho = torch.full_like(self.multipliers, self.rho_min)
        # NaN compares as false, so that nothing grows before there is a mean to compare with
        self.violation = torch.full_like(self.multipliers, torch.nan)
        self._sums: Tensor | None = None
        self._count, self._moved = 0, False

    def constraints(
        self, logits: Float[Tensor, "B C ..."], labels: Int[Tensor, "B ..."] | None = None
    ) -> Float[Tensor, "M C"]:
        """`constraint` of each sample or pixel, (M, C).

        logits (B, C) or (B, C, H, W). labels (B,) or (B, H, W): those of `ignore_index` are left out.
        Raises ValueError if shapes do not fit.
        """
        if logits.ndim < 2 or logits.shape[1] != self.num_classes:
            raise ValueError(f"logits must have {self.num_classes} classes on axis 1, got shape {tuple(logits.shape)}")
        h = constraint(logits, self.margin, self.normalize)
        if labels is None:
            return h.flatten(0, -2)
        if labels.shape != h.shape[:-1]:
            raise ValueError(f"labels must have the shape {tuple(h.shape[:-1])}, got {tuple(labels.shape)}")
        return h[labels != self.ignore_index]

    def penalties(
        self, logits: Float[Tensor, "B C ..."], labels: Int[Tensor, "B ..."] | None = None
    ) -> Float[Tensor, "M"]:
        """The penalty of each sample or pixel, (M,), its mean over the classes; arguments as for `constraints`."""
        h = self.constraints(logits, labels)
        return penalty(h, self.multipliers.to(h), self.rho.to(h), self.kind).mean(1)

    def __call__(self, run: Run, batch: Batch, output: Output) -> Float[Tensor, "B"]:
        if self._moved:
            # batch statistics, and so what was measured, differ between processes; a checkpoint is the first one's
            state = torch.stack([self.multipliers, self.rho, self.violation])
            self.multipliers, self.rho, self.violation = distributed.by_rank(run.fabric, state)[0]
            self._moved = False
        return self.penalties(run.test_logits(output.logits), batch.extra.get(MASK))

    def reset(self) -> None:
        """Begin a pass over held-out data."""
        self._sums = torch.zeros(2, self.num_classes, dtype=torch.float64)
        self._count = 0

    @torch.no_grad()
    def update(self, logits: Float[Tensor, "B C ..."], labels: Int[Tensor, "B ..."] | None = None) -> None:
        """Add held-out logits, of a network in evaluation mode, to the pass; arguments as for `constraints`.

        Raises RuntimeError before `reset`, ValueError for logits that are not finite or do not fit; nothing is added
        then.
        """
        if self._sums is None:
            raise RuntimeError("call reset() before the first update of a pass over held-out data")
        if not bool(torch.isfinite(logits).all()):
            raise ValueError("the logits of the held-out data must be finite; training has diverged")
        h = self.constraints(logits.double(), labels)
        slope = penalty_derivative(h, self.multipliers.to(h), self.rho.to(h), self.kind)
        slope = slope.clamp(self.lambda_min, self.lambda_max)
        self._sums += torch.stack([slope.sum(0), h.sum(0)]).cpu()
        self._count += len(h)

    def step(self, epochs: int) -> None:
        """End the pass: new multipliers, and rho where the constraint has not come down.

        epochs >= 1: how many are done. Raises RuntimeError before `reset`, ValueError if no sample was added.
        """
        if self._sums is None:
            raise RuntimeError("call reset() and update() before step()")
        if epochs < 1:
            raise ValueError(f"epochs must be at least 1, got {epochs}")
        if not self._count:
            raise ValueError("the held-out data hold no sample, so there is nothing to learn the multipliers from")
        slope, violation = self._sums / self._count
        self._sums, self._moved = None, True
        if epochs % self.lambda_step == 0:
            self.multipliers = slope.clamp(self.lambda_min, self.lambda_max)
        if self.rho_step > 0:
            if epochs % self.rho_step == 0:
                grows = violation > self.tau * self.violation.clamp_min(0)
                self.rho = torch.where(grows, (self.gamma * self.rho).clamp_max(self.rho_max), self.rho)
            self.violation = violation

    def before_epoch(self, run: Run) -> None:
        if run.step == 0:
            self._begin()

    def after_epoch(self, run: Run) -> None:
        if run.validation is None:
            return
        self.reset()
        # of the network that is penalised, which need not be the one that predicts
        logits = run.test_logits(predict_logits(run.model, run.validation, run=run))
        mask = run.validation.extra.get(MASK)
        for rows in torch.arange(len(logits)).split(CHUNK):
            self.update(logits[rows], None if mask is None else mask[rows])
        # run.epoch is the number of epochs that are done by now
        self.step(run.epoch)

    def state_dict(self) -> dict[str, Any]:
        return {"multipliers": self.multipliers, "rho": self.rho, "violation": self.violation}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.multipliers, self.rho, self.violation = state["multipliers"], state["rho"], state["violation"]
        self._sums, self._count, self._moved = None, 0, False
