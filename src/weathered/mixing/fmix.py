"""FMix: paste a random shape of another image, cut from low-frequency noise; labels are mixed by the share of pixels.

Source: Harris et al., "FMix: Enhancing Mixed Sample Data Augmentation", arXiv 2002.12047.
Noise in the frequency domain, divided by frequency^decay, is brought back to the plane; the largest lam H W of its
values are the pixels that stay, lam ~ Beta(alpha, alpha). A fraction of a pixel is rounded up or down at random.
Limits: decay = 0 keeps single pixels at random; lam = 1 leaves the batch as it is.
"""

import math

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from weathered.mixing.base import (
    Pasting,
    check_share,
    draw_partner,
    pasting_traits,
    take_where,
)


def draw_shapes(
    size: tuple[int, int], lam: Float[Tensor, "N"], decay: float, rng: torch.Generator
) -> Bool[Tensor, "N H W"]:
    """Shapes (N, H, W) on the CPU, true at the share `lam` of the pixels, up to one pixel.

    size: (H, W), each at least 1. lam (N,) in [0, 1]. decay >= 0: the larger, the smoother the outlines.
    Raises ValueError outside these ranges.
    """
    if min(size) < 1:
        raise ValueError(f"images must have at least one pixel, got {size[0]} x {size[1]}")
    check_share(lam)
    height, width = size
    frequency = torch.hypot(torch.fft.fftfreq(height)[:, None], torch.fft.rfftfreq(width)[None])
    # the constant part has frequency 0; it moves all values alike
    scale = frequency.clamp_min(1 / max(size)) ** -decay
    parts = torch.randn(2, len(lam), *scale.shape, generator=rng)
    noise = torch.fft.irfft2(torch.complex(parts[0], parts[1]) * scale, s=size).flatten(1)
    kept = (lam.double() * (height * width) + torch.rand(len(lam), generator=rng, dtype=torch.float64)).floor()
    rank = noise.argsort(dim=1, descending=True, stable=True).argsort(1)
    return (rank < kept.clamp_max(height * width)[:, None]).view(len(lam), height, width)


class FMix(Pasting):
    """Paste a random shape of a random partner into each image; the partners are a permutation of the batch.

    alpha > 0: shape of the Beta distribution of the shares. decay >= 0: power by which high frequencies fade, 3 in the
    source. probability in [0, 1]: chance that a batch is mixed, or each sample under `per_sample`. per_sample: one
    share and shape for each sample instead of one for the batch.
    Index and extra columns stay those of the own sample. Draws from a CPU generator.
    """

    traits = pasting_traits("it cuts shapes", "shape")

    def __init__(self, alpha: float = 1.0, decay: float = 3.0, probability: float = 1.0, per_sample: bool = False):
        super().__init__(alpha, probability, per_sample)
        if not 0 <= decay < math.inf:
            raise ValueError(f"decay must be >= 0 and finite, got {decay}")
        self.decay = decay

    def paste(
        self, x: Tensor, lam: float | Float[Tensor, "B"], rng: torch.Generator
    ) -> tuple[Tensor, Int[Tensor, "B"], Tensor]:
        lams = torch.as_tensor(lam, dtype=torch.float64).view(-1)
        shapes = draw_shapes((x.shape[-2], x.shape[-1]), lams, self.decay, rng)
        partner = draw_partner(len(x), rng)
        share = shapes.double().mean((1, 2))
        return (
            take_where(x, partner.to(x.device), ~shapes.to(x.device)),
            partner,
            share if self.per_sample else share[0],
        )
