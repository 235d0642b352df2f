"""Losses at 256 x 1000, forward and backward: ours against the formula of the authors' code and cross entropy.

The formulas are those that the authors publish, in eager torch, a mean over the batch; where their code is Keras, its
clipping is kept. Cross entropy is the reference of what a loss costs at least: losses that only change what is done
with the label's probability should stay within half of it; LogitNorm projects the gradient of each row, and a full
transition matrix weighs every class, so both pass over the logits about twice as often.
"""

import math
from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional as F

from timing import Row, side_by_side
from weathered import AlphaLoss, ForwardCorrection, GeneralizedCrossEntropy, LogitNorm, SymmetricCrossEntropy

BATCH, CLASSES = 256, 1000
NEAR = 1 / 1.5
TAU, ALPHA, Q, RATE = 0.04, 4.0, 0.7, 0.4

Mean = Callable[[Tensor, Tensor], Tensor]


def rows() -> list[Row]:
    rng = torch.Generator().manual_seed(0)
    logits = torch.randn(BATCH, CLASSES, generator=rng).requires_grad_()
    labels = torch.randint(CLASSES, (BATCH,), generator=rng)
    noise = torch.full((CLASSES, CLASSES), RATE / (CLASSES - 1)).fill_diagonal_(1 - RATE)
    pairs: dict[str, tuple[Mean, Mean]] = {
        "LogitNorm": (_mean(LogitNorm(TAU)), _logitnorm),
        "alpha-loss": (_mean(AlphaLoss(ALPHA)), _alpha_loss),
        "gce": (_mean(GeneralizedCrossEntropy(Q)), _gce),
        "symmetric cross entropy": (_mean(SymmetricCrossEntropy(log_zero=math.log(1e-4))), _symmetric),
        "forward correction, rate": (_mean(ForwardCorrection(noise_rate=RATE)), lambda z, y: _forward(z, y, noise)),
        "forward correction, matrix": (_mean(ForwardCorrection(noise)), lambda z, y: _forward(z, y, noise)),
    }
    found = []
    for name, (ours, theirs) in pairs.items():
        mine, peer, plain = (both_ways(loss, logits, labels) for loss in (ours, theirs, F.cross_entropy))
        check(mine, peer)
        what = f"{name}, {BATCH}x{CLASSES}"
        found += [
            side_by_side(what, "published formula", mine, peer, 1.0, 40, 5),
            side_by_side(what, "torch cross entropy", mine, plain, NEAR, 40, 5),
        ]
    return found


def _mean(loss: Callable[[Tensor, Tensor], Tensor]) -> Mean:
    return lambda logits, labels: loss(logits, labels).mean()


def both_ways(loss: Mean, logits: Tensor, labels: Tensor) -> Callable[[], tuple[Tensor, Tensor]]:
    def step() -> tuple[Tensor, Tensor]:
        value = loss(logits, labels)
        (gradient,) = torch.autograd.grad(value, logits)
        return value.detach(), gradient

    return step


def check(ours: Callable[[], tuple[Tensor, Tensor]], theirs: Callable[[], tuple[Tensor, Tensor]]) -> None:
    """The same loss and the same gradient."""
    (value, gradient), (peer_value, peer_gradient) = ours(), theirs()
    torch.testing.assert_close(value, peer_value, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(gradient, peer_gradient, rtol=1e-3, atol=1e-7)


def _logitnorm(logits: Tensor, labels: Tensor) -> Tensor:
    norms = torch.norm(logits, p=2, dim=-1, keepdim=True) + 1e-7
    return F.cross_entropy(torch.div(logits, norms) / TAU, labels)


def _alpha_loss(logits: Tensor, labels: Tensor) -> Tensor:
    onehot = F.one_hot(labels, CLASSES).to(logits)
    power = torch.softmax(logits, dim=1).pow(1 - 1 / ALPHA)
    return ALPHA / (ALPHA - 1) * torch.mean(torch.sum(onehot * (1 - power), dim=1))


def _gce(logits: Tensor, labels: Tensor) -> Tensor:
    onehot = F.one_hot(labels, CLASSES).to(logits)
    return torch.mean((1 - torch.pow(torch.sum(onehot * logits.softmax(1), dim=-1), Q)) / Q)


def _symmetric(logits: Tensor, labels: Tensor) -> Tensor:
    onehot, predicted = F.one_hot(labels, CLASSES).to(logits), logits.softmax(1)
    entropy = -torch.sum(onehot * torch.log(predicted.clamp(1e-7, 1.0)), dim=-1)
    reverse = -torch.sum(predicted * torch.log(onehot.clamp(1e-4, 1.0)), dim=-1)
    return 0.1 * torch.mean(entropy) + torch.mean(reverse)


def _forward(logits: Tensor, labels: Tensor, noise: Tensor) -> Tensor:
    predicted = logits.softmax(1)
    predicted = (predicted / predicted.sum(-1, keepdim=True)).clamp(1e-7, 1 - 1e-7)
    return torch.mean(-torch.sum(F.one_hot(labels, CLASSES).to(logits) * torch.log(predicted @ noise), dim=-1))
