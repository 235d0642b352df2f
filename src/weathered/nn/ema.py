"""A moving average of a network's parameters, and a schedule for its momentum."""

import math

from torch import nn
from torch.optim.swa_utils import get_ema_multi_avg_fn


def update_average(average: nn.Module, model: nn.Module, momentum: float) -> None:
    """Move each parameter of `average` to momentum * average + (1 - momentum) * model, in place.

    Both modules have one architecture. momentum in [0, 1]: 1 leaves the average as it is, 0 copies the model, both
    exactly. Buffers are left alone: an average that is run in training mode keeps batch statistics of its own.
    Raises ValueError if momentum is out of range or the parameters do not match.
    """
    if not 0 <= momentum <= 1:
        raise ValueError(f"momentum must be in [0, 1], got {momentum}")
    targets, sources = list(average.parameters()), list(model.parameters())
    if [p.shape for p in targets] != [p.shape for p in sources]:
        raise ValueError("the average and the model must have parameters of the same shapes")
    if targets:
        get_ema_multi_avg_fn(momentum)([p.data for p in targets], [p.data for p in sources], 0)


def cosine_momentum(done: float, start: float, end: float, hold: float = 0.1) -> float:
    """The momentum at the share `done` of training: `start` up to `hold`, then a cosine towards `end` at done = 1.

    end - (end - start) (1 + cos(pi done)) / 2; done counts from the start of training, so that the value makes a
    small step at the end of the hold. All arguments in [0, 1], start <= end; raises ValueError otherwise.
    """
    if not (0 <= done <= 1 and 0 <= start <= end <= 1 and 0 <= hold <= 1):
        raise ValueError(
            f"expected done and hold in [0, 1] and 0 <= start <= end <= 1, got {done}, {hold}, {start} and {end}"
        )
    return start if done <= hold else end - (end - start) * (1 + math.cos(math.pi * done)) / 2
