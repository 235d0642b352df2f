"""JPEG compression in tensors: what coding and decoding does to pixels, without the bytes in between.

YCbCr, chroma averaged over 2x2 pixels, 8x8 cosine transform, division by the quantisation table and rounding, and
all of it back. Tables and colour weights: ITU-T T.81 (1992), annex K, and JFIF; scaling by quality: the Independent
JPEG Group. Limits: with all table entries 1 (quality 100) grey images come back within two grey levels.
"""

import math

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional as F

from weathered.data.corruptions.common import at_severity

QUALITIES = (80, 65, 50, 35, 20)

LUMINANCE = (
    (16, 11, 10, 16, 24, 40, 51, 61),
    (12, 12, 14, 19, 26, 58, 60, 55),
    (14, 13, 16, 24, 40, 57, 69, 56),
    (14, 17, 22, 29, 51, 87, 80, 62),
    (18, 22, 37, 56, 68, 109, 103, 77),
    (24, 35, 55, 64, 81, 104, 113, 92),
    (49, 64, 78, 87, 103, 121, 120, 101),
    (72, 92, 95, 98, 112, 100, 103, 99),
)
CHROMINANCE = (
    (17, 18, 24, 47, 99, 99, 99, 99),
    (18, 21, 26, 66, 99, 99, 99, 99),
    (24, 26, 56, 99, 99, 99, 99, 99),
    (47, 66, 99, 99, 99, 99, 99, 99),
    (99, 99, 99, 99, 99, 99, 99, 99),
    (99, 99, 99, 99, 99, 99, 99, 99),
    (99, 99, 99, 99, 99, 99, 99, 99),
    (99, 99, 99, 99, 99, 99, 99, 99),
)
TO_YCBCR = (
    (0.299, 0.587, 0.114),
    (-0.168735892, -0.331264108, 0.5),
    (0.5, -0.418687589, -0.081312411),
)


def jpeg_compression(x: Float[Tensor, "B C H W"], severity: int, rng: torch.Generator) -> Float[Tensor, "B C H W"]:
    """Compress with quality 80 down to 20 and decode again. Draws nothing."""
    return jpeg(x, at_severity(QUALITIES, severity))


def jpeg(x: Float[Tensor, "B C H W"], quality: int) -> Float[Tensor, "B C H W"]:
    """Images as they come back from a JPEG file of this quality, 1 to 100; values are multiples of 1/255.

    x (B, C, H, W) in [0, 1], C 1 or 3; sides that are no multiple of the block are padded by repeating the edge.
    Raises ValueError if quality is out of range.
    """
    if not 1 <= quality <= 100:
        raise ValueError(f"quality must be in [1, 100], got {quality}")
    levels = (x * 255).round()
    if x.shape[1] == 1:
        decoded = _round_trip(levels - 128, quality_table(LUMINANCE, quality, x)) + 128
    else:
        to = x.new_tensor(TO_YCBCR)
        planes = (to @ levels.flatten(2)).view(x.shape)
        height, width = x.shape[-2:]
        padded = F.pad(planes[:, 1:], (0, width % 2, 0, height % 2), mode="replicate")
        small = _round_trip(F.avg_pool2d(padded, 2), quality_table(CHROMINANCE, quality, x))
        chroma = small.repeat_interleave(2, 2).repeat_interleave(2, 3)[..., :height, :width]
        luma = _round_trip(planes[:, :1] - 128, quality_table(LUMINANCE, quality, x)) + 128
        decoded = (torch.linalg.inv(to) @ torch.cat([luma, chroma], 1).flatten(2)).view(x.shape)
    return decoded.round().clamp_(0, 255).div_(255)


def quality_table(base: tuple[tuple[int, ...], ...], quality: int, like: Tensor) -> Float[Tensor, "8 8"]:
    """A quantisation table at this quality: entries (base s + 50) // 100 in 1..255, s 5000/q below 50, else 200-2q."""
    scale = 5000 // quality if quality < 50 else 200 - 2 * quality
    table = (torch.tensor(base) * scale + 50) // 100
    return table.clamp(1, 255).to(like)


def cosine_matrix(like: Tensor) -> Float[Tensor, "8 8"]:
    """The orthonormal discrete cosine transform of 8 values: row k holds the k-th frequency."""
    step = torch.arange(8, dtype=torch.float64)
    matrix = torch.cos(math.pi / 8 * (step + 0.5) * step[:, None]) / 2
    matrix[0] /= math.sqrt(2)
    return matrix.to(like)


def _round_trip(planes: Float[Tensor, "B P H W"], table: Float[Tensor, "8 8"]) -> Float[Tensor, "B P H W"]:
    """Transform, quantise and transform back each 8x8 block."""
    batch, count, height, width = planes.shape
    padded = F.pad(planes, (0, -width % 8, 0, -height % 8), mode="replicate")
    rows, columns = padded.shape[-2] // 8, padded.shape[-1] // 8
    blocks = padded.view(batch, count, rows, 8, columns, 8).transpose(3, 4).reshape(-1, 64)
    # both directions of all blocks in one matrix product
    basis = torch.kron(cosine_matrix(planes), cosine_matrix(planes))
    steps = table.flatten()
    decoded = ((blocks @ basis.T).div_(steps).round_() * steps) @ basis
    decoded = decoded.view(batch, count, rows, columns, 8, 8).transpose(3, 4).reshape(padded.shape)
    return decoded[..., :height, :width]
