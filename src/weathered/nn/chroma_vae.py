"""chroma-vae: a variational autoencoder with two blocks of latents, the small one read by a classifier.

Encoder -> mean, log variance of z = (z1, z2), d1 + d2 numbers; decoder: z -> pixels; c1: z1 -> classes. What predicts
is a head on the mean of z2 alone, fitted when the rest is trained, see `procedures/chroma_vae.py`.
Limits: d1 = 0 is a plain autoencoder with a classifier on its latents; d2 = 0 classifies by c1.
"""

from __future__ import annotations

import math
from itertools import pairwise
from typing import Literal, cast

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

from weathered.core.errors import SpecError
from weathered.data.dataset import Dataset
from weathered.nn.latent_heads import FittedHead, HeadKind, latent_head
from weathered.nn.network import Network, input_statistics

Likelihood = Literal["bernoulli", "gaussian"]

LOG_VARIANCE = 8.0
"""Largest absolute log variance of a latent, beyond which the exponential would come near its limits."""


def standard_normal_kl(mean: Float[Tensor, "B D"], log_variance: Float[Tensor, "B D"]) -> Float[Tensor, "B"]:
    """KL divergence of N(mean, diag exp(log_variance)) from N(0, I), in nats; a sum over dimensions, never negative."""
    return 0.5 * (mean.square() + log_variance.exp() - 1 - log_variance).sum(1)


def negative_log_likelihood(
    output: Float[Tensor, "B *shape"], x: Float[Tensor, "B *shape"], likelihood: Likelihood, sigma: float
) -> Float[Tensor, "B"]:
    """-log p(x | z) in nats, summed over pixels, from what the decoder gives.

    bernoulli: output are logits, x in [0, 1]. gaussian: output are means of normal densities of deviation sigma > 0.
    """
    if likelihood == "bernoulli":
        return F.binary_cross_entropy_with_logits(output, x, reduction="none").flatten(1).sum(1)
    constant = math.log(sigma) + 0.5 * math.log(2 * math.pi)
    return ((x - output).square() / (2 * sigma**2) + constant).flatten(1).sum(1)


class LatentBlocks(nn.Module):
    """Encoder and decoder of images (B, C, H, W) with d1 + d2 latents.

    d1, d2 >= 0: sizes of the blocks, together at least 2. width >= 1: units of hidden layers. depth >= 1: hidden layers
    on each side. conv: two convolutions of stride 2 on each side in place of these, with width / 4 and width / 2
    channels, for images whose sides are multiples of 4. likelihood: bernoulli for pixels in [0, 1], or gaussian with
    deviation sigma > 0. Raises ValueError otherwise.
    """

    def __init__(
        self,
        input_shape: tuple[int, int, int],
        d1: int = 2,
        d2: int = 12,
        width: int = 128,
        depth: int = 1,
        conv: bool = False,
        likelihood: Likelihood = "bernoulli",
        sigma: float = 0.1,
    ):
        super().__init__()
        if min(d1, d2) < 0 or d1 + d2 < 2:
            raise ValueError(f"d1 and d2 must be at least 0, and 2 together, got {d1} and {d2}")
        if width < 1 or depth < 1:
            raise ValueError(f"width and depth must be at least 1, got {width} and {depth}")
        if likelihood not in ("bernoulli", "gaussian"):
            raise ValueError(f"likelihood must be 'bernoulli' or 'gaussian', got '{likelihood}'")
        if not (sigma > 0 and math.isfinite(sigma)):
            raise ValueError(f"sigma must be in (0, infinity), got {sigma}")
        self.input_shape, self.d1, self.d2, self.width = input_shape, d1, d2, width
        self.likelihood: Likelihood = likelihood
        self.sigma, self.num_features = sigma, d2
        latents = d1 + d2
        if conv:
            self.encoder, self.decoder = _convolutions(input_shape, width, latents)
            return
        size = math.prod(input_shape)
        hidden = [width] * depth
        self.encoder = nn.Sequential(nn.Flatten(), *_layers([size, *hidden, 2 * latents]))
        self.decoder = nn.Sequential(*_layers([latents, *hidden, size]), nn.Unflatten(1, input_shape))

    def forward_features(self, x: Tensor) -> Float[Tensor, "B latents2"]:
        """Means of all latents, then their log variances."""
        return self.encoder(x)

    def forward_head(self, features: Float[Tensor, "B latents2"], pre_logits: bool = True) -> Float[Tensor, "B d2"]:
        """The means of the second block."""
        return features[:, self.d1 : self.d1 + self.d2]

    def forward(self, x: Tensor) -> Tensor:
        return self.forward_features(x)


def _layers(sizes: list[int]) -> list[nn.Module]:
    layers: list[nn.Module] = []
    for before, after in pairwise(sizes):
        layers += [nn.Linear(before, after), nn.ReLU()]
    return layers[:-1]


def _convolutions(shape: tuple[int, int, int], width: int, latents: int) -> tuple[nn.Sequential, nn.Sequential]:
    channels, height, breadth = shape
    if height % 4 or breadth % 4 or width % 4:
        raise ValueError(
            f"conv needs a width and sides of images that are multiples of 4, got width {width} and {height} x "
            f"{breadth} pixels"
        )
    few, many, small = width // 4, width // 2, (width // 2, height // 4, breadth // 4)
    encoder = nn.Sequential(
        nn.Conv2d(channels, few, 3, stride=2, padding=1), nn.ReLU(),
        nn.Conv2d(few, many, 3, stride=2, padding=1), nn.ReLU(),
        nn.Flatten(), nn.Linear(math.prod(small), 2 * latents),
    )  # fmt: skip
    decoder = nn.Sequential(
        nn.Linear(latents, math.prod(small)), nn.ReLU(), nn.Unflatten(1, small),
        nn.ConvTranspose2d(many, few, 4, stride=2, padding=1), nn.ReLU(),
        nn.ConvTranspose2d(few, channels, 4, stride=2, padding=1),
    )  # fmt: skip
    return encoder, decoder


class ChromaNetwork(Network):
    """Latent blocks, the classifier c1 on the first and the head on the second; images in [0, 1] -> logits (B, C).

    Features are the means of the second block, and nothing is drawn. Until its head is fitted, and always where d2 = 0,
    c1 predicts.
    """

    def __init__(self, body: LatentBlocks, num_classes: int, mean: Tensor, std: Tensor):
        super().__init__(body, latent_head("knn", body.d2, num_classes), mean, std)
        self.num_classes = num_classes
        self.shortcut = nn.Sequential(*_layers([body.d1, body.width, num_classes])) if body.d1 else None

    @property
    def blocks(self) -> LatentBlocks:
        """Encoder and decoder."""
        return cast(LatentBlocks, self.body)

    def set_head(self, kind: HeadKind, neighbours: int) -> None:
        """Put a fresh head in place, not yet fitted; see `latent_head`."""
        self.head = latent_head(kind, self.blocks.d2, self.num_classes, neighbours).to(self.mean.device)

    def posterior(self, x: Float[Tensor, "B C H W"]) -> tuple[Float[Tensor, "B latents"], Float[Tensor, "B latents"]]:
        """Means and log variances of all latents, the latter kept in [-8, 8]."""
        mean, log_variance = self.forward_features(x).chunk(2, dim=1)
        return mean, log_variance.clamp(-LOG_VARIANCE, LOG_VARIANCE)

    def encode(self, x: Float[Tensor, "B C H W"]) -> tuple[Float[Tensor, "B d1"], Float[Tensor, "B d2"]]:
        """The means of both blocks."""
        first, second = self.posterior(x)[0].split([self.blocks.d1, self.blocks.d2], dim=1)
        return first, second

    def decoded(self, z: Float[Tensor, "B latents"]) -> Float[Tensor, "B C H W"]:
        """What the decoder gives: logits of pixels, or means where the likelihood is gaussian."""
        return self.blocks.decoder(z)

    def decode(self, z1: Float[Tensor, "B d1"], z2: Float[Tensor, "B d2"]) -> Float[Tensor, "B C H W"]:
        """The expected image for latents of both blocks."""
        output = self.decoded(torch.cat([z1, z2], 1))
        return output.sigmoid() if self.blocks.likelihood == "bernoulli" else output

    def classify_shortcut(self, z1: Float[Tensor, "B d1"]) -> Float[Tensor, "B C"]:
        """Logits of c1; all 0 where d1 = 0."""
        return self.shortcut(z1) if self.shortcut is not None else z1.new_zeros(len(z1), self.num_classes)

    def shortcut_logits(self, x: Float[Tensor, "B C H W"]) -> Float[Tensor, "B C"]:
        """What c1 says by the means of the first block: the class that a shortcut points to.

        Where it differs from the network's own prediction, a shortcut probably contradicts the rest of the image.
        """
        return self.classify_shortcut(self.encode(x)[0])

    def forward_head(self, features: Tensor, pre_logits: bool = False) -> Tensor:
        """The means of the second block with pre_logits, else logits."""
        pooled = self.blocks.forward_head(features)
        if pre_logits:
            return pooled
        if self.blocks.d2 and cast(FittedHead, self.head).is_fitted:
            return self.head(pooled)
        return self.classify_shortcut(features[:, : self.blocks.d1])


def chroma_network(body: LatentBlocks, dataset: Dataset, head: str) -> ChromaNetwork:
    """The network around its blocks. Raises SpecError for a head of another kind than `linear`."""
    if head != "linear":
        raise SpecError(
            f"chroma-vae ends in a head of its own and takes no {head} head. Drop one: what needs that head, or the "
            "model."
        )
    return ChromaNetwork(body, dataset.num_classes, *input_statistics(dataset))
