"""ResizeMix: paste a whole small copy of another image; labels are mixed by the share of pixels.

Source: Qin et al., "ResizeMix: Mixing Data with Preserved Object Information and True Labels", arXiv 2012.11101.
The partner is resized to the share tau of each side, tau ~ U(low, high), and pasted at a uniform place inside the
image; its label weighs the area of the copy.
Limits: low = high = 1 exchanges images and labels; low and high near 0 leave the batch as it is but for one pixel.
"""

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional as F

from weathered.core.batch import Batch
from weathered.core.roles import BatchTransform
from weathered.mixing.base import check_arguments, check_images, draw_partner, pasting_traits, take


def paste_small(
    x: Float[Tensor, "B C H W"], partner: Tensor, size: tuple[int, int], corner: tuple[int, int]
) -> Float[Tensor, "B C H W"]:
    """`x` with `x[partner]`, resized to `size`, pasted with its upper left pixel at `corner`; a new tensor.

    x: floating-point images, resized in at least float32; type and memory layout are kept. partner (B,). size: (h, w)
    of at least one pixel. Bilinear and smoothed. Raises ValueError for integers or a copy that does not lie inside.
    """
    check_images(x)
    if not x.is_floating_point():
        raise ValueError(f"x is resized, so it must be of floating-point numbers, got {x.dtype}")
    ends = [start + length for start, length in zip(corner, size, strict=True)]
    if min(size) < 1 or min(corner) < 0 or any(e > s for e, s in zip(ends, x.shape[-2:], strict=True)):
        raise ValueError(f"a copy of {size} at {corner} does not lie inside images of {tuple(x.shape[-2:])}")
    other = take(x, partner.to(x.device))
    flat = other.flatten(0, -4) if other.ndim == 5 else other
    wide = flat.float() if flat.dtype.itemsize < 4 else flat
    small = F.interpolate(wide, size, mode="bilinear", antialias=True).view(*other.shape[:-2], *size)
    mixed = x.clone()
    mixed[..., corner[0] : ends[0], corner[1] : ends[1]] = small.to(x.dtype)
    return mixed


class ResizeMix(BatchTransform):
    """Paste a small copy of a random partner into each image; the partners are a permutation of the batch.

    low, high in (0, 1]: range of the copy's sides as shares of the image's. probability in [0, 1]: chance that a batch
    is mixed. One size and place for the batch. Index and extra columns stay those of the own sample. Draws from a CPU
    generator.
    """

    traits = pasting_traits("it resizes images", "copy")

    def __init__(self, low: float = 0.1, high: float = 0.8, probability: float = 1.0):
        check_arguments(1.0, probability)
        if not 0 < low <= high <= 1:
            raise ValueError(f"expected 0 < low <= high <= 1, got {low} and {high}")
        self.low, self.high, self.probability = low, high, probability

    def apply(self, batch: Batch, rng: torch.Generator) -> Batch:
        check_images(batch.x)
        if self.probability < 1 and float(torch.rand((), generator=rng)) >= self.probability:
            return batch
        whole = (batch.x.shape[-2], batch.x.shape[-1])
        tau = self.low + (self.high - self.low) * float(torch.rand((), generator=rng))
        height, width = (max(1, min(round(tau * length), length)) for length in whole)
        top = int(torch.randint(whole[0] - height + 1, (), generator=rng))
        left = int(torch.randint(whole[1] - width + 1, (), generator=rng))
        partner = draw_partner(len(batch), rng).to(batch.x.device)
        x = paste_small(batch.x, partner, (height, width), (top, left))
        share = 1 - height * width / (whole[0] * whole[1])
        return batch.replace(x=x, target=batch.target.mix(partner, torch.tensor(share, dtype=torch.float64)))
