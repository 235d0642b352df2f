"""The fourteen operations that random augmentation chooses from, on a batch with one operation and strength a sample.

Source: Cubuk et al., "AutoAugment", CVPR 2019, in the ranges and the arithmetic of torchvision.transforms.v2.
Strengths are in the units below and 0 is the identity everywhere, but for autocontrast and equalize, which have none.

    shear x, shear y          pixels of shift for each pixel of distance from the upper left corner
    translate x, translate y  pixels to the right and down, cut to whole ones
    rotate                    degrees against the clock, about the centre
    brightness, colour        factor minus 1, of a blend with black and with the image's own grey
    contrast, sharpness       factor minus 1, of a blend with its mean grey and with itself smoothed 3x3
    posterize                 lowest of 8 bits that are dropped
    solarize                  share of the range, from the top, that is inverted
    autocontrast              the range of each channel stretched to the whole
    equalize                  the histogram of each channel made flat

Geometry takes the nearest pixel and black from outside.
"""

from collections.abc import Callable, Sequence

import torch
from jaxtyping import Float, Int, Shaped
from torch import Tensor
from torch.nn import functional as F

from weathered.core.facts import Traits

OPERATIONS = (
    *("identity", "shear x", "shear y", "translate x", "translate y", "rotate"),
    *("brightness", "colour", "contrast", "sharpness", "posterize", "solarize", "autocontrast", "equalize"),
)
"""The names of the operations, in the order of their numbers."""

GEOMETRY = OPERATIONS[1:6]
SIGNED = OPERATIONS[1:10]
"""Operations whose strength has two directions."""

LEVELS = 30
"""The highest of the whole levels of strength, 0 being none."""

TRAITS = Traits(
    needs={
        "image": "it shifts, turns and recolours images",
        "range01": "its colours are cut to that range",
        "uniform_pixels": "shifting a pasted image would change the share of each label",
    }
)
"""Of every part that draws among the operations."""

GREY = (0.2989, 0.587, 0.114)


def check_images(x: Tensor) -> None:
    """Raise ValueError unless `x` is a batch of grey or colour images, of bytes or floating-point numbers."""
    if x.ndim != 4 or x.shape[1] not in (1, 3):
        raise ValueError(
            f"images must be (B, C, H, W) with 1 or 3 channels, got shape {tuple(x.shape)}; for other channels use "
            "crop-flip or random-erasing"
        )
    if x.dtype != torch.uint8 and not x.is_floating_point():
        raise ValueError(f"images must be uint8 or floating-point numbers in [0, 1], got {x.dtype}")


def operate(
    x: Shaped[Tensor, "B C H W"], operation: Int[Tensor, "B"], strength: Float[Tensor, "B"]
) -> Shaped[Tensor, "B C H W"]:
    """Each image after its own operation, as a new tensor of the same kind and in the same range.

    x (B, C, H, W): uint8, or floating point in [0, 1]; C is 1 or 3. operation (B,): positions in `OPERATIONS`.
    strength (B,): in the operation's unit. Raises ValueError for other shapes, kinds and operations.
    """
    check_images(x)
    if operation.shape != x.shape[:1] or strength.shape != x.shape[:1]:
        raise ValueError(
            f"operation and strength must hold one value for each of {len(x)} samples, got {tuple(operation.shape)} "
            f"and {tuple(strength.shape)}"
        )
    if len(x) and not 0 <= int(operation.min()) <= int(operation.max()) < len(OPERATIONS):
        raise ValueError(
            f"operations must be in [0, {len(OPERATIONS) - 1}], got {int(operation.min())} to {int(operation.max())}"
        )
    out = x.clone()
    kinds = operation.cpu()
    first, last = OPERATIONS.index(GEOMETRY[0]), OPERATIONS.index(GEOMETRY[-1])
    moved = ((kinds >= first) & (kinds <= last)).nonzero()[:, 0].to(x.device)
    if len(moved):
        out[moved] = resample(x[moved], geometry(operation[moved], strength[moved], (x.shape[2], x.shape[3])))
    for number in set(kinds.tolist()) & _PHOTOMETRIC.keys():
        rows = (kinds == number).nonzero()[:, 0].to(x.device)
        out[rows] = _PHOTOMETRIC[number](x[rows], strength[rows])
    return out


def draw(
    size: int, levels: float | Float[Tensor, "B"], most: Sequence[float], rng: torch.Generator
) -> tuple[Int[Tensor, "B"], Float[Tensor, "B"]]:
    """An operation (B,) for each of `size` samples, all equally likely, and its strength (B,) float64.

    levels: in [0, LEVELS], one for all samples or one each. most: the strength of each operation at the highest level;
    those with two directions take either with chance 1/2.
    """
    operation = torch.randint(len(OPERATIONS), (size,), generator=rng, device=rng.device)
    sign = 1 - 2 * torch.randint(2, (size,), generator=rng, device=rng.device)
    two_sided = torch.tensor([name in SIGNED for name in OPERATIONS], device=rng.device)[operation]
    strength = torch.tensor(most, dtype=torch.float64, device=rng.device)[operation] * levels / LEVELS
    return operation, torch.where(two_sided, sign * strength, strength)


def geometry(operation: Int[Tensor, "B"], strength: Tensor, size: tuple[int, int]) -> Float[Tensor, "B 2 3"]:
    """Matrices that lead from a pixel (x, y, 1) of the result to its place in the image, in float64.

    Places are in pixels from the upper left corner; the middle of the first pixel is at 0.5. size: (H, W). Operations
    that are not geometric give the identity.
    """
    amount, kind = strength.double(), operation.to(strength.device)
    kept = amount * 0

    def of(name: str) -> Tensor:
        return torch.where(kind == OPERATIONS.index(name), amount, kept)

    angle = torch.deg2rad(of("rotate"))
    cos, sin = angle.cos(), angle.sin()
    y0, x0 = size[0] / 2, size[1] / 2
    right = x0 - cos * x0 + sin * y0 - of("translate x").trunc()
    down = y0 - sin * x0 - cos * y0 - of("translate y").trunc()
    across = torch.stack([cos, -sin + of("shear x"), right], 1)
    along = torch.stack([sin + of("shear y"), cos, down], 1)
    return torch.stack([across, along], 1)


def resample(x: Shaped[Tensor, "B C H W"], matrix: Float[Tensor, "B 2 3"]) -> Shaped[Tensor, "B C H W"]:
    """For each pixel the one that its matrix leads to, 0 where that lies outside. matrix as from `geometry`."""
    batch, channels, height, width = x.shape
    column = torch.arange(width, dtype=matrix.dtype, device=x.device) + 0.5
    row = torch.arange(height, dtype=matrix.dtype, device=x.device)[:, None] + 0.5
    across, along = (
        (axis[:, 0, None, None] * column + axis[:, 1, None, None] * row + axis[:, 2, None, None]).floor()
        for axis in matrix.to(x.device).unbind(1)
    )
    inside = (across >= 0) & (across < width) & (along >= 0) & (along < height)
    place = torch.where(inside, along * width + across, 0).long().view(batch, 1, -1).expand(-1, channels, -1)
    found = x.flatten(2).gather(2, place).view(x.shape)
    return torch.where(inside[:, None], found, torch.zeros((), dtype=x.dtype, device=x.device))


def _top(x: Tensor) -> int:
    return 1 if x.is_floating_point() else 255


def _wide(x: Tensor) -> Tensor:
    """At least float32, bytes as 0 to 255."""
    return x if x.is_floating_point() and x.dtype.itemsize >= 4 else x.float()


def _blend(x: Tensor, other: Tensor | float, strength: Tensor) -> Tensor:
    """x + strength * (x - other), cut to the range: 0 is x, -1 is the other, and so is x where the two are equal."""
    wide = _wide(x)
    return (wide + strength.to(wide).view(-1, 1, 1, 1) * (wide - other)).clamp_(0, _top(x)).to(x.dtype)


def _grey(x: Tensor) -> Float[Tensor, "B 1 H W"]:
    wide = _wide(x)
    if x.shape[1] == 1:
        return wide
    red, green, blue = (wide[:, [channel]] * weight for channel, weight in enumerate(GREY))
    grey = red + green + blue
    return grey if x.is_floating_point() else grey.floor()


def brightness(x: Tensor, strength: Tensor) -> Tensor:
    """Blended with black."""
    return _blend(x, 0.0, strength)


def colour(x: Tensor, strength: Tensor) -> Tensor:
    """Blended with the image's own grey; grey images stay."""
    return x.clone() if x.shape[1] == 1 else _blend(x, _grey(x), strength)


def contrast(x: Tensor, strength: Tensor) -> Tensor:
    """Blended with the mean of the image's grey."""
    return _blend(x, _grey(x).mean((1, 2, 3), keepdim=True), strength)


def sharpness(x: Tensor, strength: Tensor) -> Tensor:
    """Blended with the image smoothed by weights 1 around 5; pixels at the border stay, and images below 3x3."""
    channels, height, width = x.shape[1:]
    if height < 3 or width < 3:
        return x.clone()
    wide = _wide(x)
    kernel = wide.new_ones(3, 3) / 13
    kernel[1, 1] = 5 / 13
    smooth = F.conv2d(wide, kernel.expand(channels, 1, 3, 3), groups=channels)
    inner = wide.clone()
    inner[..., 1:-1, 1:-1] = smooth if x.is_floating_point() else smooth.round()
    return _blend(x, inner, strength)


def posterize(x: Tensor, strength: Tensor) -> Tensor:
    """Each value at the lower end of its step, of 2^(8 - strength) equal ones; strength is rounded."""
    dropped = strength.round().clamp(0, 8).view(-1, 1, 1, 1)
    if not x.is_floating_point():
        low = (2 ** dropped.long()).to(x.device)
        return (x - x % low).to(x.dtype)
    wide = _wide(x)
    levels = 2 ** (8 - dropped.to(wide))
    stepped = torch.minimum((wide * levels).floor(), levels - 1).clamp_min(0) / levels
    return torch.where(dropped.to(x.device) == 0, x, stepped.to(x.dtype))


def solarize(x: Tensor, strength: Tensor) -> Tensor:
    """Values from (1 - strength) of the range on inverted; at strength 0 not even the largest value is."""
    top = _top(x)
    above = _wide(x) >= (top * (1 - strength.double())).to(_wide(x)).view(-1, 1, 1, 1)
    return torch.where(above & (strength.view(-1, 1, 1, 1) > 0), top - x, x)


def autocontrast(x: Tensor, strength: Tensor | None = None) -> Tensor:
    """Each channel stretched to the whole range; a channel of one value stays. There is no strength."""
    wide = _wide(x)
    low, high = wide.amin((2, 3), keepdim=True), wide.amax((2, 3), keepdim=True)
    flat = high == low
    scale = (high - low) * (1.0 / _top(x))
    stretched = ((wide - low) / torch.where(flat, 1, scale)).clamp(0, _top(x)).to(x.dtype)
    return torch.where(flat, x, stretched)


def equalize(x: Tensor, strength: Tensor | None = None) -> Tensor:
    """Each channel of bytes through Pillow's table for a flat histogram; floats are cut to bytes for it.

    A channel stays where fewer than 255 pixels lie below its largest value. There is no strength.
    """
    batch, channels, height, width = x.shape
    values = (x.float() * 255.999).long() if x.is_floating_point() else x.long()
    values = values.flatten(2)
    counts = torch.zeros(batch, channels, 256, dtype=torch.int64, device=x.device)
    counts.scatter_add_(2, values, torch.ones_like(values))
    most = values.amax(2, keepdim=True)
    step = (height * width - counts.gather(2, most)) // 255
    below = counts.cumsum(2) - counts
    table = ((below + step // 2) // step.clamp_min(1)).clamp_max(255)
    flat = table.gather(2, values).view(x.shape)
    equalized = (flat.float() / 255).to(x.dtype) if x.is_floating_point() else flat.to(x.dtype)
    return torch.where((step == 0)[..., None], x, equalized)


_PHOTOMETRIC: dict[int, Callable[[Tensor, Tensor], Tensor]] = {
    OPERATIONS.index(function.__name__): function
    for function in (brightness, colour, contrast, sharpness, posterize, solarize, autocontrast, equalize)
}
