"""What a hallucinator makes of base classes: how far it is off their prototypes, and how little its rows differ."""

from typing import NamedTuple

import torch
from jaxtyping import Int
from torch import Tensor

from weathered.core.rng import generator
from weathered.fewshot.episodes import Fetch, pooled
from weathered.fewshot.hallucinator import reconstruction_loss
from weathered.fewshot.tfh import TFH


class HallucinatorFigures(NamedTuple):
    """error: mean squared difference of generated rows and prototypes of base classes. variance: of the prototypes
    over classes, mean over entries, which is the error of the mean prototype. spread: standard deviation of generated
    features within a class, over that between classes.
    """

    error: float
    variance: float
    spread: float


@torch.no_grad()
def hallucinator_figures(
    method: TFH, features: Tensor | Fetch, labels: Int[Tensor, "n"], samples: int = 20
) -> HallucinatorFigures:
    """The figures of a fitted hallucinator on the prototypes of all rows of base classes, in the scale of `features`.

    Raises ValueError before the first fit, or for fewer than two classes.
    """
    present = labels.unique()
    if len(present) < 2:
        raise ValueError(f"figures need at least two base classes, got {len(present)}")
    fetch: Fetch = (lambda rows: features[rows]) if isinstance(features, Tensor) else features
    prototypes = torch.stack([fetch((labels == label).nonzero()[:, 0]).mean(0) for label in present])
    if method.vector:
        prototypes = pooled(prototypes, 1)
    rows, _ = method.hallucinate(prototypes, samples, generator(method.seed, "tfh figures"))
    made = rows.unflatten(0, (len(present), samples))
    within, means = made.var(1).mean(), made.mean(1)
    between = means.var(0).mean()
    return HallucinatorFigures(
        float(reconstruction_loss(made, prototypes)),
        float(prototypes.var(0, correction=0).mean()),
        float((within / between.clamp_min(1e-12)).sqrt()),
    )
