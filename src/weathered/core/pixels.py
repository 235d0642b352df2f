"""Segmentation: labels of pixels, and how losses of labels (B,) are asked for each pixel.

A mask (B, H, W) holds the class of each pixel, or `IGNORE` where nobody knows it. Pixels without a class take part in
no loss, weight or measure. Order: image by image, row by row.
"""

import torch
from jaxtyping import Bool, Float, Int, Integer
from torch import Tensor

MASK = "mask"
"""The extra column of a data set or batch that holds the masks."""

IGNORE = 255
"""The label of a pixel that has none; so there may be 255 classes, from 0 to 254."""


def labelled(mask: Integer[Tensor, "B H W"]) -> Bool[Tensor, "B H W"]:
    """Where a pixel has a class."""
    return mask != IGNORE


def pixel_labels(mask: Integer[Tensor, "B H W"]) -> Int[Tensor, "P"]:
    """The classes (P,) int64 of the pixels that have one."""
    return mask[labelled(mask)].long()


def pixel_logits(logits: Float[Tensor, "B C H W"], mask: Integer[Tensor, "B H W"]) -> Float[Tensor, "P C"]:
    """The logits (P, C) of the pixels that have a class, in the order of `pixel_labels`.

    Raises ValueError if the two are not of one size.
    """
    if logits.ndim != 4 or logits.shape[:1] + logits.shape[2:] != mask.shape:
        raise ValueError(
            f"segmentation needs logits (B, C, H, W) for masks (B, H, W), got {tuple(logits.shape)} for "
            f"{tuple(mask.shape)}; use a model that gives logits for each pixel, such as unet"
        )
    return logits.permute(0, 2, 3, 1)[labelled(mask)]


def pixel_counts(masks: Integer[Tensor, "N H W"], num_classes: int) -> Int[Tensor, "C"]:
    """How many pixels carry each class, (C,) int64."""
    # a mask at a time, since bincount widens what it counts to int64
    total = torch.zeros(256, dtype=torch.int64)
    for mask in masks:
        total += torch.bincount(mask.flatten().cpu(), minlength=256)
    return total[:num_classes]


def check_masks(masks: Tensor, height: int, width: int, num_classes: int) -> str | None:
    """What is wrong with masks (N, H, W) uint8 for images of this size, in words; None if nothing is."""
    if masks.dtype != torch.uint8 or masks.ndim != 3:
        return f"masks must be (N, H, W) uint8, got {tuple(masks.shape)} of {masks.dtype}"
    if num_classes > IGNORE:
        return f"masks hold at most {IGNORE} classes, as {IGNORE} marks pixels without one, got {num_classes}"
    if masks.shape[1:] != (height, width):
        return f"masks are {masks.shape[1]}x{masks.shape[2]} pixels, the images {height}x{width}"
    beyond = ((masks >= num_classes) & (masks != IGNORE)).flatten(1)
    if beyond.any():
        row = int(beyond.any(1).nonzero()[0])
        found = int(masks[row].flatten()[beyond[row]][0])
        return (
            f"the mask of row {row} holds the value {found}, but there are {num_classes} classes; {IGNORE} marks "
            "pixels without one"
        )
    return None


def main_labels(masks: Integer[Tensor, "N H W"], num_classes: int) -> Int[Tensor, "N"]:
    """The class (N,) int64 that most labelled pixels of each mask carry, the lowest of equals; 0 where none has one."""
    counts = [torch.bincount(mask.flatten(), minlength=num_classes)[:num_classes].argmax() for mask in masks]
    return torch.stack(counts) if counts else torch.zeros(0, dtype=torch.int64)
