"""What mixing transforms share: ranges of arguments, shares, partners, and rows of a batch in their memory layout."""

import math

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from weathered.core.batch import Batch
from weathered.core.facts import Traits
from weathered.core.rng import draw_beta
from weathered.core.roles import BatchTransform


def check_arguments(alpha: float, probability: float) -> None:
    """Raise ValueError unless alpha is positive and finite and probability lies in [0, 1]."""
    if not (alpha > 0 and math.isfinite(alpha)):
        raise ValueError(f"alpha must be > 0 and finite, got {alpha}; to switch mixing off, leave the part out")
    if not 0 <= probability <= 1:
        raise ValueError(f"probability must be in [0, 1], got {probability}")


def check_batch(x: Tensor, partner: Int[Tensor, "B"]) -> None:
    """Raise ValueError unless `x` is a tensor with one partner for each of its samples."""
    if not isinstance(x, Tensor):
        raise ValueError(
            f"x must be one tensor (B, ...), got {type(x).__name__}; bring samples to one size and stack them"
        )
    if partner.shape != x.shape[:1]:
        raise ValueError(f"partner must hold one position for each of {len(x)} samples, got {tuple(partner.shape)}")


def check_share(lam: float | Tensor) -> None:
    """Raise ValueError unless every share is in [0, 1]."""
    if isinstance(lam, Tensor):
        low, high = (float(end) for end in lam.aminmax()) if lam.numel() else (0.0, 1.0)
    else:
        low = high = lam
    if not (low >= 0 and high <= 1):
        raise ValueError(f"lam must be in [0, 1], got {low if not low >= 0 else high}")


def draw_lam(alpha: float, probability: float, size: int | None, rng: torch.Generator) -> float | Float[Tensor, "B"]:
    """Shares of the own sample: Beta(alpha, alpha) with chance `probability`, else 1.

    size: None for one share, or the number of shares; these are float64 on the CPU.
    """
    if size is None:
        mixed = probability == 1 or float(torch.rand((), generator=rng)) < probability
        return float(draw_beta(alpha, rng)) if mixed else 1.0
    lam = draw_beta(alpha, rng, (size,))
    return lam if probability == 1 else torch.where(torch.rand(size, generator=rng) < probability, lam, 1.0)


def draw_partner(size: int, rng: torch.Generator) -> Int[Tensor, "B"]:
    """A random permutation of the batch; a sample may be its own partner. On the CPU."""
    return torch.randperm(size, generator=rng)


def take(x: Tensor, index: Int[Tensor, "B"]) -> Tensor:
    """The samples `x[index]` as a new tensor in the memory layout of `x`."""
    if _is_channels_last(x):
        return x.permute(0, 2, 3, 1).index_select(0, index).permute(0, 3, 1, 2)
    return x.index_select(0, index)


def take_inside(x: Tensor, index: Int[Tensor, "B"], rows: Bool[Tensor, "B H"], columns: Bool[Tensor, "B W"]) -> Tensor:
    """`x[index]` where row and column are marked, else `x`, as a new tensor in the memory layout of `x`.

    x: images (B, ..., H, W), of integers or finite floating-point numbers.
    """
    if _is_channels_last(x):
        flat, outside = x.permute(0, 2, 3, 1), (~rows[:, :, None, None], ~columns[:, None, :, None])
        return _fill(flat.index_select(0, index), flat, _either(x, *outside)).permute(0, 3, 1, 2)
    between = [1] * (x.ndim - 3)
    outside = ~rows.view(len(x), *between, -1, 1), ~columns.view(len(x), *between, 1, -1)
    return _fill(x.index_select(0, index), x, _either(x, *outside))


def take_where(x: Tensor, index: Int[Tensor, "B"], inside: Bool[Tensor, "N H W"]) -> Tensor:
    """`x[index]` where pixels are marked, else `x`, as a new tensor in the memory layout of `x`.

    x: images (B, ..., H, W), of integers or finite floating-point numbers. inside: one mask for each, or N = 1 for all.
    """
    outside = (~inside).to(x.dtype)
    if _is_channels_last(x):
        flat = x.permute(0, 2, 3, 1)
        return _fill(flat.index_select(0, index), flat, outside[..., None]).permute(0, 3, 1, 2)
    return _fill(x.index_select(0, index), x, outside.view(len(outside), *[1] * (x.ndim - 3), *x.shape[-2:]))


def pasting_traits(what: str, area: str) -> Traits:
    """What pasting part of another image needs and breaks. what: it does; area: whose area labels follow."""
    return Traits(
        needs={"image": what, "uniform_pixels": f"labels are mixed by the area of the {area}"},
        breaks={
            "hard_target": "turns labels into mixtures",
            "caption": "mixes images, but not their captions",
            "uniform_pixels": "makes the mixture of labels vary over the image",
        },
    )


class Pasting(BatchTransform):
    """Base of transforms that paste pixels of a random partner; a method overrides `paste`.

    alpha, probability, per_sample: of the nominal shares, see `draw_lam`.
    """

    accepts_uint8 = True

    def __init__(self, alpha: float, probability: float, per_sample: bool):
        check_arguments(alpha, probability)
        self.alpha, self.probability, self.per_sample = alpha, probability, per_sample

    def paste(
        self, x: Tensor, lam: float | Float[Tensor, "B"], rng: torch.Generator
    ) -> tuple[Tensor, Int[Tensor, "B"], Tensor]:
        """The pasted images, the partners, and the share of the own label, one or (B,)."""
        raise NotImplementedError

    def apply(self, batch: Batch, rng: torch.Generator) -> Batch:
        check_images(batch.x)
        lam = draw_lam(self.alpha, self.probability, len(batch) if self.per_sample else None, rng)
        if isinstance(lam, float) and lam == 1:
            return batch
        x, partner, share = self.paste(batch.x, lam, rng)
        return batch.replace(x=x, target=batch.target.mix(partner.to(x.device), share))


def check_images(x: Tensor) -> None:
    """Raise ValueError for anything but images or videos."""
    if x.ndim not in (4, 5):
        raise ValueError(f"x must be images (B, C, H, W) or videos (B, T, C, H, W), got shape {tuple(x.shape)}")


def _either(x: Tensor, rows: Tensor, columns: Tensor) -> Tensor:
    return torch.maximum(rows.to(x.dtype), columns.to(x.dtype))


def _fill(other: Tensor, x: Tensor, outside: Tensor) -> Tensor:
    # arithmetic with 0 and 1, because the kernel of torch.where is several times slower; it is exact, in integers
    # because sums wrap around, in floating point because lerp is exact at both ends
    if x.is_floating_point():
        return other.lerp_(x, outside)
    return other.add_((x - other).mul_(outside))


def _is_channels_last(x: Tensor) -> bool:
    return x.ndim == 4 and not x.is_contiguous() and x.is_contiguous(memory_format=torch.channels_last)


def blend(x: Tensor, lam: float | Float[Tensor, ""] | Float[Tensor, "B"], partner: Int[Tensor, "B"]) -> Tensor:
    """lam * x + (1 - lam) * x[partner], computed in at least float32; see `mixup` for the arguments.

    Raises ValueError for integer inputs, shares outside [0, 1] and wrong shapes.
    """
    check_batch(x, partner)
    if not x.is_floating_point():
        raise ValueError(
            f"mixing blends numbers, got inputs of {x.dtype}: convert images to float first; for token ids mix their "
            "embeddings instead (manifold mixup)"
        )
    check_share(lam)
    wide = x.float() if x.dtype.itemsize < 4 else x
    other = take(wide, partner.to(x.device))
    # lerp is exact at both ends and where partner and sample are equal
    if not isinstance(lam, Tensor) or lam.ndim == 0:
        return other.lerp_(wide, float(lam)).to(x.dtype)
    if lam.shape != x.shape[:1]:
        raise ValueError(f"lam must be one share or one for each of {len(x)} samples, got {tuple(lam.shape)}")
    return other.lerp_(wide, lam.to(wide).view(-1, *[1] * (x.ndim - 1))).to(x.dtype)
