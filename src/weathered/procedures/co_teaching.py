"""Co-teaching: two networks, each trained on the samples whose loss is small for the other.

Source: Han et al., "Co-teaching: Robust Training of Deep Neural Networks with Extremely Noisy Labels", NeurIPS 2018.
    S1, S2 = the floor((1 - R) B) smallest of L(z1_i, y_i), and of L(z2_i, y_i)
    loss   = mean over S2 of L(z1_i, y_i) + mean over S1 of L(z2_i, y_i)
R rises linearly from 0 to tau^c over the first `ramp` of training and is tau afterwards; it counts from the very first
step, R(0) = 0. The two terms have no weights in common, so one optimizer over both networks makes the steps of two.
Limit: R = 0 trains two networks apart. Networks that rank alike train as each on its own small losses.
The published figures use Adam, with beta1 = 0.1 in the second part of training.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from weathered.core.batch import Batch
from weathered.core.target import Target
from weathered.procedures.base import TwoNetworks, keep_rate, kept_mean, smallest

if TYPE_CHECKING:
    from weathered.core.run import Run


def exchanged_rows(
    first: Float[Tensor, "B"], second: Float[Tensor, "B"], rate: float
) -> tuple[Bool[Tensor, "B"], Bool[Tensor, "B"]]:
    """Which rows each of two networks is trained on: the floor(rate * B) smallest losses of the other, at least one.

    first, second (B,): the losses of both networks, finite. rate in [0, 1]: the share that is kept, see `keep_rate`.
    Returns the marks for the first network and those for the second.
    Raises ValueError for losses of two shapes or a loss that is not finite. Source: Han et al., NeurIPS 2018.
    """
    if first.ndim != 1 or first.shape != second.shape:
        raise ValueError(
            f"both networks need one loss per sample, got shapes {tuple(first.shape)} and {tuple(second.shape)}"
        )
    return smallest(second, rate), smallest(first, rate)


class CoTeaching(TwoNetworks):
    """Train two networks of one architecture on each other's small losses; the run's model is the one that predicts.

    forget_rate in [0, 1): share dropped after the ramp, the noise rate. ramp in [0, 1]: share of training over which
    dropping sets in. exponent > 0: the ramp ends at forget_rate**exponent.

    Any loss part ranks and trains. Samples are ranked over the batch of all devices. A reweight part sees the losses
    of both networks on the whole batch as one batch of 2 B, and its weights multiply those of the kept rows, whose
    mean is taken. Batch statistics come from the whole batch.
    Raises ValueError in `setup` if both networks start from the same weights: they would agree for ever.
    """

    peer_stream = "co-teaching peer"

    def __init__(self, forget_rate: float = 0.2, ramp: float = 0.05, exponent: float = 1.0):
        super().__init__(forget_rate, ramp, exponent)

    def loss(self, run: Run, batch: Batch) -> Float[Tensor, ""]:
        first, second = (run.losses(output, batch) for output in self.outputs(run, batch))
        everyone = run.gather(first), run.gather(second)
        run.check_finite(torch.cat(everyone))
        rate = keep_rate(run.progress, self.forget_rate, self.ramp, self.exponent)
        for_first, for_second = exchanged_rows(*everyone, rate)
        weights = run.weights(torch.cat([first, second]), Target.cat([batch.target, batch.target]))
        if weights is not None:
            first, second = weights[: len(batch)] * first, weights[len(batch) :] * second
        return kept_mean(run, first, for_first) + kept_mean(run, second, for_second)
