"""Long tails: losses at 256 x 1000 against their published formulas, RISDA's logits, thresholds of sets, and draws.

The formulas are those of the authors' code in eager torch, a mean over the batch. A threshold of average-K sets needs
the value of one rank among all scores, which sorting gives as well. Draws are those of an epoch of a million rows.
"""

from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from losses import BATCH, CLASSES, both_ways, check
from timing import Row, side_by_side, timed
from weathered import CALS, LDAM, Bayias, ClassBalancedSampling, Focal, LogitAdjustment, VSLoss
from weathered.core.draws import weighted_rows
from weathered.core.rng import generator
from weathered.procedures.risda import risda_loss
from weathered.sets.average_k import global_cut

GAMMA, TAU, MARGIN, SCALE = 0.3, 1.0, 0.5, 30.0
ROWS = 1_000_000
LIMIT_MS = 300.0


def rows() -> list[Row]:
    return [*_losses(), _risda(), _threshold(), *_draws()]


def _losses() -> list[Row]:
    rng = torch.Generator().manual_seed(0)
    logits = torch.rand(BATCH, CLASSES, generator=rng).mul(2).sub(1).requires_grad_()
    labels = torch.randint(CLASSES, (BATCH,), generator=rng)
    counts = (500 * 0.02 ** (torch.arange(CLASSES) / (CLASSES - 1))).long()
    prior = (counts / counts.sum()).log().float()
    factors = ((counts / counts.max()) ** GAMMA).float()
    margins = (1 / counts.double() ** 0.25).float()
    margins = margins * (MARGIN / margins.max())
    cals = CALS(CLASSES, margin=0.5, lambda_min=0.1)
    pairs: dict[str, tuple[Callable[[Tensor, Tensor], Tensor], Callable[[Tensor, Tensor], Tensor], float]] = {
        "LDAM": (_mean(LDAM(counts, MARGIN, SCALE)), lambda z, y: _ldam(z, y, margins), 2.0),
        "VS-loss": (
            _mean(VSLoss(counts, GAMMA, TAU)),
            lambda z, y: F.cross_entropy(z / (1 / factors) + TAU * prior, y),
            1.0,
        ),
        "logit adjustment": (
            _mean(LogitAdjustment(counts, TAU)),
            lambda z, y: F.cross_entropy(z + TAU * prior, y),
            1.0,
        ),
        "Bayias": (
            _mean(Bayias(counts)),
            lambda z, y: F.cross_entropy(z + prior + torch.log(torch.tensor(float(CLASSES))), y),
            1.0,
        ),
        "focal": (_mean(Focal(2.0)), _focal, 1.0),
        "CALS": (
            lambda z, y: F.cross_entropy(z, y) + cals.penalties(z).mean(),
            lambda z, y: _cals(z, y, 0.5, torch.full((CLASSES,), 0.1), torch.ones(CLASSES)),
            1.0,
        ),
    }
    found = []
    for name, (ours, theirs, target) in pairs.items():
        mine, peer = both_ways(ours, logits, labels), both_ways(theirs, logits, labels)
        check(mine, peer)
        found.append(side_by_side(f"{name}, {BATCH}x{CLASSES}", "published formula", mine, peer, target, 40, 5))
    return found


def _mean(loss: Callable[[Tensor, Tensor], Tensor]) -> Callable[[Tensor, Tensor], Tensor]:
    return lambda logits, labels: loss(logits, labels).mean()


def _ldam(logits: Tensor, labels: Tensor, margins: Tensor) -> Tensor:
    chosen = torch.zeros_like(logits, dtype=torch.uint8)
    chosen.scatter_(1, labels.view(-1, 1), 1)
    margin = torch.matmul(margins[None], chosen.float().transpose(0, 1)).view(-1, 1)
    return F.cross_entropy(SCALE * torch.where(chosen.bool(), logits - margin, logits), labels)


def _focal(logits: Tensor, labels: Tensor) -> Tensor:
    losses = F.cross_entropy(logits, labels, reduction="none")
    return ((1 - torch.exp(-losses)) ** 2 * losses).mean()


def _cals(logits: Tensor, labels: Tensor, margin: float, multipliers: Tensor, rho: Tensor) -> Tensor:
    h = (logits.max(1, keepdim=True).values - logits) / margin - 1
    a = multipliers + rho * h
    penalty = torch.where(a >= 0, (a**2 - multipliers**2) / (2 * rho), -(multipliers**2) / (2 * rho))
    return F.cross_entropy(logits, labels) + penalty.mean()


def _risda(batch: int = 256, classes: int = 100, width: int = 64) -> Row:
    """The released loss makes an array of a row for each sample, class and feature."""
    rng = torch.Generator().manual_seed(0)
    features, labels = torch.randn(batch, width, generator=rng), torch.randint(classes, (batch,), generator=rng)
    roots = torch.randn(classes, width, width, generator=rng) / width
    covariances, shift = roots @ roots.mT, torch.randn(classes, width, generator=rng)
    weight = (0.1 * torch.randn(classes, width, generator=rng)).requires_grad_()
    bias = torch.zeros(classes)

    def ours(w: Tensor, y: Tensor) -> Tensor:
        return risda_loss(features, y, w, bias, covariances, shift, 0.5, 0.75).mean()

    def theirs(w: Tensor, y: Tensor) -> Tensor:
        difference = w.expand(batch, classes, width) - w[y][:, None]
        spread = torch.bmm(torch.bmm(difference, covariances[y]), difference.permute(0, 2, 1))
        quadratic = 0.75 * (spread * torch.eye(classes)).sum(2)
        linear = 0.5 * torch.bmm(difference, shift[y][:, :, None])[:, :, 0]
        return F.cross_entropy(F.linear(features, w, bias) + 0.5 * quadratic + linear, y)

    mine, peer = both_ways(ours, weight, labels), both_ways(theirs, weight, labels)
    check(mine, peer)
    what = f"RISDA, {batch} samples, {classes} classes, {width} features"
    return side_by_side(what, "published formula", mine, peer, 1.0, 15)


def _threshold(samples: int = 50_000, classes: int = 1000, k: int = 5) -> Row:
    rng = np.random.default_rng(0)
    scores = rng.random((samples, classes), dtype=np.float32)
    rank = k * samples

    def ours() -> float:
        return float(global_cut(scores, k).threshold)

    def theirs() -> float:
        return float(np.sort(scores.ravel())[-rank])

    assert ours() == theirs()
    return side_by_side(f"average-K threshold, {samples}x{classes}", "sorting all scores", ours, theirs, 3.0, 3, 1, 0)


def _draws() -> list[Row]:
    labels = torch.randint(100, (ROWS,), generator=torch.Generator().manual_seed(0))
    sampler = ClassBalancedSampling()
    weights = sampler.weights(labels, 0.0).double()

    def ours() -> Tensor:
        return weighted_rows(weights, ROWS, generator(0, "draws"))

    def peer() -> Tensor:
        return torch.multinomial(weights, ROWS, replacement=True, generator=generator(0, "draws"))

    def whole() -> Tensor:
        return weighted_rows(sampler.weights(labels, 0.0), ROWS, generator(0, "draws"))

    what = f"drawing {ROWS} rows by weight"
    whole()
    took = 1000 * float(np.median([timed(whole, 1) for _ in range(7)]))
    return [
        side_by_side(what, "torch.multinomial", ours, peer, 1.0, 7),
        Row(f"{what}, weights included", "limit of 300 ms", took, LIMIT_MS, LIMIT_MS / took, 1.0, 7),
    ]
