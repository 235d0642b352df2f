"""Exchanges between images: of a region, of colour; and what breaks an image: cells in another order, grey."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

from weathered.core.errors import SpecError


@dataclass(frozen=True)
class Region:
    """A rectangle of pixels. top, left >= 0, height, width >= 1; raises SpecError otherwise."""

    top: int
    left: int
    height: int
    width: int

    def __post_init__(self) -> None:
        if min(self.top, self.left) < 0 or min(self.height, self.width) < 1:
            raise SpecError(f"a region needs top and left from 0 on, height and width from 1 on, got {self}.")

    def __str__(self) -> str:
        return f"{self.top},{self.left},{self.height},{self.width}"

    @classmethod
    def parse(cls, text: str) -> Region:
        """`top,left,height,width` to a region. Raises SpecError."""
        words = [word.strip() for word in text.split(",")]
        if len(words) != 4 or not all(word.isascii() and word.isdigit() for word in words):
            raise SpecError(f"a cue is top,left,height,width in whole pixels, as in 0,0,3,3, got '{text}'.")
        return cls(*(int(word) for word in words))


def grid_regions(height: int, width: int, grid: int) -> tuple[Region, ...]:
    """The cells of a grid, then the squares of 2 x 2 cells if a side has at least four; rounded to whole pixels."""
    rows, columns = (sorted({round(k * side / grid) for k in range(grid + 1)}) for side in (height, width))
    found = []
    for span in (1, 2):
        if span > 1 and min(len(rows), len(columns)) <= 2 * span:
            continue
        found += [
            Region(top, left, bottom - top, right - left)
            for top, bottom in zip(rows, rows[span:], strict=False)
            for left, right in zip(columns, columns[span:], strict=False)
        ]
    return tuple(found)


def draw_donors(groups: Int[Tensor, "N"], rng: torch.Generator) -> Int[Tensor, "N"]:
    """For each row a random one of another group. Raises ValueError where all are of one group."""
    order, counts = groups.argsort(stable=True), groups.bincount()
    sizes = counts[groups]
    if int(counts.max()) == len(groups):
        raise ValueError("the model takes all test images for one class, so none can be exchanged for another's")
    starts = (counts.cumsum(0) - counts)[groups]
    drawn = (torch.rand(len(groups), generator=rng, dtype=torch.float64) * (len(groups) - sizes)).long()
    # rows of the own group are passed over
    return order[torch.where(drawn < starts, drawn, drawn + sizes)]


def exchanged(images: Tensor, donors: Tensor, region: Region) -> Tensor:
    """Images with the pixels of a region taken from their donors, both (B, C, H, W)."""
    rows = slice(region.top, region.top + region.height)
    columns = slice(region.left, region.left + region.width)
    out = images.clone()
    out[..., rows, columns] = donors[..., rows, columns]
    return out


def with_colour_of(images: Float[Tensor, "B C H W"], donors: Float[Tensor, "B C H W"]) -> Float[Tensor, "B C H W"]:
    """Images whose mean colour, relative to brightness, is that of their donors; in [0, 1], brightness kept elsewhere.

    Brightness is the mean of the channels. What differs from an image's mean colour within it stays.
    """
    brightness = images.mean(1, keepdim=True)
    return (images + brightness * (_cast_of(donors) - _cast_of(images))).clamp(0, 1)


def _cast_of(images: Tensor) -> Float[Tensor, "B C 1 1"]:
    """Each channel's mean over the mean of all, 1 for black images."""
    means = images.mean((2, 3), keepdim=True)
    whole = means.mean(1, keepdim=True)
    return torch.where(whole > 0, means / whole.clamp_min(1e-12), torch.ones_like(means))


def in_grey(images: Float[Tensor, "B C H W"]) -> Float[Tensor, "B C H W"]:
    """Images with the mean of the channels in all of them."""
    return images.mean(1, keepdim=True).expand_as(images)


def shuffled(images: Tensor, grid: int, rng: torch.Generator) -> Tensor:
    """Images whose grid x grid cells are in random order, another for each; pixels left over at the far edges stay."""
    size, channels, height, width = images.shape
    tall, wide = height // grid, width // grid
    if not min(tall, wide):
        raise SpecError(f"a grid of {grid} does not fit images of {height} x {width} pixels; take a smaller one.")
    inner = images[..., : grid * tall, : grid * wide]
    cells = inner.reshape(size, channels, grid, tall, grid, wide).permute(0, 2, 4, 1, 3, 5).flatten(1, 2)
    order = torch.rand(size, grid * grid, generator=rng).argsort(1).to(images.device)
    cells = cells[torch.arange(size, device=images.device)[:, None], order]
    out = images.clone()
    out[..., : grid * tall, : grid * wide] = (
        cells.unflatten(1, (grid, grid)).permute(0, 3, 1, 4, 2, 5).reshape(inner.shape)
    )
    return out
