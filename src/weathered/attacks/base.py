"""What attacks share: how far an input may be moved, checks, and a search that goes on where it has not succeeded.

Inputs lie in [0, 1] and stay there; a perturbation has at most the length epsilon in the norm. The budget is exact: it
holds for the difference of the two float32 images, not only up to rounding.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal, NamedTuple, get_args

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn
from torch.nn import functional as F

from weathered.core.errors import NonFinite
from weathered.core.predict import eval_mode
from weathered.core.roles import Part

Norm = Literal["linf", "l2"]

Classifier = Callable[[Tensor], Float[Tensor, "N C"]]
"""Inputs to logits."""

Objective = Callable[[Float[Tensor, "N C"]], Float[Tensor, "N"]]
"""Logits to what an attack raises, one number per input."""

ROUNDING = 1e-6
"""The share of an L2 budget that is left for the rounding of norms."""


def distances(z: Float[Tensor, "B ..."], x: Float[Tensor, "B ..."], norm: Norm) -> Float[Tensor, "B"]:
    """The length of z - x in the norm for each row, in float64, so that the subtraction is not rounded."""
    flat = (z.double() - x.double()).flatten(1)
    return flat.abs().amax(1) if norm == "linf" else flat.norm(dim=1)


def per_row(values: Tensor, like: Tensor) -> Tensor:
    """Values (B,) shaped so that they multiply the rows of `like`."""
    return values.view(-1, *[1] * (like.ndim - 1))


@dataclass(frozen=True, eq=False)
class Ball:
    """The inputs that an attack may choose from: within epsilon of x in the norm, and in [0, 1].

    x (B, ...) in [0, 1]. low, high: the box that holds the ball, of the shape of x.
    """

    x: Tensor
    epsilon: float
    norm: Norm
    low: Tensor
    high: Tensor

    @classmethod
    def around(cls, x: Tensor, epsilon: float, norm: Norm = "linf") -> Ball:
        """The ball around each row. Raises ValueError for epsilon outside [0, 1] (Linf) or below 0, or another norm."""
        check_budget(epsilon, norm)
        x = x.detach()
        centre = x.double()
        low, high = (centre - epsilon).clamp_min(0).to(x), (centre + epsilon).clamp_max(1).to(x)
        # float32 rounds outwards now and then; one step back inwards makes the budget exact
        low = torch.where(centre - low.double() > epsilon, low.nextafter(x), low)
        high = torch.where(high.double() - centre > epsilon, high.nextafter(x), high)
        return cls(x, epsilon, norm, low, high)

    def rows(self, chosen: Tensor) -> Ball:
        """The balls of some rows."""
        return Ball(self.x[chosen], self.epsilon, self.norm, self.low[chosen], self.high[chosen])

    def project(self, z: Float[Tensor, "B ..."]) -> Float[Tensor, "B ..."]:
        """The nearest allowed input to z in the box and, for L2, then along the line to x."""
        if self.norm == "linf":
            return torch.clamp(z, self.low, self.high)
        offset = z.clamp(0, 1) - self.x
        flat = offset.flatten(1)
        # each value of the result may be rounded away from x by half a last place
        room = self.epsilon * (1 - ROUNDING) - torch.finfo(z.dtype).eps * math.sqrt(flat.shape[1]) / 2
        shrink = (max(0.0, room) / flat.norm(dim=1).clamp_min(1e-30)).clamp_max(1.0)
        return (self.x + per_row(shrink, offset) * offset).clamp(0, 1)

    def direction(self, gradient: Float[Tensor, "B ..."]) -> Float[Tensor, "B ..."]:
        """The step of length 1 in the norm that climbs most; 0 where the gradient is 0."""
        if self.norm == "linf":
            return gradient.sign()
        # scaled by the largest entry first, because squares of small gradients underflow
        largest = gradient.flatten(1).abs().amax(1).clamp_min(torch.finfo(gradient.dtype).tiny)
        scaled = gradient / per_row(largest, gradient)
        return scaled / per_row(scaled.flatten(1).norm(dim=1).clamp_min(1e-12), scaled)

    def random(self, rng: torch.Generator) -> Float[Tensor, "B ..."]:
        """An input drawn evenly from each ball, then brought into [0, 1]."""
        shape = self.x.shape
        if self.norm == "linf":
            noise = 2 * torch.rand(shape, generator=rng, device=rng.device) - 1
            return self.project(self.x + self.epsilon * noise.to(self.x))
        noise = torch.randn(shape, generator=rng, device=rng.device).to(self.x)
        radius = torch.rand(shape[:1], generator=rng, device=rng.device).to(self.x) ** (1 / max(1, shape[1:].numel()))
        return self.project(self.x + self.epsilon * per_row(radius, noise) * self.direction(noise))


def check_budget(epsilon: float, norm: str) -> None:
    """Raise ValueError unless the norm is known and epsilon a length in units of inputs in [0, 1]."""
    if norm not in get_args(Norm):
        raise ValueError(f"norm must be one of {', '.join(get_args(Norm))}, got '{norm}'")
    if norm == "linf" and not 0 <= epsilon <= 1:
        raise ValueError(f"epsilon must be in [0, 1], the range of inputs, got {epsilon}; 4/255 is written 0.0157")
    if not (epsilon >= 0 and math.isfinite(epsilon)):
        raise ValueError(f"epsilon must be >= 0 and finite, got {epsilon}")


def check_count(name: str, value: int, least: int = 1) -> None:
    """Raise ValueError for a count below `least`."""
    if value < least:
        raise ValueError(f"{name} must be at least {least}, got {value}")


def check_unit_range(x: Tensor, who: str) -> None:
    """Raise ValueError unless all inputs are floats in [0, 1]; NaN is not. who: what needs them, for the message."""
    if not x.is_floating_point():
        raise ValueError(f"{who} needs inputs as floats in [0, 1], got {x.dtype}; divide bytes by 255")
    if not x.numel():
        return
    low, high = torch.aminmax(x)
    if not (float(low) >= 0 and float(high) <= 1):
        raise ValueError(
            f"{who} needs inputs in [0, 1], got {float(low):.4g} to {float(high):.4g}; leave normalisation to the model"
        )


def cross_entropy(logits: Float[Tensor, "N C"], labels: Int[Tensor, "N"]) -> Float[Tensor, "N"]:
    """-log softmax of the label, in nats."""
    return F.cross_entropy(logits, labels, reduction="none")


def margin(logits: Float[Tensor, "N C"], labels: Int[Tensor, "N"]) -> Float[Tensor, "N"]:
    """The largest other logit minus that of the label: >= 0 where the label is not the one prediction."""
    own = logits.gather(1, labels[:, None])
    return (logits.scatter(1, labels[:, None], -torch.inf).amax(1, keepdim=True) - own).squeeze(1)


def loss_and_gradient(
    model: Classifier, z: Tensor, objective: Objective
) -> tuple[Float[Tensor, "N"], Tensor, Float[Tensor, "N C"]]:
    """Objective per input, its gradient in the inputs, and logits. Gradients of parameters are left alone."""
    z = z.detach().requires_grad_()
    with torch.enable_grad():
        logits = model(z)
        loss = objective(logits)
        (gradient,) = torch.autograd.grad(loss.sum(), z)
    return loss.detach(), gradient, logits.detach()


def ascend(model: Classifier, ball: Ball, start: Tensor, objective: Objective, step_size: float, steps: int) -> Tensor:
    """`steps` steps of the length `step_size` up the objective from `start`, each brought back into the ball.

    The model is asked as it is: put it into the mode that the attack is to see. Returns the last position.
    """
    position = start.detach()
    for _ in range(steps):
        _, gradient, _ = loss_and_gradient(model, position, objective)
        position = ball.project(position + step_size * ball.direction(gradient))
    return position


class Passes(NamedTuple):
    """What an attack that does not succeed costs for each input, besides one look at it."""

    forward: int
    """Questions to the model alone."""
    backward: int
    """Questions with a gradient."""


class Search:
    """The rows of a batch that an attack still works on, and the best input found for each.

    best (B, ...): of the misclassified inputs, before there is one of all, the one of the largest margin. open (N,):
    positions of the rows still worked on: all with early_stop=False, otherwise those without a misclassified input.
    """

    def __init__(self, ball: Ball, labels: Int[Tensor, "B"], early_stop: bool):
        self.whole, self.labels, self.early_stop = ball, labels, early_stop
        self.best = ball.x.clone()
        self.value = torch.full((len(labels),), -torch.inf, device=labels.device)
        self.fooled = torch.zeros(len(labels), dtype=torch.bool, device=labels.device)
        self.open = torch.arange(len(labels), device=labels.device)

    def note(self, z: Tensor, logits: Float[Tensor, "N C"]) -> Bool[Tensor, "N"] | None:
        """Take in inputs for the open rows and what the model says of them.

        Returns which of the rows stay open, None where all do. Raises NonFinite for logits that are not finite, which
        are no misclassification.
        """
        if not bool(torch.isfinite(logits).all()):
            raise NonFinite("The attacked model's logits are not finite; check its weights.")
        rows, value = self.open, margin(logits, self.targets).to(self.value)
        wrong = logits.argmax(1) != self.targets
        higher, fooled = value > self.value[rows], self.fooled[rows]
        better = torch.where(fooled, wrong & higher, wrong | higher)
        taken = rows[better]
        self.best[taken], self.value[taken] = z[better], value[better]
        self.fooled[rows] = fooled | wrong
        if not self.early_stop or not bool(wrong.any()):
            return None
        self.open = rows[~wrong]
        return ~wrong

    @property
    def ball(self) -> Ball:
        """The balls of the open rows."""
        return self.whole if len(self.open) == len(self.labels) else self.whole.rows(self.open)

    @property
    def targets(self) -> Int[Tensor, "N"]:
        """The labels of the open rows."""
        return self.labels[self.open]

    def drawn(self, rng: torch.Generator) -> Tensor:
        """A random start for each open row; drawn for all, so that it does not depend on which rows are open."""
        return self.whole.random(rng)[self.open]


class Attack(Part):
    """Base of attacks: checks, then leaves the search to `search`, with the model in evaluation mode.

    epsilon: length that a perturbation may have, in units of inputs in [0, 1]. norm: linf or l2. early_stop: leave an
    input alone once a misclassified one is found in its place, or if it is misclassified itself; otherwise go on to
    the largest margin of a wrong class over the label.
    """

    norms: tuple[str, ...] = get_args(Norm)
    piece = 256
    """Inputs that an audit attacks at a time, after which it keeps what it has."""

    def __init__(self, epsilon: float = 8 / 255, norm: Norm = "linf", early_stop: bool = True):
        check_budget(epsilon, norm)
        if norm not in self.norms:
            raise ValueError(f"{type(self).__name__} works in the norm {' or '.join(self.norms)}, got '{norm}'")
        self.epsilon, self.early_stop = epsilon, early_stop
        self.norm: Norm = norm

    def __call__(self, model: nn.Module, x: Tensor, y: Int[Tensor, "B"], rng: torch.Generator) -> Tensor:
        """An input near each row of x that the model gets wrong, or nearly.

        model: inputs to logits (B, C), C >= 2; asked in evaluation mode, afterwards in the mode it was in, also on
        error; gradients of its parameters are left alone. x (B, ...): floats in [0, 1]. y (B,): labels. rng: of the
        random draws. Returns inputs of the shape of x in [0, 1] within epsilon of it, without gradient.
        Raises ValueError for inputs out of range, NonFinite for logits or gradients that are not finite.
        """
        check_unit_range(x, type(self).__name__)
        if y.shape != x.shape[:1] or y.is_floating_point():
            raise ValueError(f"y must hold {len(x)} labels, got shape {tuple(y.shape)} of {y.dtype}")
        if not len(x):
            return x.detach().clone()
        ball = Ball.around(x, self.epsilon, self.norm)
        with eval_mode(model):
            with torch.no_grad():
                logits = _checked(model(x), y)
            found = Search(ball, y, self.early_stop)
            found.note(ball.x, logits)
            if self.epsilon > 0 and len(found.open):
                self.search(model, found, logits, rng)
        return found.best

    def passes(self) -> Passes:
        """The most that an input may cost."""
        raise NotImplementedError

    def seconds_besides(self, x: Tensor) -> float:
        """How long an input like one of x (B, ...) may take besides the passes; measured where it matters."""
        return 0.0

    def search(self, model: nn.Module, found: Search, logits: Float[Tensor, "B C"], rng: torch.Generator) -> None:
        """Look for inputs and note them in `found`. logits (B, C): of the inputs as they are."""
        raise NotImplementedError


def _checked(logits: Tensor, y: Tensor) -> Tensor:
    if logits.ndim != 2 or len(logits) != len(y) or logits.shape[1] < 2:
        raise ValueError(f"the model must return logits ({len(y)}, at least 2), got shape {tuple(logits.shape)}")
    if not bool(torch.isfinite(logits).all()):
        raise NonFinite("The attacked model's logits are not finite; check its weights.")
    if int(y.min()) < 0 or int(y.max()) >= logits.shape[1]:
        raise ValueError(f"labels must be in [0, {logits.shape[1] - 1}], got {int(y.min())} to {int(y.max())}")
    return logits
