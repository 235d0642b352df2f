"""Snow, frost, fog and brightness. Frost is grown from noise; no picture files are needed."""

import math

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional as F

from weathered.data.corruptions.common import (
    at_severity,
    filter_images,
    fractal,
    line_kernels,
    luminance,
    normal_like,
    side,
    uniform_like,
)

SNOW_SHARES = (0.015, 0.03, 0.05, 0.07, 0.10)
SNOW_KEPT = (0.90, 0.85, 0.80, 0.75, 0.70)
FROST_LEVELS = ((1.0, 0.20), (1.0, 0.30), (0.9, 0.40), (0.85, 0.45), (0.75, 0.55))
FOG_LEVELS = ((0.2, 0.35), (0.5, 0.35), (0.75, 0.40), (1.0, 0.50), (1.5, 0.57))
BRIGHTNESS = (0.05, 0.10, 0.15, 0.20, 0.30)


def snow(x: Float[Tensor, "B C H W"], severity: int, rng: torch.Generator) -> Float[Tensor, "B C H W"]:
    """Flakes on 1.5 % to 10 % of the image before they are blurred along their fall, over a whitened image."""
    share, kept = at_severity(SNOW_SHARES, severity), at_severity(SNOW_KEPT, severity)
    batch, _, height, width = x.shape
    # flakes are about 2 % of the side, at least one pixel
    cell = max(side(x) / 50, 1.0)
    grid = normal_like(x, (batch, 1, math.ceil(height / cell), math.ceil(width / cell)), rng)
    layer = F.interpolate(grid, (height, width), mode="bilinear") if grid.shape[-2:] != (height, width) else grid
    threshold = math.sqrt(2) * torch.erfinv(torch.tensor(1 - 2 * share)).item()
    flakes = ((layer - threshold).clamp_min(0) * 2 + (layer > threshold)).clamp_max(1)
    angle = math.pi / 2 + (uniform_like(x, (batch,), rng) - 0.5) * (math.pi / 3)
    flakes = filter_images(flakes, line_kernels(x, angle, 0.08 * side(x))).clamp_(0, 1)
    whitened = kept * x + (1 - kept) * torch.maximum(x, 0.5 + 0.5 * luminance(x))
    return (whitened + flakes).clamp_(0, 1)


def frost(x: Float[Tensor, "B C H W"], severity: int, rng: torch.Generator) -> Float[Tensor, "B C H W"]:
    """Add ice crystals, denser towards the borders, over a darkened image.

    Crystals are the ridges of a rough random field, bluish in colour images. The original pastes photographs.
    """
    kept, strength = at_severity(FROST_LEVELS, severity)
    ridges = (1 - (2 * fractal(x, rng, decay=0.8) - 1).abs()).pow(2)
    height, width = x.shape[-2:]
    down, right = (torch.linspace(-1, 1, size, dtype=x.dtype, device=x.device) for size in (height, width))
    border = torch.maximum(down.abs()[:, None], right.abs()[None])
    ice = ridges * (0.4 + 0.6 * border) + 0.3 * fractal(x, rng, decay=0.5) * border
    tint = x.new_tensor([0.9, 0.97, 1.0])[:, None, None] if x.shape[1] == 3 else 1.0
    return (kept * x + strength * ice * tint).clamp_(0, 1)


def fog(x: Float[Tensor, "B C H W"], severity: int, rng: torch.Generator) -> Float[Tensor, "B C H W"]:
    """Add a cloud-like field and scale back so that the brightest value of an image stays: x' = (x + t f) m / (m + t).

    m is the image's largest value; thickness t is 0.2 to 1.5.
    """
    thickness, decay = at_severity(FOG_LEVELS, severity)
    largest = x.amax((1, 2, 3), keepdim=True)
    return ((x + thickness * fractal(x, rng, decay)) * largest / (largest + thickness)).clamp_(0, 1)


def brightness(x: Float[Tensor, "B C H W"], severity: int, rng: torch.Generator) -> Float[Tensor, "B C H W"]:
    """Raise the value of each pixel, its largest channel, by 0.05 to 0.3, at most to 1; hue and saturation stay.

    Grey images: x + shift, cut at 1. Draws nothing.
    """
    shift = at_severity(BRIGHTNESS, severity)
    value = x.amax(1, keepdim=True)
    raised = (value + shift).clamp_max_(1)
    out = (x * (raised / value.clamp_min(1e-6))).clamp_max_(1)
    # black has no hue and becomes grey
    black = value <= 0
    return torch.where(black, raised, out) if black.any() else out
