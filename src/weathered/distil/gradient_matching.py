"""Gradient matching (DC): images whose gradients of the weights point the way those of the real images do.

Source: Zhao, Mopuri and Bilen, "Dataset Condensation with Gradient Matching", ICLR 2021. For weights of shape
(rows, rest), gradients g of a class's synthetic and h of its real images:
    D(g, h) = sum over tensors with at least 2 axes, over rows, of 1 - <g_row, h_row> / (|g_row| |h_row| + 1e-6)
An iteration draws a network; each of its `outer` steps moves the images by the gradient of the sum of D over classes,
and between two of them the network learns from the images for `inner` epochs.
Limits: D = 0 for g = c h, c > 0, and 2 for each row of g = -h; a row without gradient on either side counts 1.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn
from torch.func import functional_call, grad, vmap
from torch.nn import functional as F

LOOPS = {1: (1, 1), 10: (10, 50), 20: (20, 25), 30: (30, 20), 40: (40, 15), 50: (50, 10)}
"""Images of a class -> the authors' outer steps of an iteration and epochs between two of them."""

MOST = 256
"""Real images of a class whose gradient is taken."""

SMALL = 1e-6


def loops_for(images_per_class: int, outer: int | None, inner: int | None) -> tuple[int, int]:
    """Outer steps and epochs between them: those given, else the authors' for so many images of a class.

    Raises ValueError if one is left open for a number of images that the authors say nothing of, or is below 1.
    """
    if (outer is None or inner is None) and images_per_class not in LOOPS:
        raise ValueError(
            f"outer and inner must be given for images_per_class={images_per_class}; they are known for "
            f"{', '.join(map(str, LOOPS))} alone"
        )
    known = LOOPS.get(images_per_class, (1, 1))
    found = (known[0] if outer is None else outer, known[1] if inner is None else inner)
    for name, value in zip(("outer", "inner"), found, strict=True):
        if value < 1:
            raise ValueError(f"{name} must be in [1, infinity), got {value}")
    return found


def gradient_distances(first: Mapping[str, Tensor], second: Mapping[str, Tensor]) -> Float[Tensor, "K"]:
    """D of each of K pairs of gradients, (K,), in [0, 2 rows].

    first, second: name -> (K, *shape) for weights of that shape; names and shapes must agree. Tensors with fewer than
    2 axes of their own, such as biases, say nothing. Raises ValueError where names or shapes differ or none is left.
    """
    if {name: value.shape for name, value in first.items()} != {name: value.shape for name, value in second.items()}:
        raise ValueError("gradients must have the same names and shapes")
    names = [name for name, value in first.items() if value.ndim >= 3]
    if not names:
        raise ValueError("there is no gradient of a weight with at least 2 axes to compare")
    total = []
    for name in names:
        g, h = first[name].flatten(2), second[name].flatten(2)
        cosine = (g * h).sum(2) / (_lengths(g) * _lengths(h) + SMALL)
        total.append((1 - cosine).sum(1))
    return torch.stack(total).sum(0)


def _lengths(rows: Float[Tensor, "K R D"]) -> Float[Tensor, "K R"]:
    squares = rows.square().sum(2)
    # the root has no slope at 0, where a dead unit's gradient lies
    return torch.where(squares > 0, squares.clamp_min(torch.finfo(squares.dtype).tiny).sqrt(), 0.0)


def class_gradients(
    network: nn.Module,
    images: Float[Tensor, "K N ..."],
    labels: Int[Tensor, "K"],
    weights: Float[Tensor, "K N"] | None = None,
) -> dict[str, Float[Tensor, "K ..."]]:
    """Gradients (K, *shape) of the mean cross entropy of each class's images, for each parameter by name.

    images (K, N, C, H, W): N of each of K classes, labels (K,). weights (K, N): of the images, sums of 1; alike by
    default. The network is called in the mode it is in, its parameters are not touched; gradient flows to the images.
    """
    parameters = {name: parameter.detach() for name, parameter in network.named_parameters()}
    buffers = dict(network.named_buffers())
    if weights is None:
        weights = images.new_full(images.shape[:2], 1 / images.shape[1])

    def loss(parameters: dict[str, Tensor], x: Tensor, label: Tensor, weight: Tensor) -> Tensor:
        logits = functional_call(network, (parameters, buffers), (x,))
        return (weight * F.cross_entropy(logits, label.expand(len(x)), reduction="none")).sum()

    return vmap(grad(loss), (None, 0, 0, 0))(parameters, images, labels, weights)


def by_class(
    images: Float[Tensor, "B ..."], labels: Int[Tensor, "B"], num_classes: int
) -> tuple[Bool[Tensor, "C"], Float[Tensor, "K N ..."], Float[Tensor, "K N"]]:
    """The images of each class that is among the labels, with weights that sum to 1 in each.

    Returns which classes are there, (C,), their images, at most the first 256 of each, padded to (K, N, ...), and the
    weights (K, N), 0 where there is padding.
    """
    counts = torch.bincount(labels, minlength=num_classes).clamp_max(MOST)
    present = counts > 0
    order = labels.argsort(stable=True)
    starts = torch.bincount(labels, minlength=num_classes).cumsum(0) - torch.bincount(labels, minlength=num_classes)
    counts, starts = counts[present], starts[present]
    place = torch.arange(int(counts.max()), device=labels.device)
    filled = place < counts[:, None]
    rows = order[torch.where(filled, starts[:, None] + place, 0)]
    return present, images[rows], filled / counts[:, None].to(images)


def matching_loss(
    network: nn.Module,
    synthetic: Float[Tensor, "C M ..."],
    images: Float[Tensor, "B ..."],
    labels: Int[Tensor, "B"],
) -> Float[Tensor, ""]:
    """The sum over classes of D between the gradients of the synthetic images and of the real ones.

    synthetic (C, M, ...): M images of each class. images (B, ...), labels (B,) in [0, C): real ones; classes that are
    not among them count nothing. Gradient flows to the synthetic images alone.
    """
    classes = torch.arange(len(synthetic), device=labels.device)
    present, real, weights = by_class(images, labels, len(synthetic))
    target = class_gradients(network, real, classes[present], weights)
    found = class_gradients(network, synthetic[present], classes[present])
    return gradient_distances(found, {name: value.detach() for name, value in target.items()}).sum()
