"""Auxiliary data without labels, as `--aux ood=SOURCE`: any data source, or one of the synthetic sets made here.

patches: windows of the two photographs that come with scikit-learn, at three scales, stretched to the full range.
gaussian: normal noise around mid-grey, deviation a quarter of the range, clipped. rademacher: black or white, a coin
per pixel and channel. blobs: Bernoulli(0.7) noise blurred by 1.5 pixels, what is below 0.75 set to 0, then stretched.
shuffled: the training inputs with pixels, or for tables columns, in random order.
gaussian and shuffled exist for tables too; there gaussian has mean and deviation of each training column.
The noise sets are those of Wei et al., NeurIPS 2021, in [0, 1] instead of [-1, 1].
"""

from collections.abc import Callable, Mapping
from pathlib import Path
from types import MappingProxyType

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import interpolate
from torchvision.transforms.v2.functional import gaussian_blur

from weathered.core.errors import DataError, SpecError
from weathered.core.rng import generator
from weathered.core.spec import parse
from weathered.data.dataset import Dataset, Inputs, MemoryInputs
from weathered.data.sources.load import READERS, load
from weathered.data.sources.options import user_path

SIZE = 10_000
"""Rows of a synthetic set unless `size` says otherwise."""

Maker = Callable[[Dataset, int, torch.Generator], Tensor]


def split_spec(spec: str) -> tuple[str, str]:
    """(name, source) of `name=source`; raises SpecError otherwise."""
    name, sign, source = spec.partition("=")
    if not (sign and name.strip().isidentifier() and source.strip()):
        raise SpecError(f"auxiliary data are given as NAME=SOURCE, as in ood=patches or ood=folder:PATH, got '{spec}'.")
    return name.strip(), source.strip()


def is_synthetic(source: str) -> bool:
    """Whether a source is made here, without files."""
    return source.partition(":")[0] in SYNTHETIC


def load_auxiliary(
    source: str, like: Dataset, seed: int, *, root: Path | None = None, skip_bad: bool = False
) -> Dataset:
    """Inputs shaped like those of `like`, labels all 0.

    source: a data source as for training, whose labels are not used, a folder with images anywhere below it, or a
    synthetic set, as in `patches:size=2000`.
    Images are brought to the size and the channels of `like`. seed: of the synthetic draws.
    Raises DataError or SpecError if the source is unknown, empty, or of another kind than `like`.
    """
    if is_synthetic(source):
        name, options = parse(source)
        size = options.pop("size", SIZE)
        if options or isinstance(size, bool) or not isinstance(size, int) or size < 1:
            raise SpecError(f"'{source}': a synthetic set has one option, size, at least 1.")
        inputs = SYNTHETIC[name](like, size, generator(seed, "auxiliary", name))
        return _unlabelled(MemoryInputs(inputs), name)
    size = like.inputs.shape[-1] if like.is_image else None
    if size is not None and like.inputs.shape[-2] != size:
        raise DataError(f"auxiliary images are brought to squares, but those of {like.name} are {like.inputs.shape}.")
    if source.startswith("folder:") or user_path(source).is_dir():
        source = f"images:{source.removeprefix('folder:')}"
    try:
        found = load(source, root=root, skip_bad=skip_bad, image_size=size)
    except DataError as error:
        known = ", ".join((*SYNTHETIC, *READERS))
        raise DataError(f"auxiliary data '{source}': {error} The sources are: {known}.") from error
    if found.is_image != like.is_image or (not like.is_image and found.inputs.shape != like.inputs.shape):
        raise DataError(
            f"auxiliary data '{source}' have inputs of shape {found.inputs.shape}, those of {like.name} are "
            f"{like.inputs.shape}."
        )
    inputs = found.inputs
    if inputs.shape != like.inputs.shape:
        if not inputs.in_memory:
            raise DataError(f"auxiliary data '{source}' do not fit in memory and have {inputs.shape[0]} channels.")
        inputs = MemoryInputs(_channels(inputs.fetch(torch.arange(len(found))), like.inputs.shape[0]))
    return _unlabelled(inputs, source)


def _unlabelled(inputs: Inputs, name: str) -> Dataset:
    return Dataset(inputs, torch.zeros(len(inputs), dtype=torch.long), ("none",), name=name)


def shuffle_pixels(images: Tensor, rng: torch.Generator) -> Tensor:
    """Each image (N, C, H, W) with its pixels in a random order of its own, channels kept together.

    Of clips (N, T, C, H, W) each frame has an order of its own.
    """
    if images.ndim == 5:
        return shuffle_pixels(images.flatten(0, 1), rng).view_as(images)
    flat = images.flatten(2)
    order = torch.rand(len(flat), 1, flat.shape[2], generator=rng).argsort(2)
    return flat.gather(2, order.expand_as(flat)).view_as(images)


def _channels(images: Tensor, channels: int) -> Tensor:
    """Grey to colour by repetition, colour to grey by luminance; (N, C, H, W) uint8."""
    if images.shape[1] == channels:
        return images
    if images.shape[1] == 1:
        return images.repeat(1, channels, 1, 1)
    weights = torch.tensor([0.299, 0.587, 0.114]).view(1, 3, 1, 1)
    return (images[:, :3].float() * weights).sum(1, keepdim=True).round().to(torch.uint8)


def _patches(like: Dataset, size: int, rng: torch.Generator) -> Tensor:
    from sklearn.datasets import load_sample_images

    channels, height, width = _image_shape(like, "patches")
    photos = [torch.from_numpy(np.array(photo)).permute(2, 0, 1) for photo in load_sample_images().images]
    levels = [_shrunk(photo, factor) for photo in photos for factor in (1, 2, 4)]
    levels = [level for level in levels if level.shape[1] >= height and level.shape[2] >= width]
    if not levels:
        raise DataError(f"patches of {height} x {width} pixels do not fit into the photographs; use another source.")
    which = torch.randint(len(levels), (size,), generator=rng)
    place = torch.rand(size, 2, generator=rng)
    out = torch.empty(size, channels, height, width, dtype=torch.uint8)
    for number, level in enumerate(levels):
        rows = (which == number).nonzero()[:, 0]
        windows = level.unfold(1, height, 1).unfold(2, width, 1)
        top, left = (place[rows] * torch.tensor(windows.shape[1:3])).long().unbind(1)
        out[rows] = _stretched(_channels(windows[:, top, left].transpose(0, 1), channels))
    return out


def _shrunk(photo: Tensor, factor: int) -> Tensor:
    small = interpolate(photo[None].float(), scale_factor=1 / factor, mode="bilinear", antialias=True)
    return small[0].round().clamp(0, 255).to(torch.uint8)


def _stretched(images: Tensor) -> Tensor:
    """Each image with its darkest value at 0 and its brightest at 255."""
    flat = images.flatten(1).float()
    low, high = flat.amin(1, keepdim=True), flat.amax(1, keepdim=True)
    return ((flat - low) / (high - low).clamp_min(1) * 255).round().to(torch.uint8).view_as(images)


def _gaussian(like: Dataset, size: int, rng: torch.Generator) -> Tensor:
    if "table" in like.facts:
        x = like.inputs.fetch(torch.arange(len(like)))
        return x.mean(0) + x.std(0) * torch.randn(size, *x.shape[1:], generator=rng)
    noise = 127.5 + 63.75 * torch.randn(size, *like.inputs.shape, generator=rng)
    return noise.round().clamp(0, 255).to(torch.uint8)


def _rademacher(like: Dataset, size: int, rng: torch.Generator) -> Tensor:
    return torch.randint(2, (size, *_image_shape(like, "rademacher")), generator=rng, dtype=torch.uint8) * 255


def _blobs(like: Dataset, size: int, rng: torch.Generator) -> Tensor:
    coins = (torch.rand(size, *_image_shape(like, "blobs"), generator=rng) < 0.7).float()
    reach = min(*(length - 1 for length in coins.shape[-2:]), 6)
    blurred = gaussian_blur(coins, [2 * reach + 1, 2 * reach + 1], [1.5, 1.5])
    return _stretched(torch.where(blurred < 0.75, 0.0, blurred * 255).round().to(torch.uint8))


def _shuffled(like: Dataset, size: int, rng: torch.Generator) -> Tensor:
    rows = torch.randint(len(like), (size,), generator=rng)
    x = like.inputs.fetch(rows)
    if "table" not in like.facts:
        return shuffle_pixels(x, rng)
    return x.gather(0, torch.rand(x.shape, generator=rng).argsort(0))


def _image_shape(like: Dataset, name: str) -> tuple[int, int, int]:
    if not like.is_image:
        kind = "a set of clips" if like.is_clip else "a table"
        raise DataError(f"'{name}' makes images, but {like.name} is {kind}; use gaussian or shuffled.")
    channels, height, width = like.inputs.shape
    return channels, height, width


SYNTHETIC: Mapping[str, Maker] = MappingProxyType(
    {
        "patches": _patches,
        "gaussian": _gaussian,
        "rademacher": _rademacher,
        "blobs": _blobs,
        "shuffled": _shuffled,
    }
)
