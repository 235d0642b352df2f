"""Contrast, elastic transform and pixelation."""

import torch
from jaxtyping import Float
from torch import Tensor

from weathered.data.corruptions.common import (
    at_severity,
    gaussian_blur,
    normal_like,
    separable,
    side,
    warp,
)

CONTRASTS = (0.75, 0.50, 0.40, 0.30, 0.15)
ELASTIC_MOVES = (0.012, 0.018, 0.025, 0.033, 0.042)
ELASTIC_SMOOTHNESS = 0.08
PIXELATE_SHARES = (0.80, 0.65, 0.50, 0.40, 0.30)


def contrast(x: Float[Tensor, "B C H W"], severity: int, rng: torch.Generator) -> Float[Tensor, "B C H W"]:
    """Shrink each channel of each image towards its mean: mean + c (x - mean), c from 0.75 down to 0.15."""
    share = at_severity(CONTRASTS, severity)
    mean = x.mean((2, 3), keepdim=True)
    return torch.lerp(mean, x, share).clamp_(0, 1)


def elastic_transform(x: Float[Tensor, "B C H W"], severity: int, rng: torch.Generator) -> Float[Tensor, "B C H W"]:
    """Stretch and squeeze: move pixels by a smooth random field of 1.2 % to 4.2 % of the side, root mean square."""
    reach = at_severity(ELASTIC_MOVES, severity) * side(x)
    batch, _, height, width = x.shape
    field = gaussian_blur(normal_like(x, (batch, 2, height, width), rng), ELASTIC_SMOOTHNESS * side(x))
    field = field / field.square().mean((1, 2, 3), keepdim=True).sqrt().clamp_min(1e-6)
    return warp(x, (reach * field).permute(0, 2, 3, 1)).clamp_(0, 1)


def pixelate(x: Float[Tensor, "B C H W"], severity: int, rng: torch.Generator) -> Float[Tensor, "B C H W"]:
    """Average over blocks: 80 % to 30 % as many blocks along each axis as there were pixels. Draws nothing."""
    share = at_severity(PIXELATE_SHARES, severity)
    rows, columns = (_block_average(size, max(round(share * size), 1), x) for size in x.shape[-2:])
    return separable(x, rows, columns).clamp_(0, 1)


def block_of(size: int, blocks: int) -> Tensor:
    """The block to which each of `size` pixels along an axis belongs, (size,) int64."""
    return torch.arange(size) * blocks // size


def _block_average(size: int, blocks: int, like: Tensor) -> Float[Tensor, "N N"]:
    block = block_of(size, blocks)
    same = (block[:, None] == block).to(like)
    return same / same.sum(1, keepdim=True)
