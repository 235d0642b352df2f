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

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

from weathered.core import distributed
from weathered.core.batch import Batch
from weathered.core.facts import Traits
from weathered.core.procedure import Procedure

if TYPE_CHECKING:
    from weathered.core.run import Run

PEER = "peer"


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
    _check_range("co_lambda", co_lambda, 0 <= co_lambda <= 1, "[0, 1]")
    divergence = jeffreys_divergence(first, second)
    if supervised.shape != divergence.shape:
        raise ValueError(f"got {tuple(supervised.shape)} losses for logits of shape {tuple(first.shape)}")
    return (1 - co_lambda) * supervised + co_lambda * divergence


def keep_rate(progress: float, forget_rate: float, ramp: float, exponent: float = 1.0) -> float:
    """The share 1 - R of a batch that is kept at `progress` of training.

    R rises linearly from 0 at progress 0 to forget_rate ** exponent at progress `ramp`, and is forget_rate afterwards;
    with an exponent other than 1 it therefore jumps at the end of the ramp. ramp = 0 drops from the start.
    progress and ramp in [0, 1], forget_rate in [0, 1), exponent > 0; raises ValueError otherwise.
    """
    _check_range("progress", progress, 0 <= progress <= 1, "[0, 1]")
    _check_range("forget_rate", forget_rate, 0 <= forget_rate < 1, "[0, 1)")
    _check_range("ramp", ramp, 0 <= ramp <= 1, "[0, 1]")
    _check_range("exponent", exponent, exponent > 0, "(0, infinity)")
    if ramp == 0 or progress > ramp:
        return 1 - forget_rate
    return 1 - forget_rate**exponent * progress / ramp


def smallest(losses: Float[Tensor, "B"], rate: float) -> Bool[Tensor, "B"]:
    """Mark the floor(rate * B) smallest losses, at least one; equal losses are taken in the order of the batch.

    losses (B,), finite: NaN would sort last and be dropped unseen. rate in [0, 1].
    Raises ValueError if a loss is not finite.
    """
    if not bool(torch.isfinite(losses).all()):
        raise ValueError(
            f"losses must be finite to be ranked, position {int((~losses.isfinite()).nonzero()[0])} is not"
        )
    # 10 * (1 - 0.9) is one sample, though floating point says 0.99...
    count = max(int(rate * len(losses) + 1e-6), 1)
    kept = torch.zeros(len(losses), dtype=torch.bool, device=losses.device)
    kept[losses.detach().argsort(stable=True)[:count]] = True
    return kept


def _check_range(name: str, value: float, legal: bool, interval: str) -> None:
    if not legal:
        raise ValueError(f"{name} must be in {interval}, got {value}")


class JoCoR(Procedure):
    """Train two networks of one architecture together; the run's model is the one that predicts.

    co_lambda in [0, 1]: weight of agreement; the authors used 0.9 on CIFAR-10 (0.65 for 80 % noise), 0.85 on
    CIFAR-100. forget_rate in [0, 1): share dropped after the ramp, the noise rate, halved for asymmetric noise.
    ramp in [0, 1]: share of training over which dropping sets in. exponent > 0: the ramp ends at forget_rate**exponent.

    Any loss part supplies L; agreement is measured between the probabilities that the loss implies at test time.
    Samples are ranked over the batch of all devices. A reweight part sees the joint losses of the whole batch, and
    its weights multiply those of the kept rows, whose mean is taken. Batch statistics come from the whole batch.
    Raises ValueError in `setup` if both networks start from the same weights: they would agree for ever.
    """

    traits = Traits(
        needs={"hard_target": "keeps samples with small loss against their one given label"},
        honours=frozenset({"sampler", "transform", "loss", "reweight", "stepper"}),
    )

    def __init__(self, co_lambda: float = 0.9, forget_rate: float = 0.2, ramp: float = 0.05, exponent: float = 1.0):
        _check_range("co_lambda", co_lambda, 0 <= co_lambda <= 1, "[0, 1]")
        keep_rate(0.0, forget_rate, ramp, exponent)
        self.co_lambda, self.forget_rate, self.ramp, self.exponent = co_lambda, forget_rate, ramp, exponent

    def setup(self, run: Run) -> dict[str, nn.Module]:
        peer = run.fresh_model("jocor peer").to(run.device)
        pairs = zip(run.model.parameters(), peer.parameters(), strict=True)
        if all(torch.equal(one, other) for one, other in pairs):
            raise ValueError(
                "both networks of JoCoR start from the same weights and would agree for ever; "
                "give the run a model function that draws its weights from the seed it is called with"
            )
        return {PEER: peer}

    def loss(self, run: Run, batch: Batch) -> Float[Tensor, ""]:
        peer = run.modules[PEER].train()
        first, second = run.forward(batch.x), run.forward(batch.x, peer)
        supervised = run.losses(first, batch) + run.losses(second, batch)
        joint = jocor_losses(supervised, run.test_logits(first.logits), run.test_logits(second.logits), self.co_lambda)
        everyone = run.gather(joint)
        run.check_finite(everyone)
        kept = smallest(everyone, keep_rate(run.progress, self.forget_rate, self.ramp, self.exponent))
        mine = distributed.local(run.fabric, kept)
        weights = run.weights(joint, batch.target)
        weighted = joint if weights is None else weights * joint
        # gradients are averaged over devices, which keep different numbers of rows
        return weighted[mine].sum() * (run.fabric.world_size / int(kept.sum()))
