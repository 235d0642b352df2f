"""Energy: minus the soft maximum of the logits.

Source: Liu et al., "Energy-based Out-of-distribution Detection", NeurIPS 2020, eq. 4. They threshold minus the energy,
higher = in-distribution; here the energy itself is the score.

    s(z) = -T log sum_c exp(z_c / T)

Limits: T -> 0 gives minus the largest logit; T = 1 is at most that, and at least that minus log C. Adding a constant
to all logits of an input shifts its score by minus the constant, although the probabilities stay.
"""

import torch
from jaxtyping import Float
from torch import Tensor

from weathered.scores.base import Evidence, Score, check_temperature, free_energy, need


def energy_score(logits: Float[Tensor, "N C"], temperature: float = 1.0) -> Float[Tensor, "N"]:
    """Free energy -T log sum_c exp(logits_c / T) in nats, in float64.

    logits (N, C): finite, not probabilities. temperature T > 0. Returns (N,), any real numbers, higher = more
    out-of-distribution. Raises ValueError if T is out of range or logits are not finite floats (N, C).
    Source: Liu et al., NeurIPS 2020, eq. 4 (they threshold the negative of this).
    """
    return free_energy(logits, temperature)


class Energy(Score):
    """Free energy of the logits. Needs logits; nothing to fit. temperature > 0, in logits. Liu et al., NeurIPS 2020."""

    def __init__(self, temperature: float = 1.0):
        check_temperature(temperature)
        self.temperature = temperature

    @torch.no_grad()
    def score(self, evidence: Evidence) -> Float[Tensor, "N"]:
        """Scores (N,), higher = more out-of-distribution; errors as in `energy_score`."""
        return energy_score(need(evidence.logits, "logits", self), self.temperature)
