"""Gaussian, shot and impulse noise, drawn for every pixel and channel on its own."""

import math

import torch
from jaxtyping import Float
from torch import Tensor

from weathered.data.corruptions.common import at_severity, normal_like

GAUSSIAN_DEVIATIONS = (0.04, 0.06, 0.08, 0.09, 0.10)
PHOTONS = (500.0, 250.0, 100.0, 75.0, 50.0)
IMPULSE_SHARES = (0.01, 0.02, 0.03, 0.05, 0.07)


def gaussian_noise(x: Float[Tensor, "B C H W"], severity: int, rng: torch.Generator) -> Float[Tensor, "B C H W"]:
    """Add normal noise, as of a sensor in little light; standard deviation 0.04 to 0.10."""
    deviation = at_severity(GAUSSIAN_DEVIATIONS, severity)
    return normal_like(x, tuple(x.shape), rng).mul_(deviation).add_(x).clamp_(0, 1)


def shot_noise(x: Float[Tensor, "B C H W"], severity: int, rng: torch.Generator) -> Float[Tensor, "B C H W"]:
    """Count photons: Poisson draws of mean x * photons, divided by photons, 500 down to 50."""
    photons = at_severity(PHOTONS, severity)
    counts = torch.poisson((x * photons).to(rng.device), generator=rng)
    return counts.to(x).div_(photons).clamp_(0, 1)


def impulse_noise(x: Float[Tensor, "B C H W"], severity: int, rng: torch.Generator) -> Float[Tensor, "B C H W"]:
    """Set 1 % to 7 % of the values to 0 or 1, either with the same probability."""
    half = at_severity(IMPULSE_SHARES, severity) / 2
    out = x.clone(memory_format=torch.contiguous_format)
    flat = out.view(-1)
    # places are drawn with repetition, few instead of one draw per value; ones overwrite zeros, so zeros get more
    for value, share in ((0.0, half / (1 - half)), (1.0, half)):
        count = max(round(-len(flat) * math.log1p(-share)), 1)
        flat[torch.randint(len(flat), (count,), generator=rng, device=rng.device).to(x.device)] = value
    return out
