"""What attacks share that see a model's scores alone: a counted victim, a gradient from ranks, and the loop of steps.

The victim is never differentiated. A step asks it for inputs with noise on the values that a focus chose, estimates in
which direction its loss grows, goes there, and asks for the input that it came to.
    u_i ~ N(0, 1),   l = largest other probability - that of the label, at clip(z +- sigma u_i)
    g = sum_i u_i (r_i - 1/2),   r_i = the rank of l_i from 0 to 1,   z <- P(z + step_size g)
Both signs of each u_i are asked, so that sum_i u_i = 0. Of a targeted attack, which goes z <- P(z + step_size sign(g)),
    l_i = 0.1 CE(label) - 0.9 CE(target),   g = sum_i u_i l_i
Source of the estimate: Ilyas et al., "Black-box Adversarial Attacks with Limited Queries and Information", ICML 2018;
of ranks, rewards and steps: Wei et al., "Efficient Robustness Assessment via Adversarial Spatial-Temporal Focus on
Videos", TPAMI 2023. The step size halves after each 10 steps without progress, in place of their rules.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from weathered.attacks.base import Attack, Ball, Norm, Passes, Search, check_count, check_unit_range, margin
from weathered.attacks.estimate import over_pairs, rank_gradient, shared_reward, targeted_losses
from weathered.core.errors import NonFinite
from weathered.core.predict import eval_mode

WINDOW = 10
"""Steps without progress after which the step size halves."""

Answers = Callable[[Tensor], "Tensor | np.ndarray"]
"""Inputs (N, ...) in [0, 1] to logits (N, C): a module, or any function of a tensor."""


class Victim:
    """A model that is asked for probabilities of classes, counted, and never differentiated.

    model: inputs to logits (N, C), C >= 2, as a tensor or a NumPy array. A model of probabilities p is asked through
    log p; one that names its first class alone cannot be asked. asked: inputs that it saw so far.
    """

    def __init__(self, model: Answers):
        self.model, self.asked = model, 0

    def __call__(self, x: Float[Tensor, "N ..."]) -> Float[Tensor, "N C"]:
        """Probabilities in float64, in which those near 0 and 1 can still be told apart.

        Raises ValueError for answers of another shape, NonFinite for logits that are not finite.
        """
        self.asked += len(x)
        with torch.no_grad():
            logits = torch.as_tensor(self.model(x.detach())).to(x.device).double()
        if logits.ndim != 2 or len(logits) != len(x) or logits.shape[1] < 2:
            raise ValueError(f"the model must return logits ({len(x)}, at least 2), got shape {tuple(logits.shape)}")
        if not bool(torch.isfinite(logits).all()):
            raise NonFinite("The attacked model's logits are not finite; check its weights.")
        return logits.softmax(1)


class Focus(Protocol):
    """Says, step by step, which values of one input are searched."""

    def choose(self) -> Bool[Tensor, "..."]:
        """The values of the next step, as a mask of the input's shape."""
        ...

    def learn(self, reward: float) -> None:
        """Told what the step on the last choice gained, see `shared_reward`."""
        ...


@dataclass(frozen=True, eq=False)
class Attacked:
    """What an attack found, and what it cost.

    x (B, ...): inputs within the budget; those without success as the last step left them. queries (B,) int64: inputs
    that the victim was asked for, those as they are included. success (B,): the victim is fooled by x. skipped (B,):
    it was wrong by itself, which is no success; x is the input then. perturbation (B,): 255 mean |x - input|.
    """

    x: Tensor
    queries: Int[Tensor, "B"]
    success: Bool[Tensor, "B"]
    skipped: Bool[Tensor, "B"]
    perturbation: Float[Tensor, "B"]


class Pace:
    """The step size, halved after each window without progress, and when to give up. progress: at the start."""

    def __init__(self, step_size: float, least: float, patience: int, progress: float):
        self.step_size, self.least, self.patience = step_size, least, patience
        self.best, self.waited = progress, 0

    def goes_on(self, progress: float) -> bool:
        """Told the progress of a step; False after `patience` steps none of which was the best so far."""
        self.waited = 0 if progress > self.best else self.waited + 1
        self.best = max(self.best, progress)
        if self.waited and self.waited % WINDOW == 0:
            self.step_size = max(self.step_size / 2, self.least)
        return self.waited < self.patience


class ScoreAttack(Attack):
    """Base of attacks by scores alone, one input after another; a method says in `focus` where to search.

    epsilon > 0: length in Linf. queries: most inputs that the victim is asked for, for each input; 15,000 by default,
    30,000 targeted. samples: of one estimate, even. sigma > 0: size of its noise. step_size, min_step_size: the first
    and the least one, 0.01 and 0.001 by default, 0.03 and 0.0024 targeted; untargeted steps are step_size times the
    estimate, which grows with samples. targeted: towards a class, drawn evenly from the others where none is given.
    An input is given up when max(10, queries / 125) steps in a row made no progress.
    """

    norms = ("linf",)
    piece = 8

    def __init__(
        self,
        epsilon: float = 0.05,
        norm: Norm = "linf",
        queries: int | None = None,
        samples: int = 60,
        sigma: float = 1e-3,
        step_size: float | None = None,
        min_step_size: float | None = None,
        targeted: bool = False,
    ):
        super().__init__(epsilon, norm, early_stop=True)
        if epsilon <= 0:
            raise ValueError(f"epsilon must be in (0, 1] for {type(self).__name__}, got {epsilon}")
        check_count("samples", samples, 2)
        if samples % 2:
            raise ValueError(f"samples must be even, as noise is asked with both signs, got {samples}")
        if not (sigma > 0 and math.isfinite(sigma)):
            raise ValueError(f"sigma must be > 0 and finite, got {sigma}")
        self.queries = (30_000 if targeted else 15_000) if queries is None else queries
        check_count("queries", self.queries)
        self.step_size = (0.03 if targeted else 0.01) if step_size is None else step_size
        default = min(0.0024 if targeted else 0.001, self.step_size)
        self.min_step_size = default if min_step_size is None else min_step_size
        if not 0 < self.min_step_size <= self.step_size < math.inf:
            raise ValueError(
                f"step sizes must be > 0, the least at most the first, got {self.min_step_size} and {self.step_size}"
            )
        self.samples, self.sigma, self.targeted = samples, sigma, targeted

    def passes(self) -> Passes:
        return Passes(forward=self.queries, backward=0)

    def seconds_besides(self, x: Tensor) -> float:
        """From one choice and one lesson of a focus."""
        focus, done = self.focus(x[0].detach(), torch.Generator().manual_seed(0)), []
        for _ in range(2):
            start = time.perf_counter()
            focus.choose()
            focus.learn(0.0)
            done.append(time.perf_counter() - start)
        return min(done) * self.queries / (self.samples + 1)

    def check_shape(self, shape: torch.Size) -> None:
        """Raise ValueError for inputs of a shape that cannot be attacked."""

    def focus(self, x: Tensor, rng: torch.Generator) -> Focus:
        """The focus for one input. rng: of its draws, on the CPU."""
        raise NotImplementedError

    def __call__(self, model: nn.Module | Answers, x: Tensor, y: Int[Tensor, "B"], rng: torch.Generator) -> Tensor:
        """The inputs of `run` alone."""
        return self.run(model, x, y, rng).x

    def run(
        self,
        model: nn.Module | Answers,
        x: Float[Tensor, "B ..."],
        y: Int[Tensor, "B"],
        rng: torch.Generator,
        target: Int[Tensor, "B"] | None = None,
    ) -> Attacked:
        """Attack each input by itself, so that what is found for one does not depend on the others.

        model: as in `Victim`; a module is asked in evaluation mode and gets its modes back. x: floats in [0, 1]. y:
        labels; an input that the victim takes for another class is skipped after one query. target: of a targeted
        attack. Raises ValueError for inputs, labels or targets out of range, NonFinite for logits that are not finite.
        """
        check_unit_range(x, type(self).__name__)
        if y.shape != x.shape[:1] or y.is_floating_point():
            raise ValueError(f"y must hold {len(x)} labels, got shape {tuple(y.shape)} of {y.dtype}")
        self.check_shape(x.shape[1:])
        if target is not None:
            self._check_target(target, y)
        seeds = torch.randint(2**62, (len(x),), generator=rng, device=rng.device).tolist()
        queries = torch.zeros(len(x), dtype=torch.int64)
        success, skipped = torch.zeros(2, len(x), dtype=torch.bool)
        found = x.detach().clone()
        with eval_mode(model) if isinstance(model, nn.Module) else nullcontext():
            for row, seed in enumerate(seeds):
                victim = Victim(model)
                own, aim = torch.Generator().manual_seed(seed), None if target is None else int(target[row])
                found[row], success[row], skipped[row] = self._one(victim, x[row].detach(), int(y[row]), aim, own)
                queries[row] = victim.asked
        moved = 255 * (found - x.detach()).abs().flatten(1).double().mean(1).cpu()
        return Attacked(found, queries, success, skipped, moved)

    def _check_target(self, target: Tensor, y: Tensor) -> None:
        if not self.targeted:
            raise ValueError("a target is for a targeted attack; pass targeted=True as well")
        if target.shape != y.shape or target.is_floating_point():
            raise ValueError(f"target must hold {len(y)} classes, got shape {tuple(target.shape)} of {target.dtype}")
        if bool((same := target == y).any()):
            row = int(same.nonzero()[0])
            raise ValueError(f"the target must differ from the label, both are {int(y[row])} at position {row}")

    def _one(
        self, victim: Victim, x: Tensor, label: int, target: int | None, rng: torch.Generator
    ) -> tuple[Tensor, bool, bool]:
        """One input: (what was found, whether it fools, whether the victim was wrong before)."""
        now = victim(x[None])[0]
        classes = len(now)
        for name, value in (("labels", label), ("targets", target)):
            if value is not None and not 0 <= value < classes:
                raise ValueError(f"{name} must be in [0, {classes - 1}], got {value}")
        if int(now.argmax()) != label:
            return x, False, True
        if self.targeted and target is None:
            # one of the others, as likely as any
            drawn = int(torch.randint(classes - 1, (), generator=rng))
            target = drawn + (drawn >= label)
        focus, ball = self.focus(x, rng), Ball.around(x[None], self.epsilon)
        z, aimed = x, torch.tensor(target if target is not None else label, device=x.device)
        pace = Pace(self.step_size, self.min_step_size, max(WINDOW, self.queries // 125), _progress(now, label, target))
        while victim.asked + self.samples + 1 <= self.queries:
            mask = focus.choose()
            step = pace.step_size * self._direction(victim, z, mask, label, target, rng)
            moved = z.clone()
            moved[mask] += step
            z = ball.project(moved[None])[0]
            before, now = now, victim(z[None])[0]
            if (now.argmax() == aimed) == (target is not None):
                return z, True, False
            focus.learn(shared_reward(before, now, label, target))
            if not pace.goes_on(_progress(now, label, target)):
                break
        return z, False, False

    def _direction(
        self, victim: Victim, z: Tensor, mask: Tensor, label: int, target: int | None, rng: torch.Generator
    ) -> Float[Tensor, "d"]:
        """Where the loss grows, for the values of the mask."""
        noise = torch.randn(self.samples // 2, int(mask.sum()), generator=rng).to(z)
        asked = z.expand(self.samples, *z.shape).clone()
        asked[:, mask] += self.sigma * torch.cat([noise, -noise])
        probabilities = victim(asked.clamp_(0, 1))
        if target is not None:
            return over_pairs(noise, targeted_losses(probabilities, label, target)).sign()
        labels = torch.full((self.samples,), label, device=z.device)
        return rank_gradient(noise, margin(probabilities, labels), probabilities.argmax(1) != label)

    def search(self, model: nn.Module, found: Search, logits: Float[Tensor, "B C"], rng: torch.Generator) -> None:
        """As a member of an ensemble, on the open inputs, with a last look at what was found."""
        turned = self.run(model, found.ball.x, found.targets, rng).x
        with torch.no_grad():
            found.note(turned, model(turned))


def _progress(probabilities: Float[Tensor, "C"], label: int, target: int | None) -> float:
    if target is not None:
        return float(probabilities[target] - probabilities[label])
    return float(margin(probabilities[None], torch.tensor([label], device=probabilities.device)))
