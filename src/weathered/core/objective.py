"""How a loss meets a target: hard losses are summed over a mixture, soft ones are given the distribution."""

from typing import Any

from jaxtyping import Float
from torch import Tensor

from weathered.core.batch import Batch
from weathered.core.facts import traits_of
from weathered.core.roles import Loss, Output
from weathered.core.target import Target


def losses_of(loss: Loss, logits: Float[Tensor, "B C"], target: Target, **keywords: Any) -> Float[Tensor, "B"]:
    """Per-sample losses (B,) of a mixture target.

    A loss with `soft(logits, p)` gets the dense distribution; any other is called once per hard label and
    summed with the label's weights, which is exact for losses linear in the target.
    Raises ValueError if soft labels are not as wide as the logits.
    """
    target.check_classes(logits.shape[1])
    if target.is_hard:
        return loss(logits, target.labels[0], **keywords)
    soft = getattr(loss, "soft", None)
    if soft is not None:
        return soft(logits, target.dense(logits.shape[1]).to(logits.dtype), **keywords)
    parts = [w * loss(logits, y, **keywords) for y, w in zip(target.labels, target.weights, strict=True)]
    total = parts[0]
    for part in parts[1:]:
        total = total + part
    return total


def keywords_of(loss: Loss, output: Output, batch: Batch) -> dict[str, Any]:
    """What a loss asked for besides logits, by the facts it needs."""
    needs = traits_of(loss).needs
    found = {"features": output.features} if "features" in needs else {}
    return found | ({"group": batch.extra["group"]} if "group" in needs else {})


def logits_for_test(loss: Loss, logits: Float[Tensor, "B C"]) -> Float[Tensor, "B C"]:
    """Logits whose softmax is the model's probability, for losses that bring a scale of their own."""
    scale = getattr(loss, "test_logits", None)
    return logits if scale is None else scale(logits)
