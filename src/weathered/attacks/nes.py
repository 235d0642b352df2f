"""NES: estimate the gradient from scores at noisy inputs, over all values of the input, and follow it.

Source: Ilyas et al., "Black-box Adversarial Attacks with Limited Queries and Information", ICML 2018, with the ranks of
Wei et al., TPAMI 2023, in place of losses; see `score_based`.
Limits: it is AstFocus whose square is the frame, in all frames; for a linear loss c.u the cosine of the estimate with c
grows as sqrt(n / d), where n samples are asked and d values searched.
"""

from __future__ import annotations

import torch
from torch import Tensor

from weathered.attacks.score_based import Focus, ScoreAttack


class Everywhere:
    """All values, always."""

    def __init__(self, x: Tensor):
        self.mask = torch.ones_like(x, dtype=torch.bool)

    def choose(self) -> Tensor:
        return self.mask

    def learn(self, reward: float) -> None:
        """Nothing is learnt."""


class NES(ScoreAttack):
    """Steps along gradients estimated by ranks, for inputs of any shape.

    epsilon, queries, samples, sigma, step_size, min_step_size, targeted: as in `ScoreAttack`.
    """

    def focus(self, x: Tensor, rng: torch.Generator) -> Focus:
        return Everywhere(x)
