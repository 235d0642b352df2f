"""Adversarial training by TRADES with self-adaptive targets: labels give way to averaged predictions, x' stays near x.

Source: Huang et al., "Self-Adaptive Training: beyond Empirical Risk Minimization", NeurIPS 2020, and its code; TRADES
is Zhang et al., "Theoretically Principled Trade-off between Robustness and Accuracy", ICML 2019.
x' is the attack of TRADES on the network in evaluation mode. Then in training mode, with p = softmax of the logits:
    loss = S(f(x)) + beta * mean KL(p(x) || p(x'))
S is the supervised self-adaptive loss: of the given labels before `start`, weighted against moving targets T
afterwards; predictions for unperturbed inputs alone move T. The divergence takes p(x) as its target, as the authors'
code and TRADES do, and its gradient reaches p(x) too: the two predictions move towards each other.
Limits: beta = 0 is self-adaptive training, without an attack; momentum = 1 is TRADES.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from jaxtyping import Float
from torch import Tensor

from weathered.attacks.trades import SPREAD, check_attack, climb_divergence, divergence
from weathered.core.batch import Batch
from weathered.core.facts import Traits
from weathered.core.predict import AtTestTime
from weathered.procedures.adversarial import noise_like
from weathered.procedures.base import SelfAdaptive

if TYPE_CHECKING:
    from weathered.core.run import Run


class SelfAdaptiveTrades(SelfAdaptive):
    """Train a network to resist small changes of its inputs, by TRADES with targets that follow the network.

    beta >= 0: weight of the divergence between predictions for clean and for attacked inputs; more trades accuracy for
    robustness. epsilon in [0, 1]: the largest change of a value of the input, in units of inputs in [0, 1]; 0.031 is 8
    of 255. step_size in [0, 1] and steps >= 1: of the attack. start in [0, 1): progress of training from which targets
    move; 70 of 100 epochs in the source, shortly before the rate falls and robust overfitting sets in. momentum in
    [0, 1]: of the targets. half: keep the targets in float16; they take 4 bytes for each training row and class
    otherwise.

    Any loss part serves in S; predictions are what it implies at test time. The attack sees what the transforms made.
    `targets` and `corrected_labels()` are as in SelfAdaptiveTraining.
    Raises ValueError for arguments out of range, and for inputs outside [0, 1].
    """

    traits = Traits(
        needs={**SelfAdaptive.traits.needs, "range01": "keeps its attack in [0, 1]"},
        honours=SelfAdaptive.traits.honours,
    )

    def __init__(
        self,
        beta: float = 6.0,
        epsilon: float = 0.031,
        step_size: float = 0.007,
        steps: int = 10,
        start: float = 0.7,
        momentum: float = 0.9,
        half: bool = False,
    ):
        super().__init__(start, momentum, half=half)
        if not (beta >= 0 and math.isfinite(beta)):
            raise ValueError(f"beta must be >= 0 and finite, got {beta}")
        check_attack(epsilon, step_size, steps)
        self.beta, self.epsilon, self.step_size, self.steps = beta, epsilon, step_size, steps

    def loss(self, run: Run, batch: Batch) -> Float[Tensor, ""]:
        if self.beta == 0:
            return super().loss(run, batch)
        adversary = self.attack(run, batch.x)
        output = run.forward(batch.x)
        natural = self.adaptive_loss(run, output, batch)
        attacked = run.forward(adversary).logits
        robust = divergence(run.test_logits(output.logits), run.test_logits(attacked)).mean()
        return natural + self.beta * robust

    def attack(self, run: Run, x: Tensor) -> Tensor:
        """x' for this process's inputs of a step; its noise is drawn for all of them together."""
        noise = noise_like(run, x, "trades start")
        return climb_divergence(AtTestTime(run), x, x + SPREAD * noise, self.epsilon, self.step_size, self.steps)
