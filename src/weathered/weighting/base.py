"""What parts that look at class counts share: checked counts, class weights, and the weight of a sample."""

import math
from collections.abc import Sequence
from typing import Literal

import torch
from jaxtyping import Float, Int
from torch import Tensor

from weathered.core.target import Target

ClassCounts = Int[Tensor, "C"] | Sequence[int]
"""How many training samples each class has."""


def check_class_counts(class_counts: ClassCounts) -> Float[Tensor, "C"]:
    """The counts as float64. Raises ValueError naming the first class without samples."""
    counts = torch.as_tensor(class_counts).double()
    if counts.ndim != 1 or len(counts) < 1:
        raise ValueError(f"class_counts must hold one number for each class, got shape {tuple(counts.shape)}")
    wrong = ~((counts > 0) & counts.isfinite())
    if wrong.any():
        first = int(wrong.nonzero()[0])
        raise ValueError(
            f"every class needs at least one training sample, class {first} has {float(counts[first]):g}; "
            "drop the class or add samples"
        )
    return counts


def check_labels(labels: Int[Tensor, "..."], num_classes: int) -> None:
    """Raise ValueError naming a label outside [0, num_classes)."""
    if not labels.numel():
        return
    low, high = (int(end) for end in labels.aminmax())
    if low < 0 or high >= num_classes:
        raise ValueError(
            f"labels must be in [0, {num_classes - 1}] for {num_classes} classes, got {low if low < 0 else high}"
        )


def check_progress(progress: float) -> None:
    """Raise ValueError unless progress is in [0, 1], a share of training and not an epoch."""
    if not 0 <= progress <= 1:
        raise ValueError(f"progress must be in [0, 1], a share of training and not an epoch, got {progress}")


Rule = Literal["effective", "inverse"]
"""How class weights come from counts: by the effective number of samples, or one over the count."""


def class_weights(class_counts: ClassCounts, beta: float = 0.9999, rule: Rule = "effective") -> Float[Tensor, "C"]:
    """Weights of the classes, (C,) float64, that sum to the number of classes; rarer classes weigh more.

    beta in [0, 1): of the rule `effective`; `inverse` has no parameter. Raises ValueError outside these, or for a
    class without samples.
    """
    if rule not in ("effective", "inverse"):
        raise ValueError(f"rule must be 'effective' or 'inverse', got '{rule}'")
    if not 0 <= beta < 1:
        raise ValueError(f"beta must be in [0, 1), got {beta}; for the limit beta -> 1 use rule=inverse")
    counts = check_class_counts(class_counts)
    return effective_number_weights(counts, beta) if rule == "effective" else inverse_weights(counts)


def effective_number_weights(counts: Float[Tensor, "C"], beta: float) -> Float[Tensor, "C"]:
    """One over the effective number of samples (1 - beta^n) / (1 - beta), scaled to sum to the number of classes.

    counts (C,) positive. beta in [0, 1): 0 gives ones, towards 1 the weights become those of `inverse_weights`.
    Source: Cui et al., "Class-Balanced Loss Based on Effective Number of Samples", CVPR 2019.
    """
    if beta == 0:
        return torch.ones_like(counts)
    return _sum_to_classes(-1 / torch.expm1(counts * math.log(beta)))


def inverse_weights(counts: Float[Tensor, "C"]) -> Float[Tensor, "C"]:
    """One over the counts (C,), scaled to sum to the number of classes."""
    return _sum_to_classes(1 / counts)


def power_weights(labels: Int[Tensor, "N"], power: float) -> Float[Tensor, "N"]:
    """n_y^(power - 1) for each label, (N,) float64 with sum 1: classes are drawn in proportion to n^power.

    power in [0, 1]: 1 as they are, 0 all classes alike. Raises ValueError outside, or for no labels.
    """
    if not 0 <= power <= 1:
        raise ValueError(f"power must be in [0, 1], got {power}")
    if not len(labels):
        raise ValueError("weights for sampling need at least one label")
    weights = torch.bincount(labels).double().clamp_min(1) ** (power - 1)
    chosen = weights[labels]
    return chosen / chosen.sum()


def _sum_to_classes(weights: Tensor) -> Tensor:
    # equal weights become exactly 1; a number divided by a tensor is rounded twice
    weights = weights / weights.max()
    return weights * (len(weights) / float(weights.sum()))


def mixture_weights(
    class_weights: Float[Tensor, "C"], target: Target, losses: Float[Tensor, "B"]
) -> Float[Tensor, "B"]:
    """The weight of each sample, in the type of `losses`: the weights of its classes, averaged by those of its labels.

    Raises ValueError for a label outside the classes, soft labels of another width, or losses that are not one for
    each sample.
    """
    if losses.shape != (len(target),):
        raise ValueError(f"losses must be one for each of {len(target)} targets, got shape {tuple(losses.shape)}")
    target.check_classes(len(class_weights))
    check_labels(target.labels, len(class_weights))
    return (target.weights.to(losses) * class_weights.to(losses)[target.labels]).sum(0)
