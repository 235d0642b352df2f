"""Speckle noise, Gaussian blur and saturation: kinds of the same source that are not among its fifteen.

Hendrycks and Dietterich (ICLR 2019) keep them apart for validation; methods that train on corruptions use them.
"""

import math
from functools import lru_cache

import torch
from jaxtyping import Float
from torch import Tensor

from weathered.data.corruptions.common import at_severity, filter_images, normal_like, side, splat

SPECKLE_DEVIATIONS = (0.06, 0.10, 0.12, 0.16, 0.20)
GAUSSIAN_BLURS = (0.0125, 0.01875, 0.021875, 0.025, 0.03125)
SATURATIONS = ((0.3, 0.0), (0.1, 0.0), (1.5, 0.0), (2.0, 0.1), (2.5, 0.2))


def speckle_noise(x: Float[Tensor, "B C H W"], severity: int, rng: torch.Generator) -> Float[Tensor, "B C H W"]:
    """Add normal noise in proportion to the value of each pixel; standard deviation 0.06 to 0.20 times the value."""
    deviation = at_severity(SPECKLE_DEVIATIONS, severity)
    return normal_like(x, tuple(x.shape), rng).mul_(deviation).add_(1).mul_(x).clamp_(0, 1)


def gaussian_blur(x: Float[Tensor, "B C H W"], severity: int, rng: torch.Generator) -> Float[Tensor, "B C H W"]:
    """Average by a normal kernel whose standard deviation is 1.25 % to 3.125 % of the side. Draws nothing.

    Values between pixels are bilinear, so that a kernel narrower than a pixel has an effect.
    """
    sigma = at_severity(GAUSSIAN_BLURS, severity) * side(x)
    return filter_images(x, _normal(sigma, x.dtype, x.device)).clamp_(0, 1)


def saturate(x: Float[Tensor, "B C H W"], severity: int, rng: torch.Generator) -> Float[Tensor, "B C H W"]:
    """Change the saturation s of each pixel to c s + d, in [0, 1]; hue and value stay, and grey stays grey.

    Paler at severities 1 and 2, more colourful from 3 on. Grey images come back as they are. Draws nothing.
    """
    factor, shift = at_severity(SATURATIONS, severity)
    value, least = x.amax(1, keepdim=True), x.amin(1, keepdim=True)
    spread = value - least
    saturation = spread / value.clamp_min(1e-6)
    wanted = (factor * saturation + shift).clamp(0, 1)
    # a pixel's distance from its value grows as its saturation does
    scale = torch.where(spread > 0, wanted * value / spread.clamp_min(1e-6), 1.0)
    return (value - (value - x) * scale).clamp_(0, 1)


@lru_cache(maxsize=32)
def _normal(sigma: float, dtype: torch.dtype, device: torch.device) -> Float[Tensor, "1 K K"]:
    """The normal kernel of `sigma` pixels, cut at 3 sigma; the last few are kept, since batches may be small."""
    steps = torch.linspace(-3, 3, 25, dtype=dtype, device=device)
    square = torch.cartesian_prod(steps, steps)
    weights = (-square.square().sum(1) / 2).exp()
    return splat(sigma * square[None], weights, max(math.ceil(3 * sigma), 1))
