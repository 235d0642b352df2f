"""What the agents of an attack see of the frames of a clip: pixels, a timm network, or any function."""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache
from typing import Any, cast

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

from weathered.core.spec import parse
from weathered.nn.network import seeded

Encoder = Callable[[Tensor], Tensor]
"""Frames (T, C, H, W) in [0, 1] to features (T, D)."""

SIDE = 8
"""Means that `pixels` takes along each side of a frame."""


def pixels(clip: Float[Tensor, "T C H W"]) -> Float[Tensor, "T D"]:
    """The means of 8x8 parts of each frame and channel, fewer of smaller frames."""
    return F.adaptive_avg_pool2d(clip, (min(SIDE, clip.shape[2]), min(SIDE, clip.shape[3]))).flatten(1)


def encode(encoder: str | Encoder, clip: Float[Tensor, "T C H W"]) -> Float[Tensor, "T D"]:
    """Features of the frames, without gradient. encoder: `pixels`, `timm:NAME[:pretrained=true]` or a function.

    Raises ValueError for a name that is neither, or features that are not one finite row for each frame.
    """
    with torch.no_grad():
        if callable(encoder):
            found = encoder(clip)
        else:
            found = pixels(clip) if encoder == "pixels" else _timm(encoder.removeprefix("timm:"), clip.shape[1])(clip)
    if found.ndim != 2 or len(found) != len(clip) or not bool(torch.isfinite(found).all()):
        raise ValueError(f"the encoder must give a finite row for each of {len(clip)} frames, got {tuple(found.shape)}")
    return found.to(clip)


@lru_cache(maxsize=2)
def _timm(spec: str, channels: int) -> Encoder:
    """A timm network without its head, with means and deviations of its own where it was trained with some."""
    import timm

    name, options = parse(spec)
    pretrained = options.pop("pretrained", False)
    if options or not timm.is_model(name):
        raise ValueError(f"encoder timm:{spec} is no model of timm, or has options other than pretrained")
    with seeded(0):
        body: nn.Module = timm.create_model(name, pretrained=pretrained, num_classes=0, in_chans=channels).eval()
    known = cast(Any, body).pretrained_cfg
    mean, std = (torch.tensor(known[key]).view(1, -1, 1, 1) for key in ("mean", "std"))
    if channels != mean.shape[1]:
        mean, std = mean.mean(1, keepdim=True), std.mean(1, keepdim=True)

    def encoder(clip: Tensor) -> Tensor:
        return body.to(clip.device)((clip - mean.to(clip)) / std.to(clip))

    return encoder
