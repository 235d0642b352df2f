"""Open-sampling: images of no class under labels drawn against the class prior, so that the union is balanced.

Source: Wei et al., "Open-Sampling: Exploring Out-of-Distribution Data for Re-balancing Long-tailed Datasets",
ICML 2022. With the class prior pi and a parameter a >= max(pi):
    Gamma_k = (a - pi_k) / (C a - 1),   w_k = C Gamma_k,   y~ ~ Gamma, drawn in this very step
    loss = mean L(f(x), y) + eta * sum_j w[y~_j] CE(f(x~_j), y~_j) / sum_j w[y~_j]
Rarity acts twice, in the draw and in the weight: the constant prediction that is best for the auxiliary term is
proportional to Gamma^2. (C a - 1) N auxiliary samples make the union of both sets uniform in expectation.
Limits: balanced classes give uniform labels and equal weights, the term of ODNL; eta = 0 is plain training.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn.functional import cross_entropy

from weathered.core.facts import Traits
from weathered.procedures.auxiliary import AuxiliaryProcedure, own_labels

if TYPE_CHECKING:
    from weathered.core.run import Run


def complementary_distribution(class_counts: Int[Tensor, "C"], complement: float | None = None) -> Float[Tensor, "C"]:
    """The distribution (C,) float64 whose order is opposite to that of the class sizes.

    class_counts (C,): samples of each class, all > 0, C >= 2. complement: the parameter a >= max(pi), more than 1/C;
    by default max(pi) + min(pi), the smallest that leaves no class without. Raises ValueError outside these ranges.
    Source: Wei et al., ICML 2022, definition of the complementary distribution.
    """
    counts = class_counts.double()
    if counts.ndim != 1 or len(counts) < 2 or not bool((counts > 0).all()):
        raise ValueError(
            f"class_counts must hold at least 2 classes with samples each, got {class_counts.tolist()}; remove empty "
            "classes, which would get most of the auxiliary labels"
        )
    prior = counts / counts.sum()
    high = float(prior.max())
    a = high + float(prior.min()) if complement is None else complement
    if not (a >= high and a > 1 / len(counts) and math.isfinite(a)):
        raise ValueError(
            f"complement must be finite, at least the share {high:.4g} of the largest class and more than "
            f"1/{len(counts)}, got {a}"
        )
    return (a - prior) / (len(counts) * a - 1)


class OpenSampling(AuxiliaryProcedure):
    """Train on long-tailed data and on auxiliary images `ood` labelled in favour of rare classes.

    class_counts (C,): samples of each class, all > 0. eta >= 0: weight of the auxiliary term; the authors use 1.
    complement: the parameter a, see `complementary_distribution`. aux_batch >= 1: auxiliary images per step; the
    authors use four times the training batch. separate: pass them through the network by themselves.

    Any long-tail loss may fill the loss slot. The auxiliary images must hold none of the classes, and need features
    in common with them: plain noise helps little. Source: Wei et al., ICML 2022.
    """

    traits = Traits(
        needs={**AuxiliaryProcedure.traits.needs, "class_counts": "labels are drawn against the class sizes"},
        honours=AuxiliaryProcedure.traits.honours,
    )

    def __init__(
        self,
        class_counts: Int[Tensor, "C"],
        eta: float = 1.0,
        complement: float | None = None,
        aux_batch: int = 512,
        separate: bool = False,
    ):
        super().__init__(eta, aux_batch, separate)
        self.distribution = complementary_distribution(class_counts, complement)

    def draw_labels(self, run: Run, size: int) -> Int[Tensor, "size"]:
        rng = run.generator("open sampling labels", shared=True)
        return torch.multinomial(self.distribution, size, replacement=True, generator=rng)

    def auxiliary_loss(self, run: Run, logits: Float[Tensor, "B C"], labels: Int[Tensor, "size"]) -> Float[Tensor, ""]:
        weights = (len(self.distribution) * self.distribution).to(logits)
        total = weights[labels].sum() / run.fabric.world_size
        return cross_entropy(logits, own_labels(run, labels), weight=weights, reduction="sum") / total
