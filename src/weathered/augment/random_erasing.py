"""RandomErasing: a random rectangle of an image is overwritten, and its label stays.

Source: Zhong et al., "Random Erasing Data Augmentation", AAAI 2020. With chance p an image loses a rectangle of
area s H W, s uniform on [0.02, area], and height over width uniform on [ratio, 1/ratio]; sides are rounded and at
least 1, and drawn anew, up to ten times, until they fit; the place is uniform over those where it fits, as in the
authors' code. torchvision draws the logarithm of height over width uniformly, which makes fewer tall rectangles.
Limits: probability 0 leaves the batch as it is. An image too thin for all ten rectangles stays.
"""

from typing import Literal

import torch
from jaxtyping import Bool, Int, Shaped
from torch import Tensor

from weathered.core.batch import Batch
from weathered.core.facts import Traits
from weathered.core.roles import BatchTransform

SMALLEST = 0.02
TRIES = 10


def draw_sides(
    size: int, shape: tuple[int, int], area: float, ratio: float, rng: torch.Generator
) -> tuple[Int[Tensor, "B"], Int[Tensor, "B"]]:
    """Heights and widths (B,) int64 of rectangles inside images (H, W); both are 0 where none of the tries fits."""
    height, width = shape
    share, aspect = torch.rand(2, TRIES, size, generator=rng, device=rng.device, dtype=torch.float64)
    pixels = (SMALLEST + (area - SMALLEST) * share) * height * width
    aspect = ratio + (1 / ratio - ratio) * aspect
    tall = (pixels * aspect).sqrt().round().long().clamp_min(1)
    wide = (pixels / aspect).sqrt().round().long().clamp_min(1)
    fits = (tall <= height) & (wide <= width)
    first = fits.int().argmax(0, keepdim=True)
    found = fits.any(0)
    return tall.gather(0, first)[0] * found, wide.gather(0, first)[0] * found


def inside(
    shape: tuple[int, int],
    top: Int[Tensor, "B"],
    left: Int[Tensor, "B"],
    tall: Int[Tensor, "B"],
    wide: Int[Tensor, "B"],
) -> Bool[Tensor, "B H W"]:
    """Which pixels of images (H, W) lie in the rectangle of `tall` rows from `top` and `wide` columns from `left`."""
    row, column = (torch.arange(length, device=top.device) for length in shape)
    rows = (row >= top[:, None]) & (row < (top + tall)[:, None])
    columns = (column >= left[:, None]) & (column < (left + wide)[:, None])
    return rows[:, :, None] & columns[:, None]


def erase(
    x: Shaped[Tensor, "B C H W"], where: Bool[Tensor, "B H W"], fill: Shaped[Tensor, "*N"]
) -> Shaped[Tensor, "B C H W"]:
    """`x` with the marked pixels overwritten, as a new tensor.

    fill: one value for all, or one for each marked pixel and channel, in the order of the images.
    Raises ValueError unless x is (B, C, H, W) and has one mark for each pixel.
    """
    if x.ndim != 4 or where.shape != (len(x), *x.shape[2:]):
        raise ValueError(
            f"erasing needs images (B, C, H, W) and marks (B, H, W), got {tuple(x.shape)} and {tuple(where.shape)}"
        )
    marked = where[:, None].expand(x.shape)
    return torch.where(marked, fill, x) if fill.ndim == 0 else x.masked_scatter(marked, fill)


class RandomErasing(BatchTransform):
    """Overwrite a random rectangle of each image with chance `probability`.

    probability in [0, 1]. area in [0.02, 1]: the largest share of an image that is erased. ratio in (0, 1]: the
    smallest height over width, its inverse being the largest. fill: `random` gives each pixel and channel a value of
    its own, as the source advises; `black` or `white` one to all.
    An erased part counts as changing no label: the image keeps its label whole, whatever was hidden. Images may be
    uint8 or floating point in [0, 1]. Parts that paste images into one another must come after it.
    """

    accepts_uint8 = True
    traits = Traits(
        needs={
            "image": "it erases rectangles",
            "range01": "it fills them with values of that range",
            "uniform_pixels": "erasing part of a pasted image would change the share of each label",
        }
    )

    def __init__(
        self,
        probability: float = 0.5,
        area: float = 0.4,
        ratio: float = 0.3,
        fill: Literal["random", "black", "white"] = "random",
    ):
        if not 0 <= probability <= 1:
            raise ValueError(f"probability must be in [0, 1], got {probability}")
        if not SMALLEST <= area <= 1:
            raise ValueError(f"area must be in [{SMALLEST}, 1], got {area}")
        if not 0 < ratio <= 1:
            raise ValueError(f"ratio must be in (0, 1], got {ratio}; it is the smallest height over width")
        if fill not in ("random", "black", "white"):
            raise ValueError(f"fill must be random, black or white, got {fill!r}")
        self.probability, self.area, self.ratio, self.fill = probability, area, ratio, fill

    def apply(self, batch: Batch, rng: torch.Generator) -> Batch:
        x = batch.x
        if x.ndim != 4:
            raise ValueError(f"images must be (B, C, H, W), got shape {tuple(x.shape)}")
        shape = (x.shape[2], x.shape[3])
        erased = torch.rand(len(x), generator=rng, device=rng.device) < self.probability
        tall, wide = (side * erased for side in draw_sides(len(x), shape, self.area, self.ratio, rng))
        corner = torch.rand(2, len(x), generator=rng, device=rng.device, dtype=torch.float64)
        top = (corner[0] * (shape[0] - tall + 1)).long()
        left = (corner[1] * (shape[1] - wide + 1)).long()
        where = inside(shape, top, left, tall, wide)
        fill = self._values(x, int((tall * wide).sum()) * x.shape[1], rng)
        return batch.replace(x=erase(x, where.to(x.device), fill.to(x.device)))

    def _values(self, x: Tensor, count: int, rng: torch.Generator) -> Tensor:
        """The same draws for bytes and floats."""
        if self.fill == "random":
            values = torch.randint(256, (count,), generator=rng, device=rng.device, dtype=torch.uint8)
            return (values.float() / 255).to(x.dtype) if x.is_floating_point() else values
        top = 1 if x.is_floating_point() else 255
        return torch.tensor(0 if self.fill == "black" else top, dtype=x.dtype, device=x.device)
