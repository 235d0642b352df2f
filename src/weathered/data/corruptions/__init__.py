"""Fifteen image corruptions, and three more, at five severities, in batched tensors, for images from 8x8 up.

The kinds are those of Hendrycks and Dietterich, "Benchmarking Neural Network Robustness to Common Corruptions and
Perturbations", ICLR 2019. These are our own versions: they work on whole batches, on one or three channels, and
lengths in pixels scale with the side of the image. Figures measured with them are not the public CIFAR-10-C or
ImageNet-C figures and must not stand in one table with those. Audits measure the fifteen of CORRUPTIONS.
"""

from collections.abc import Callable, Mapping, Sequence
from types import MappingProxyType

import torch
from jaxtyping import Float, Int
from torch import Tensor

from weathered.core.errors import SpecError
from weathered.core.spec import near
from weathered.data.corruptions.blur import defocus_blur, glass_blur, motion_blur, zoom_blur
from weathered.data.corruptions.digital import contrast, elastic_transform, pixelate
from weathered.data.corruptions.extra import gaussian_blur, saturate, speckle_noise
from weathered.data.corruptions.jpeg import jpeg_compression
from weathered.data.corruptions.noise import gaussian_noise, impulse_noise, shot_noise
from weathered.data.corruptions.weather import brightness, fog, frost, snow

CorruptionFunction = Callable[[Tensor, int, torch.Generator], Tensor]
"""(x (B, C, H, W) in [0, 1], severity 1 to 5, rng) -> the same shape, in [0, 1]."""

CORRUPTIONS: Mapping[str, CorruptionFunction] = MappingProxyType(
    {
        "gaussian_noise": gaussian_noise,
        "shot_noise": shot_noise,
        "impulse_noise": impulse_noise,
        "defocus_blur": defocus_blur,
        "glass_blur": glass_blur,
        "motion_blur": motion_blur,
        "zoom_blur": zoom_blur,
        "snow": snow,
        "frost": frost,
        "fog": fog,
        "brightness": brightness,
        "contrast": contrast,
        "elastic_transform": elastic_transform,
        "pixelate": pixelate,
        "jpeg_compression": jpeg_compression,
    }
)

EXTRA_CORRUPTIONS: Mapping[str, CorruptionFunction] = MappingProxyType(
    {"speckle_noise": speckle_noise, "gaussian_blur": gaussian_blur, "saturate": saturate}
)
KNOWN = {**CORRUPTIONS, **EXTRA_CORRUPTIONS}


def corrupt(x: Float[Tensor, "B C H W"], kind: str, severity: int, rng: torch.Generator) -> Float[Tensor, "B C H W"]:
    """Corrupt a batch. Each image gets its own draws; no image depends on another's pixels.

    x (B, C, H, W) floating, in [0, 1], C 1 or 3; it is left as it is. kind: a key of CORRUPTIONS or
    EXTRA_CORRUPTIONS. severity 1 to 5.
    rng: the draws depend on it and on the batch size. Returns shape and dtype of x, in [0, 1].
    Raises SpecError for an unknown kind, ValueError for a wrong severity or images of another kind.
    """
    check_kind(kind)
    check_images(x)
    return KNOWN[kind](x.float(), severity, rng).to(x.dtype) if len(x) else x.clone()


def corrupt_each(
    x: Float[Tensor, "B C H W"],
    names: Sequence[str],
    kind: Int[Tensor, "B"],
    severity: Int[Tensor, "B"],
    rng: torch.Generator,
) -> Float[Tensor, "B C H W"]:
    """Corrupt each image by a kind and a severity of its own; images that share both are corrupted together.

    x: as in `corrupt`. names: kinds. kind (B,): positions in `names`. severity (B,): 1 to 5, or 0 for no change.
    Returns a new tensor of shape and dtype of x, in [0, 1]. Raises SpecError for an unknown kind, ValueError for
    images of another kind, and for positions or severities out of range or not one for each image.
    """
    for name in names:
        check_kind(name)
    check_images(x)
    for label, values, most in (("kind", kind, len(names) - 1), ("severity", severity, 5)):
        if values.shape != x.shape[:1] or bool(((values < 0) | (values > most)).any()):
            raise ValueError(f"{label} must hold one number in [0, {most}] for each of {len(x)} images")
    if not len(x):
        return x.clone()
    key = (kind * 6 + severity).cpu()
    order = key.argsort(stable=True)
    present, sizes = key[order].unique_consecutive(return_counts=True)
    blocks = x[order.to(x.device)].float().split(sizes.tolist())
    done = []
    for value, block in zip(present.tolist(), blocks, strict=True):
        place, level = divmod(int(value), 6)
        done.append(KNOWN[names[place]](block, level, rng) if level else block)
    return torch.cat(done)[order.argsort().to(x.device)].to(x.dtype)


def check_images(x: Tensor) -> None:
    """Raise ValueError unless `x` are floating images (B, 1 or 3, H, W) in [0, 1]."""
    if x.ndim != 4 or x.shape[1] not in (1, 3) or not x.is_floating_point():
        raise ValueError(f"images must be floating (B, 1 or 3, H, W), got {x.dtype} of shape {tuple(x.shape)}")
    if not len(x):
        return
    low, high = (float(v) for v in x.aminmax())
    if not (low >= 0 and high <= 1):
        raise ValueError(f"images must lie in [0, 1], got values from {low:.4g} to {high:.4g}")


def check_kind(kind: str) -> None:
    """Raise SpecError with a suggestion unless `kind` is a key of CORRUPTIONS or EXTRA_CORRUPTIONS."""
    if kind not in KNOWN:
        raise SpecError(f"no corruption '{kind}'.{near(kind, KNOWN)} Known are: {', '.join(KNOWN)}.")


__all__ = ["CORRUPTIONS", "EXTRA_CORRUPTIONS", "check_images", "check_kind", "corrupt", "corrupt_each"]
