"""Draws, filters and fields that several corruptions share. Images are (B, C, H, W) in [0, 1]."""

import itertools
import math
from collections.abc import Sequence
from typing import TypeVar

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional as F

Level = TypeVar("Level")


def at_severity(levels: Sequence[Level], severity: int) -> Level:
    """The strength for a severity of 1 to 5. Raises ValueError for any other."""
    if severity not in (1, 2, 3, 4, 5):
        raise ValueError(f"severity must be 1, 2, 3, 4 or 5, got {severity}")
    return levels[severity - 1]


def side(x: Tensor) -> int:
    """The shorter side of the images in pixels, to which lengths are scaled."""
    return min(x.shape[-2:])


def uniform_like(x: Tensor, shape: tuple[int, ...], rng: torch.Generator) -> Tensor:
    """Uniform draws in [0, 1) of this shape, with device and dtype of x."""
    return torch.rand(shape, generator=rng, device=rng.device).to(x)


def normal_like(x: Tensor, shape: tuple[int, ...], rng: torch.Generator) -> Tensor:
    """Standard normal draws of this shape, with device and dtype of x."""
    return torch.randn(shape, generator=rng, device=rng.device).to(x)


def luminance(x: Float[Tensor, "B C H W"]) -> Float[Tensor, "B 1 H W"]:
    """Brightness of each pixel by the weights of ITU-R BT.601; grey images unchanged."""
    if x.shape[1] == 1:
        return x
    return (x * x.new_tensor([0.299, 0.587, 0.114])[:, None, None]).sum(1, keepdim=True)


def separable(x: Float[Tensor, "B C H W"], rows: Float[Tensor, "R H"], columns: Float[Tensor, "S W"]) -> Tensor:
    """rows @ image @ columns^T for every channel of every image, (B, C, R, S)."""
    return rows @ (x @ columns.T)


def gaussian_matrix(size: int, sigma: float, like: Tensor) -> Float[Tensor, "N N"]:
    """A blur of standard deviation `sigma` pixels along one axis; each row sums to 1, also at the edges."""
    place = torch.arange(size, dtype=like.dtype, device=like.device)
    weight = (-(place[:, None] - place).square() / (2 * max(sigma, 1e-3) ** 2)).exp()
    return weight / weight.sum(1, keepdim=True)


def gaussian_blur(x: Float[Tensor, "B C H W"], sigma: float) -> Float[Tensor, "B C H W"]:
    """Blur by a normal kernel of `sigma` pixels."""
    return separable(x, gaussian_matrix(x.shape[-2], sigma, x), gaussian_matrix(x.shape[-1], sigma, x))


def splat(points: Float[Tensor, "B P 2"], weights: Float[Tensor, "P"], radius: int) -> Float[Tensor, "B K K"]:
    """Kernels of width 2 radius + 1 that carry each point's weight, split over the four pixels around it.

    points: (down, right) from the centre, inside the radius. Sums are 1: averaging bilinear samples at the points
    equals filtering by the kernel, so that displacements below one pixel have an effect.
    """
    grid = torch.arange(-radius, radius + 1, dtype=points.dtype, device=points.device)
    tent = (1 - (points[..., None] - grid).abs()).clamp_min(0)
    kernel = torch.einsum("p,bpi,bpj->bij", weights, tent[:, :, 0], tent[:, :, 1])
    return kernel / kernel.sum((1, 2), keepdim=True)


def filter_images(x: Float[Tensor, "B C H W"], kernel: Float[Tensor, "B K K"]) -> Float[Tensor, "B C H W"]:
    """Filter each image by its own kernel, or all by one if there is only one; edges are repeated."""
    height, width = x.shape[-2:]
    radius = kernel.shape[-1] // 2
    size = (height + 2 * radius, width + 2 * radius)
    padded = F.pad(x, (radius,) * 4, mode="replicate")
    if len(kernel) == 1 and radius <= 2:
        out = torch.zeros_like(x)
        for (down, right), weight in zip(
            itertools.product(range(2 * radius + 1), repeat=2), kernel.flatten().tolist(), strict=True
        ):
            out.add_(padded[..., down : down + height, right : right + width], alpha=weight)
        return out
    # in the frequency domain, where the cost does not depend on the kernel's width
    spectrum = torch.fft.rfft2(padded) * torch.fft.rfft2(kernel.flip(-1, -2), s=size)[:, None]
    return torch.fft.irfft2(spectrum, s=size)[..., 2 * radius :, 2 * radius :]


def fractal(x: Tensor, rng: torch.Generator, decay: float) -> Float[Tensor, "B 1 H W"]:
    """Cloud-like fields in [0, 1], one per image: random grids of 2, 4, 8, ... cells, each `decay` times weaker.

    decay in (0, 1): towards 0 smooth, towards 1 rough. Every field reaches 0 and 1.
    """
    batch, _, height, width = x.shape
    field = x.new_zeros(batch, 1, height, width)
    cells, weight = 2, 1.0
    while cells < 2 * max(height, width):
        grid = uniform_like(x, (batch, 1, min(cells, height) + 1, min(cells, width) + 1), rng)
        field += weight * F.interpolate(grid, (height, width), mode="bilinear", align_corners=True)
        cells, weight = 2 * cells, weight * decay
    low, high = field.amin((2, 3), keepdim=True), field.amax((2, 3), keepdim=True)
    return (field - low) / (high - low).clamp_min(1e-6)


def warp(x: Float[Tensor, "B C H W"], move: Float[Tensor, "B H W 2"]) -> Float[Tensor, "B C H W"]:
    """Each pixel takes the bilinear value at its place plus `move` (right, down) in pixels; edges are repeated."""
    height, width = x.shape[-2:]
    right = torch.arange(width, dtype=x.dtype, device=x.device) + move[..., 0]
    down = torch.arange(height, dtype=x.dtype, device=x.device)[:, None] + move[..., 1]
    grid = torch.stack([(2 * right + 1) / width - 1, (2 * down + 1) / height - 1], dim=-1)
    return F.grid_sample(x, grid, mode="bilinear", padding_mode="border", align_corners=False)


def line_kernels(x: Tensor, angle: Float[Tensor, "B"], length: float) -> Float[Tensor, "B K K"]:
    """Motion along a line through the centre, `length` pixels long, at `angle` (B,) radians from the horizontal."""
    half = length / 2
    radius = max(math.ceil(half), 1)
    steps = torch.linspace(-half, half, 2 * max(math.ceil(length), 4) + 1, dtype=x.dtype, device=x.device)
    weights = (-2 * (steps / half).square()).exp()
    direction = torch.stack([angle.sin(), angle.cos()], dim=-1)
    return splat(steps[None, :, None] * direction[:, None], weights, radius)
