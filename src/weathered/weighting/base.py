"""What parts that look at class counts share: checked counts, class weights, and the weight of a sample."""

import math
from collections.abc import Sequence

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
            f"labels must be in [0, {num_classes - 1}] for {num_classes} class counts, got {low if low < 0 else high}"
        )


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


def _sum_to_classes(weights: Tensor) -> Tensor:
    return weights * (len(weights) / weights.sum())


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
