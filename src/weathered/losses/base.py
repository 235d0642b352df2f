"""What losses around another loss share: everything the inner one needs, holds or offers is passed on."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, cast

from jaxtyping import Float, Int
from torch import Tensor

from weathered.core.facts import traits_of
from weathered.core.objective import logits_for_test
from weathered.core.roles import Loss, Part
from weathered.losses.cross_entropy import CrossEntropy

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
    its scale at test time and, where it has one, its `soft` are passed on.
    """

    def __init__(self, base: Loss | None = None):
        self.base: Loss = CrossEntropy() if base is None else base
        self.traits = traits_of(self.base)

    def transform_logits(self, logits: Float[Tensor, "B C"]) -> Float[Tensor, "B C"]:
        """The logits that `base` is given in training."""
        raise NotImplementedError

    def __call__(self, logits: Float[Tensor, "B C"], labels: Int[Tensor, "B"], **needed: Tensor) -> Float[Tensor, "B"]:
        """Losses (B,) of `base` on the changed logits. needed: what `base` takes besides logits, such as features."""
        return cast(Any, self.base)(self.transform_logits(logits), labels, **needed)

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
