"""One of several transforms for each batch, drawn by weight, as in switching between mixup and CutMix.

Limits: one transform is that transform; a weight of 0 leaves one out.
"""

import math
from collections.abc import Sequence
from typing import Any

import torch

from weathered.core.batch import Batch
from weathered.core.facts import Traits, traits_of
from weathered.core.roles import BatchTransform, Part


class OneOf(BatchTransform):
    """Apply one of several transforms to each batch.

    parts: at least one transform, by name on the command line, as in "one-of:parts=['mixup','cutmix']".
    weights: how likely each is, >= 0 and not all 0; all alike by default.
    It needs what any of them needs and breaks what any of them breaks. Raises ValueError for weights that do not fit.
    """

    def __init__(self, parts: Sequence[BatchTransform], weights: Sequence[float] = ()):
        if not parts:
            raise ValueError("parts must name at least one transform, got none")
        if wrong := next((part for part in parts if not isinstance(part, BatchTransform)), None):
            raise ValueError(f"parts must be transforms such as MixUp(), got {wrong!r}")
        given = tuple(float(weight) for weight in weights) or (1.0,) * len(parts)
        if len(given) != len(parts):
            raise ValueError(f"expected one weight for each of {len(parts)} parts, got {len(given)}")
        if not (all(0 <= weight < math.inf for weight in given) and sum(given) > 0):
            raise ValueError(f"weights must be >= 0, finite and not all 0, got {list(given)}")
        self.parts, self.weights = tuple(parts), given
        self.accepts_uint8 = all(part.accepts_uint8 for part in parts)
        traits = [traits_of(part) for part in parts]
        self.traits = Traits(
            needs={fact: why for each in traits for fact, why in each.needs.items()},
            breaks={fact: how for each in traits for fact, how in each.breaks.items()},
        )

    def apply(self, batch: Batch, rng: torch.Generator) -> Batch:
        weights = torch.tensor(self.weights, dtype=torch.float64)
        return self.parts[int(torch.multinomial(weights, 1, generator=rng))](batch, rng)

    def state_dict(self) -> dict[str, Any]:
        return {str(i): part.state_dict() for i, part in enumerate(self.parts) if isinstance(part, Part)}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        for i, part in enumerate(self.parts):
            if isinstance(part, Part):
                part.load_state_dict(state[str(i)])
