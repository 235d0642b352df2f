"""Defocus, glass, motion and zoom blur. Lengths in pixels are shares of the shorter side."""

import math
from functools import lru_cache

import torch
from jaxtyping import Float
from torch import Tensor

from weathered.data.corruptions.common import (
    at_severity,
    filter_images,
    gaussian_blur,
    line_kernels,
    separable,
    side,
    splat,
    uniform_like,
    warp,
)

DEFOCUS_RADII = (0.014, 0.018, 0.027, 0.036, 0.045)
GLASS_MOVES = (0.015, 0.020, 0.026, 0.033, 0.042)
GLASS_BLURS = (0.006, 0.008, 0.010, 0.012, 0.015)
MOTION_LENGTHS = (0.06, 0.09, 0.12, 0.16, 0.20)
ZOOMS = (1.06, 1.11, 1.16, 1.21, 1.26)
ZOOM_STEPS = 11


def defocus_blur(x: Float[Tensor, "B C H W"], severity: int, rng: torch.Generator) -> Float[Tensor, "B C H W"]:
    """Average over a disc, as a lens out of focus; its radius is 1.4 % to 4.5 % of the side. Draws nothing."""
    radius = at_severity(DEFOCUS_RADII, severity) * side(x)
    return filter_images(x, _disc(radius, x.dtype, x.device)).clamp_(0, 1)


def glass_blur(x: Float[Tensor, "B C H W"], severity: int, rng: torch.Generator) -> Float[Tensor, "B C H W"]:
    """Blur a little, then let each pixel look at a random place near by, twice, and blur again.

    The moves are uniform in a square of half-width 1.5 % to 4.2 % of the side. The original swaps neighbouring pixels
    one after another; here all move at once.
    """
    reach = at_severity(GLASS_MOVES, severity) * side(x)
    sigma = at_severity(GLASS_BLURS, severity) * side(x)
    out = gaussian_blur(x, sigma)
    batch, _, height, width = x.shape
    for _ in range(2):
        out = warp(out, (2 * uniform_like(x, (batch, height, width, 2), rng) - 1) * reach)
    return gaussian_blur(out, sigma).clamp_(0, 1)


def motion_blur(x: Float[Tensor, "B C H W"], severity: int, rng: torch.Generator) -> Float[Tensor, "B C H W"]:
    """Average along a line, as a camera that moves: 6 % to 20 % of the side, within 45 degrees of the horizontal."""
    length = at_severity(MOTION_LENGTHS, severity) * side(x)
    angle = (uniform_like(x, (len(x),), rng) - 0.5) * (math.pi / 2)
    return filter_images(x, line_kernels(x, angle, length)).clamp_(0, 1)


def zoom_blur(x: Float[Tensor, "B C H W"], severity: int, rng: torch.Generator) -> Float[Tensor, "B C H W"]:
    """Average over 11 zooms towards the centre, from 1 to between 1.06 and 1.26. Draws nothing."""
    largest = at_severity(ZOOMS, severity)
    out = torch.zeros_like(x)
    for zoom in torch.linspace(1, largest, ZOOM_STEPS).tolist():
        rows, columns = (_zoom_matrix(size, zoom, x.dtype, x.device) for size in x.shape[-2:])
        out += separable(x, rows, columns)
    return out.div_(ZOOM_STEPS).clamp_(0, 1)


@lru_cache(maxsize=32)
def _disc(radius: float, dtype: torch.dtype, device: torch.device) -> Float[Tensor, "1 K K"]:
    """The kernel of a disc of `radius` pixels; the last few are kept, since batches may be small."""
    steps = torch.linspace(-radius, radius, 33, dtype=dtype, device=device)
    square = torch.cartesian_prod(steps, steps)
    disc = square[square.norm(dim=1) <= radius * (1 + 1e-6)]
    return splat(disc[None], torch.ones_like(disc[:, 0]), max(math.ceil(radius), 1))


@lru_cache(maxsize=256)
def _zoom_matrix(size: int, zoom: float, dtype: torch.dtype, device: torch.device) -> Float[Tensor, "N N"]:
    """Linear interpolation at places `zoom` times nearer to the centre; each row sums to 1. Kept like `_disc`."""
    place = torch.arange(size, dtype=dtype, device=device)
    centre = (size - 1) / 2
    source = (place - centre) / zoom + centre
    return (1 - (source[:, None] - place).abs()).clamp_min(0)
