"""Large decay: a weight decay of 0.5, about ten times what is usual for transformers.

Source: Debenedetti et al., "A Light Recipe to Train Robust Vision Transformers", SaTML 2023. The decay is AdamW's,
apart from the gradient and multiplied by the learning rate. As an L2 penalty, which is what other optimizers make of
it, so much would leave nothing to learn, so they are refused. Limit: amount = 0 is no decay.
"""

import math
from dataclasses import replace

from weathered.core.errors import Incompatible
from weathered.core.settings import Settings
from weathered.tricks.base import Trick


class LargeDecay(Trick):
    """Decoupled weight decay of `amount` >= 0. Raises Incompatible for any optimizer but AdamW."""

    changes = "weight_decay"

    def __init__(self, amount: float = 0.5):
        if not (amount >= 0 and math.isfinite(amount)):
            raise ValueError(f"amount must be >= 0 and finite, got {amount}")
        self.amount = amount

    def settings(self, settings: Settings) -> Settings:
        """Settings with this weight decay."""
        if settings.optimizer != "adamw":
            raise Incompatible(
                f"LargeDecay is meant for the decoupled decay of AdamW; as the penalty of {settings.optimizer} it "
                "would leave nothing to learn. Add --optimizer adamw with a rate such as --lr 5e-4, or remove it."
            )
        return replace(settings, weight_decay=self.amount)
