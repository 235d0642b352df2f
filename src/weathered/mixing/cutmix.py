"""CutMix: paste a random box of another image of the batch; the labels are mixed by the share of pixels.

Source: Yun et al., "CutMix: Regularization Strategy to Train Strong Classifiers with Localizable Features",
ICCV 2019, with the correction of the label share in the authors' released code.
lam ~ Beta(alpha, alpha); a box of sides 2 floor(floor(H sqrt(1 - lam)) / 2) and the same of W around a uniform pixel,
cut at the border; the own label weighs the share of pixels that stay, which is never below lam.
Limits: lam = 1 is an empty box and leaves the batch as it is; so does every sample being its own partner.
Apply it after augmentation of single images. Small networks and short training underfit when each batch is mixed:
use probability 0.5 there.
"""

import math
from typing import NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor

from weathered.mixing.base import (
    Pasting,
    check_batch,
    check_images,
    check_share,
    draw_partner,
    pasting_traits,
    take_inside,
)


class Box(NamedTuple):
    """Rows top to bottom and columns left to right, ends excluded: one box, or one for each sample as int64 (B,)."""

    top: int | Int[Tensor, "B"]
    bottom: int | Int[Tensor, "B"]
    left: int | Int[Tensor, "B"]
    right: int | Int[Tensor, "B"]

    def share(self, size: tuple[int, int]) -> float | Float[Tensor, "B"]:
        """The share of an image (H, W) that lies inside, float64 in [0, 1]."""
        area = (self.bottom - self.top) * (self.right - self.left)
        return (area.double() if isinstance(area, Tensor) else area) / math.prod(size)


def draw_box(size: tuple[int, int], lam: float | Float[Tensor, "B"], rng: torch.Generator) -> Box:
    """A box of about the share 1 - lam of an image around a uniform pixel, or one for each of the shares (B,).

    size: (H, W), each at least 1. lam in [0, 1]. Rounding and the border only shrink a box, so that the share
    outside is at least lam. Raises ValueError outside these ranges.
    """
    if min(size) < 1:
        raise ValueError(f"images must have at least one pixel, got {size[0]} x {size[1]}")
    check_share(lam)
    ends: list[int | Tensor] = []
    for length in size:
        if isinstance(lam, Tensor):
            halves = (length * (1 - lam.double()).sqrt()).long() // 2
            centres = torch.randint(length, lam.shape, generator=rng)
            ends += [(centres - halves).clamp_min(0), (centres + halves).clamp_max(length)]
        else:
            half = int(length * math.sqrt(1 - lam)) // 2
            centre = int(torch.randint(length, (), generator=rng))
            ends += [max(centre - half, 0), min(centre + half, length)]
    return Box(*ends)


def cutmix(x: Tensor, box: Box, partner: Int[Tensor, "B"]) -> Tensor:
    """`x` with the pixels inside the box taken from `x[partner]`, as a new tensor.

    x (B, ..., H, W): images or videos of integers or finite floating-point numbers; type and memory layout are kept.
    box: one for the batch, or one for each sample. partner (B,) positions in the batch.
    Raises ValueError for wrong shapes.
    """
    check_batch(x, partner)
    check_images(x)
    partner = partner.to(x.device)
    ends = [end.to(x.device)[:, None] for end in box if isinstance(end, Tensor)]
    if not ends:
        mixed = x.clone()
        rows, columns = slice(box.top, box.bottom), slice(box.left, box.right)
        hole, patch = mixed[..., rows, columns], x[..., rows, columns]
        if x.requires_grad:  # writing to `out` has no gradient
            hole.copy_(patch.index_select(0, partner))
        else:
            torch.index_select(patch, 0, partner, out=hole)
        return mixed
    if len(ends) < 4 or any(len(end) != len(x) for end in ends):
        raise ValueError(f"the four ends of boxes must be whole numbers, or tensors of one number for {len(x)} samples")
    top, bottom, left, right = ends
    row, column = (torch.arange(length, device=x.device) for length in x.shape[-2:])
    rows, columns = (row >= top) & (row < bottom), (column >= left) & (column < right)
    return take_inside(x, partner, rows, columns)


class CutMix(Pasting):
    """Paste a box of a random partner into each image; the partners are a permutation of the batch.

    alpha > 0: shape of the Beta distribution of the nominal shares. probability in [0, 1]: chance that a batch is
    mixed, or each sample under `per_sample`; 0.5 suits small networks and short training.
    per_sample: one share and box for each sample instead of one for the batch. correct_lam: the own label weighs the
    share of pixels that really stay; False takes the nominal share, as in the paper's formula.
    Index and extra columns stay those of the own sample. Draws from a CPU generator.
    """

    traits = pasting_traits("it cuts boxes", "box")

    def __init__(
        self, alpha: float = 1.0, probability: float = 1.0, per_sample: bool = False, correct_lam: bool = True
    ):
        super().__init__(alpha, probability, per_sample)
        self.correct_lam = correct_lam

    def paste(
        self, x: Tensor, lam: float | Float[Tensor, "B"], rng: torch.Generator
    ) -> tuple[Tensor, Int[Tensor, "B"], Tensor]:
        size = (x.shape[-2], x.shape[-1])
        box = draw_box(size, lam, rng)
        partner = draw_partner(len(x), rng)
        share = 1 - box.share(size) if self.correct_lam else lam
        return cutmix(x, box, partner), partner, torch.as_tensor(share)
