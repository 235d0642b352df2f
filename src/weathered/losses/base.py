"""What losses around another loss share: all the inner one needs, holds or offers is passed on; offsets for classes."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import TYPE_CHECKING, Any, cast

import torch
from jaxtyping import Float, Int
from torch import Tensor

from weathered.core.facts import Traits, name_of, traits_of
from weathered.core.objective import logits_for_test
from weathered.core.roles import Loss, Part
from weathered.losses.cross_entropy import CrossEntropy
from weathered.weighting.base import ClassCounts, check_class_counts

if TYPE_CHECKING:
    from weathered.core.run import Run


def along_classes(values: Float[Tensor, "C"], logits: Float[Tensor, "B C ..."]) -> Float[Tensor, "C ..."]:
    """One value for each class, in the type of the logits, shaped to meet their second axis.

    Raises ValueError if the logits have another number of classes.
    """
    if logits.ndim < 2 or logits.shape[1] != len(values):
        raise ValueError(f"logits must be (B, {len(values)}), one for each class count, got {tuple(logits.shape)}")
    return values.to(logits).view(-1, *[1] * (logits.ndim - 2))


class WrappingLoss(Part):
    """A loss that changes the logits and gives them to `base`. A method overrides `transform_logits`.

    base: any loss, cross entropy by default. Its traits are those of the whole; its state, its call after each epoch,
    its scale at test time and, where it has one, its `soft` are passed on. A base with a scale of its own, such as
    LDAM, has `scaled` and `of_scaled`: then the logits are changed after that scale, where their softmax is the
    probability.
    """

    def __init__(self, base: Loss | None = None):
        self.base: Loss = CrossEntropy() if base is None else base
        self.traits = traits_of(self.base)

    def transform_logits(self, logits: Float[Tensor, "B C"]) -> Float[Tensor, "B C"]:
        """The logits that `base` is given in training."""
        raise NotImplementedError

    def __call__(self, logits: Float[Tensor, "B C"], labels: Int[Tensor, "B"], **needed: Tensor) -> Float[Tensor, "B"]:
        """Losses (B,) of `base` on the changed logits. needed: what `base` takes besides logits, such as features."""
        if hasattr(self.base, "of_scaled"):
            return self.of_scaled(self.scaled(logits), labels, **needed)
        return cast(Any, self.base)(self.transform_logits(logits), labels, **needed)

    @property
    def scaled(self) -> Callable[[Float[Tensor, "B C"]], Float[Tensor, "B C"]]:
        """`scaled(logits)` of `base`; AttributeError where it has none."""
        return cast(Any, self.base).scaled

    @property
    def of_scaled(self) -> Callable[..., Float[Tensor, "B"]]:
        """`of_scaled(logits, labels, **needed)` of `base` on the changed logits; AttributeError where it has none."""
        of_base = cast(Any, self.base).of_scaled

        def of_scaled(logits: Tensor, labels: Tensor, **needed: Tensor) -> Tensor:
            return of_base(self.transform_logits(logits), labels, **needed)

        return of_scaled

    @property
    def soft(self) -> Callable[..., Float[Tensor, "B"]]:
        """`soft(logits, p, **needed)` of `base` on the changed logits; AttributeError where `base` has none."""
        of_base = cast(Any, self.base).soft

        def soft(logits: Tensor, target: Tensor, **needed: Tensor) -> Tensor:
            return of_base(self.transform_logits(logits), target, **needed)

        return soft

    def test_logits(self, logits: Float[Tensor, "B C"]) -> Float[Tensor, "B C"]:
        """Unchanged; only `base` may ask for a scale."""
        return logits_for_test(self.base, logits)

    def state_dict(self) -> dict[str, Any]:
        return self.base.state_dict() if isinstance(self.base, Part) else {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        if isinstance(self.base, Part):
            self.base.load_state_dict(state)
        else:
            super().load_state_dict(state)

    def after_epoch(self, run: Run) -> None:
        if isinstance(self.base, Part):
            self.base.after_epoch(run)


def log_prior(class_counts: ClassCounts) -> Float[Tensor, "C"]:
    """log(n / sum n), (C,) float64. Raises ValueError for a class without samples."""
    counts = check_class_counts(class_counts)
    return (counts / counts.sum()).log()


class ShiftedLoss(WrappingLoss):
    """A loss on logits to which an offset for each class is added in training. `offsets` (C,) float64."""

    traits = Traits(evens_classes=True)

    def __init__(self, offsets: Float[Tensor, "C"], base: Loss | None = None):
        super().__init__(base)
        if self.traits.evens_classes:
            raise ValueError(f"{name_of(base)} makes up for class sizes itself, so it cannot be the base as well")
        needs = {**self.traits.needs, "class_counts": "offsets come from the counts"}
        self.traits = replace(self.traits, needs=needs, evens_classes=True)
        self.offsets = offsets

    def transform_logits(self, logits: Float[Tensor, "B C"]) -> Float[Tensor, "B C"]:
        # half precision would round the logarithms
        wide = logits.to(torch.promote_types(logits.dtype, torch.float32))
        return wide + along_classes(self.offsets, wide)
