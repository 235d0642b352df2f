"""JoCoR: two networks with one joint loss that rewards agreement, on the part of the batch where that loss is small.

Source: Wei et al., "Combating Noisy Labels by Agreement: A Joint Training Method with Co-Regularization", CVPR 2020.
    l_i  = (1 - lambda) (L(z1_i, y_i) + L(z2_i, y_i)) + lambda (KL(p1_i || p2_i) + KL(p2_i || p1_i))
    loss = mean of the floor((1 - R) B) smallest l_i; one backward pass, one step on both networks
R rises linearly from 0 to tau^c over the first `ramp` of training and is tau afterwards.
Limits: lambda = 0 and R = 0 train two networks apart; lambda = 1 ignores the labels.
R counts from the very first step, R(0) = 0; the authors' loop starts one epoch into the ramp.
Their published figures use Adam, with beta1 = 0.1 in the second part of training, and no augmentation.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from jaxtyping import Float
from torch import Tensor

from weathered.core.batch import Batch
from weathered.procedures.base import TwoNetworks, check_range, keep_rate, kept_mean, smallest

if TYPE_CHECKING:
    from weathered.core.run import Run


def jeffreys_divergence(first: Float[Tensor, "B C"], second: Float[Tensor, "B C"]) -> Float[Tensor, "B"]:
    """KL(p || q) + KL(q || p) per row, in nats, for p = softmax(first) and q = softmax(second).

    first, second (B, C): logits, any real numbers, C >= 2. Returns (B,), >= 0, symmetric, 0 where the softmaxes agree.
    Raises ValueError if the shapes differ or there is only one class. Source: Wei et al., CVPR 2020.
    """
    if first.ndim != 2 or first.shape != second.shape or first.shape[1] < 2:
        raise ValueError(
            "both networks need logits of one shape (B, C) with C >= 2, "
            f"got {tuple(first.shape)} and {tuple(second.shape)}"
        )
    log_p, log_q = first.log_softmax(1), second.log_softmax(1)
    # the product form is a sum of terms >= 0, so rounding cannot make it negative
    return ((log_p.exp() - log_q.exp()) * (log_p - log_q)).sum(1)


def jocor_losses(
    supervised: Float[Tensor, "B"], first: Float[Tensor, "B C"], second: Float[Tensor, "B C"], co_lambda: float
) -> Float[Tensor, "B"]:
    """Joint loss per sample: (1 - co_lambda) * supervised + co_lambda * Jeffreys divergence.

    supervised (B,): the sum of both networks' losses against the labels. first, second (B, C): their logits.
    co_lambda in [0, 1]. Gradients reach both networks through both terms.
    Raises ValueError for another co_lambda or shapes that do not fit. Source: Wei et al., CVPR 2020.
    """
    check_range("co_lambda", co_lambda, 0 <= co_lambda <= 1, "[0, 1]")
    divergence = jeffreys_divergence(first, second)
    if supervised.shape != divergence.shape:
        raise ValueError(f"got {tuple(supervised.shape)} losses for logits of shape {tuple(first.shape)}")
    return (1 - co_lambda) * supervised + co_lambda * divergence


class JoCoR(TwoNetworks):
    """Train two networks of one architecture together; the run's model is the one that predicts.

    co_lambda in [0, 1]: weight of agreement; the authors used 0.9 on CIFAR-10 (0.65 for 80 % noise), 0.85 on
    CIFAR-100. forget_rate in [0, 1): share dropped after the ramp, the noise rate, halved for asymmetric noise.
    ramp in [0, 1]: share of training over which dropping sets in. exponent > 0: the ramp ends at forget_rate**exponent.

    Any loss part supplies L; agreement is measured between the probabilities that the loss implies at test time.
    Samples are ranked over the batch of all devices. A reweight part sees the joint losses of the whole batch, and
    its weights multiply those of the kept rows, whose mean is taken. Batch statistics come from the whole batch.
    Raises ValueError in `setup` if both networks start from the same weights: they would agree for ever.
    """

    peer_stream = "jocor peer"

    def __init__(self, co_lambda: float = 0.9, forget_rate: float = 0.2, ramp: float = 0.05, exponent: float = 1.0):
        check_range("co_lambda", co_lambda, 0 <= co_lambda <= 1, "[0, 1]")
        super().__init__(forget_rate, ramp, exponent)
        self.co_lambda = co_lambda

    def loss(self, run: Run, batch: Batch) -> Float[Tensor, ""]:
        first, second = self.outputs(run, batch)
        supervised = run.losses(first, batch) + run.losses(second, batch)
        joint = jocor_losses(supervised, run.test_logits(first.logits), run.test_logits(second.logits), self.co_lambda)
        everyone = run.gather(joint)
        run.check_finite(everyone)
        kept = smallest(everyone, keep_rate(run.progress, self.forget_rate, self.ramp, self.exponent))
        weights = run.weights(joint, batch.target)
        return kept_mean(run, joint if weights is None else weights * joint, kept)
