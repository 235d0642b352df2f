"""MixBlock: a mixing mask from the feature maps of a pair of images, by attention of one to the other.

Source: the Mix Block of Liu et al., "AutoMix: Unveiling the Power of Mixup for Stronger Classifiers", ECCV 2022.
With u, v the maps of an image and its partner, N = h w positions, W one convolution for both:
    P = softmax over v's positions of (W u)(W v)^T / sqrt(d),  S = sigmoid(upsample(P value(v)))
S is the share of the partner at each pixel. Limit: a value convolution of zeros gives S = 1/2 everywhere.
"""

import math
from typing import cast

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F


def pair_attention(query: Float[Tensor, "B d h w"], key: Float[Tensor, "B d h w"]) -> Float[Tensor, "B N N"]:
    """softmax(Q K^T / sqrt(d)) over the key's N = h w positions; rows sum to 1."""
    scores = query.flatten(2).transpose(1, 2) @ key.flatten(2)
    return (scores / math.sqrt(query.shape[1])).softmax(2)


class MixBlock(nn.Module):
    """Feature maps of a pair (B, C, h, w) each, and the share lam of the first, to a mask (B, 1, H, W) in (0, 1).

    channels: C. reduction >= 1: queries and keys have C // reduction channels. lam_encoding: append a constant
    channel, lam to the first and 1 - lam to the partner; without it the mask cannot depend on lam.
    Weights start at N(0, 0.01^2) and biases at 0, so that the mask starts near 1/2.
    Raises ValueError if reduction leaves no channel.
    """

    def __init__(self, channels: int, reduction: int = 2, lam_encoding: bool = True):
        super().__init__()
        if not 1 <= reduction <= channels:
            raise ValueError(f"reduction must be in [1, {channels}] for {channels} channels, got {reduction}")
        self.lam_encoding = lam_encoding
        inputs = channels + int(lam_encoding)
        self.embedding = nn.Conv2d(inputs, channels // reduction, 1)
        self.value = nn.Conv2d(inputs, 1, 1)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        for convolution in (self.embedding, self.value):
            nn.init.normal_(convolution.weight, std=0.01)
            nn.init.zeros_(cast(Tensor, convolution.bias))

    def forward(
        self, own: Float[Tensor, "B C h w"], partner: Float[Tensor, "B C h w"], lam: float, size: tuple[int, int]
    ) -> Float[Tensor, "B 1 H W"]:
        """The partner's share at each pixel of an image of `size` (H, W). lam in [0, 1]: the share of `own`."""
        # attention overflows in half precision
        with torch.autocast(own.device.type, enabled=False):
            own, partner = self._encode(own, lam), self._encode(partner, 1 - lam)
            attention = pair_attention(self.embedding(own), self.embedding(partner))
            mask = attention @ self.value(partner).flatten(2).transpose(1, 2)
            mask = mask.transpose(1, 2).unflatten(2, own.shape[-2:])
            return F.interpolate(mask, size=size, mode="nearest").sigmoid()

    def _encode(self, features: Tensor, lam: float) -> Tensor:
        features = features.float() if features.dtype.itemsize < 4 else features
        if not self.lam_encoding:
            return features
        return torch.cat([features, features.new_full((len(features), 1, *features.shape[-2:]), lam)], 1)
