"""unet: a small network that gives logits for each pixel.

Source: the shape of Ronneberger et al., "U-Net", MICCAI 2015: an encoder that halves the size between stages, and a
decoder that doubles it again, each step given the encoder's map of its size. Convolutions here keep the size, batch
normalisation stands between, and the decoder upsamples bilinearly. The encoder is our own or any timm network with
feature maps.
"""

from itertools import pairwise
from typing import Any, cast

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F


def _block(inputs: int, outputs: int) -> nn.Sequential:
    layers: list[nn.Module] = []
    for channels in (inputs, outputs):
        layers += [nn.Conv2d(channels, outputs, 3, padding=1, bias=False), nn.BatchNorm2d(outputs), nn.ReLU()]
    return nn.Sequential(*layers)


class _Encoder(nn.Module):
    """Stages of `width`, 2 width, 4 width, ... channels, each after the first on maps of half the size."""

    def __init__(self, in_channels: int, width: int, depth: int):
        super().__init__()
        self.channels = [width * 2**stage for stage in range(depth + 1)]
        self.stages = nn.ModuleList(_block(a, b) for a, b in pairwise([in_channels, *self.channels]))

    def forward(self, x: Tensor) -> list[Tensor]:
        maps = []
        for number, stage in enumerate(self.stages):
            x = stage(x if number == 0 else F.max_pool2d(x, 2))
            maps.append(x)
        return maps


class UNet(nn.Module):
    """Logits for each pixel: forward_features (B, num_features, H, W), of the size of the image.

    in_channels: of the images. width >= 4: channels of the largest maps. depth >= 1, 3 by default: how often the size
    is halved; H and W must be at least 2 ** depth. encoder: name of a timm network whose maps take the place of our own
    encoder; depth is then its own, and the decoder ends at the size of the image. pretrained: weights from timm.
    Raises ValueError for arguments out of range.
    """

    def __init__(
        self,
        in_channels: int = 3,
        width: int = 16,
        depth: int | None = None,
        encoder: str | None = None,
        pretrained: bool = False,
    ):
        super().__init__()
        if width < 4:
            raise ValueError(f"width must be at least 4, got {width}")
        if depth is not None and encoder is not None:
            raise ValueError("depth is that of the encoder; give one of depth and encoder")
        depth = 3 if depth is None else depth
        if depth < 1:
            raise ValueError(f"depth must be at least 1, got {depth}")
        if pretrained and encoder is None:
            raise ValueError("pretrained needs an encoder of timm, as in encoder=resnet18")
        if encoder is None:
            self.encoder: nn.Module = _Encoder(in_channels, width, depth)
            channels = cast(_Encoder, self.encoder).channels
        else:
            self.encoder, channels = _timm_encoder(encoder, in_channels, pretrained)
        coarse_first = channels[::-1]
        # towards the image the maps become narrower, but never than `width`
        widths = [max(width, have // 2) if encoder else have for have in coarse_first[1:]]
        inputs = [coarse_first[0], *widths]
        self.decoder = nn.ModuleList(
            _block(below + skip, out) for below, skip, out in zip(inputs, coarse_first[1:], widths, strict=False)
        )
        self.num_features = widths[-1] if widths else coarse_first[0]

    def forward_features(self, x: Float[Tensor, "B C H W"]) -> Float[Tensor, "B D H W"]:
        maps = cast(Any, self.encoder)(x)
        out = maps[-1]
        for block, skip in zip(self.decoder, maps[-2::-1], strict=True):
            out = block(torch.cat([_resized(out, skip), skip], 1))
        return _resized(out, x)

    def forward_head(self, x: Float[Tensor, "B D H W"], pre_logits: bool = True) -> Float[Tensor, "B D H W"]:
        return x

    def forward(self, x: Tensor) -> Tensor:
        return self.forward_features(x)


def _resized(x: Tensor, like: Tensor) -> Tensor:
    """Maps in the height and width of `like`."""
    if x.shape[-2:] == like.shape[-2:]:
        return x
    return F.interpolate(x, like.shape[-2:], mode="bilinear", align_corners=False)


def _timm_encoder(name: str, in_channels: int, pretrained: bool) -> tuple[nn.Module, list[int]]:
    import timm

    if not timm.is_model(name):
        raise ValueError(f"timm has no model '{name}' to be the encoder")
    try:
        encoder = timm.create_model(name, pretrained=pretrained, in_chans=in_channels, features_only=True)
    except (RuntimeError, TypeError, ValueError, AttributeError, AssertionError, OSError) as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise ValueError(f"timm:{name} gives no feature maps to be the encoder: {reason}") from error
    return encoder, list(cast(Any, encoder).feature_info.channels())
