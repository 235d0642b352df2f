"""Plain: one backward pass, one optimizer step."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from torch import Tensor

from weathered.core.roles import Part

if TYPE_CHECKING:
    from weathered.core.run import Run


class Plain(Part):
    """The ordinary step: gradients of the closure's loss, averaged over devices, then the optimizer."""

    def step(self, run: Run, closure: Callable[[], Tensor]) -> Tensor:
        run.optimizer.zero_grad(set_to_none=True)
        loss = closure()
        run.backward(loss)
        run.optimizer.step()
        return loss.detach()
