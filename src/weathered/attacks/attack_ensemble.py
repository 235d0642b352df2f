"""Attack ensemble: several attacks in turn, each on the inputs that those before it could not turn.

Source: Croce and Hein, "Reliable Evaluation of Adversarial Robustness with an Ensemble of Diverse Parameter-free
Attacks", ICML 2020. Their AutoAttack is APGD on cross entropy, targeted APGD, targeted FAB and the square attack; the
bundle `attack-ensemble` is the same without FAB.
An input counts as robust if it withstands all, so the ensemble is never weaker than any of its members.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor, nn

from weathered.attacks.base import Attack, Passes, Search


class AttackEnsemble(Attack):
    """The attacks one after another. attacks: at least one, all of one budget, for example [PGD(0.1), Square(0.1)].

    Raises ValueError where budgets differ.
    """

    def __init__(self, attacks: Sequence[Attack]):
        if len({(attack.epsilon, attack.norm) for attack in attacks}) != 1:
            raise ValueError(f"expected at least one attack and one epsilon and norm for all, got {len(attacks)}")
        first = attacks[0]
        super().__init__(first.epsilon, first.norm, early_stop=all(attack.early_stop for attack in attacks))
        self.attacks = tuple(attacks)

    def passes(self) -> Passes:
        each = [attack.passes() for attack in self.attacks]
        return Passes(sum(passes.forward for passes in each), sum(passes.backward for passes in each))

    def search(self, model: nn.Module, found: Search, logits: Float[Tensor, "B C"], rng: torch.Generator) -> None:
        for attack in self.attacks:
            if len(found.open):
                attack.search(model, found, logits, rng)
