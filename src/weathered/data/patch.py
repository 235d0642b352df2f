"""A patch: a small rectangle of pixels at a fixed place, as shortcuts and triggers of backdoors are."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Bool
from torch import Tensor


@dataclass(frozen=True)
class Patch:
    """A pattern (C, h, w) whose upper left pixel lies at row `top` and column `left` of an image.

    pattern: floats in units of pixels in [0, 1], which it may exceed. top, left >= 0.
    Raises ValueError for a pattern that is not (C, h, w) with at least one pixel, or a negative place.
    """

    pattern: Tensor
    top: int
    left: int

    def __post_init__(self) -> None:
        if self.pattern.ndim != 3 or not self.pattern.numel():
            raise ValueError(f"pattern must be (C, h, w) with at least one pixel, got {tuple(self.pattern.shape)}")
        if min(self.top, self.left) < 0:
            raise ValueError(f"top and left must be >= 0, got {self.top} and {self.left}")

    def check_fits(self, shape: tuple[int, ...]) -> None:
        """Raise ValueError unless the patch lies inside images of shape (C, H, W)."""
        channels, height, width = self.pattern.shape
        if len(shape) != 3 or shape[0] != channels or self.top + height > shape[1] or self.left + width > shape[2]:
            raise ValueError(
                f"a patch of {channels} channels and {height} x {width} pixels at row {self.top}, column {self.left} "
                f"does not fit images of shape {tuple(shape)}"
            )

    def stamp(self, images: Tensor) -> Tensor:
        """A copy of images (B, C, H, W), floats or uint8, with the patch over what was there.

        On uint8 the pattern is cut to [0, 1] and rounded to whole bytes. Raises ValueError if it does not fit.
        """
        self.check_fits(tuple(images.shape[1:]))
        pattern = self.pattern
        if images.dtype == torch.uint8:
            pattern = (pattern.clamp(0, 1) * 255).round()
        height, width = pattern.shape[1:]
        out = images.clone()
        out[..., self.top : self.top + height, self.left : self.left + width] = pattern.to(images)
        return out

    def covers(self, height: int, width: int) -> Bool[Tensor, "H W"]:
        """True at the pixels of an image that the patch covers."""
        mask = torch.zeros(height, width, dtype=torch.bool)
        mask[self.top : self.top + self.pattern.shape[1], self.left : self.left + self.pattern.shape[2]] = True
        return mask


def near_corner(pattern: Tensor, shape: tuple[int, ...]) -> Patch:
    """A patch one pixel off the lower right corner of images of shape (C, H, W). Raises ValueError if it cannot fit."""
    height, width = pattern.shape[1:]
    top, left = shape[1] - 1 - height, shape[2] - 1 - width
    if min(top, left) < 0:
        raise ValueError(
            f"a patch of {height} x {width} pixels one pixel off the corner does not fit images of {shape[1]} x "
            f"{shape[2]}"
        )
    patch = Patch(pattern, top, left)
    patch.check_fits(shape)
    return patch
