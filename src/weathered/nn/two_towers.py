"""Two towers: an image network and a text network that embed into one space, in which a pair lies close together."""

import math
from typing import Any, cast

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn
from torch.nn import functional as F

from weathered.core.tokens import PADDING, UNKNOWN, lengths_of

MAX_SCALE = 100.0
"""The largest factor on cosines, as in CLIP; larger ones make training unstable."""


class TextTower(nn.Module):
    """Mean of word embeddings, then one hidden layer. tokens (B, L) word ids -> (B, dim).

    known (V,): whether training captions hold a word; all others are taken as the unknown word, whose embedding starts
    at 0, and stays there where no training caption holds it.
    hidden, dim: widths of the embeddings and the layer between, and of the result.
    """

    known: Tensor

    def __init__(self, known: Bool[Tensor, "V"], hidden: int, dim: int):
        super().__init__()
        self.register_buffer("known", known)
        self.embedding = nn.Embedding(len(known), hidden, padding_idx=PADDING)
        with torch.no_grad():
            self.embedding.weight[UNKNOWN] = 0
        self.layers = nn.Sequential(nn.Linear(hidden, hidden), nn.ReLU(), nn.Linear(hidden, dim))

    def forward(self, tokens: Int[Tensor, "B L"]) -> Float[Tensor, "B D"]:
        ids = torch.where(self.known[tokens] | (tokens == PADDING), tokens, UNKNOWN)
        return self.layers(self.embedding(ids).sum(1) / lengths_of(ids).clamp_min(1)[:, None])


class Temperature(nn.Module):
    """A learned factor on cosines, 1 / temperature at the start and never above 100. temperature in [0.01, inf)."""

    def __init__(self, temperature: float):
        super().__init__()
        self.log_scale = nn.Parameter(torch.tensor(-math.log(temperature)))

    def forward(self) -> Float[Tensor, ""]:
        return self.log_scale.exp().clamp_max(MAX_SCALE)

    @torch.no_grad()
    def clamp(self) -> None:
        """Bring the parameter back to its range, after a step."""
        self.log_scale.clamp_(max=math.log(MAX_SCALE))


class TwoTowers(nn.Module):
    """An image network with a projection in place of its classifier, and a text tower; embeddings have norm 1."""

    def __init__(self, network: nn.Module, projection: nn.Module, text: TextTower, temperature: Temperature):
        super().__init__()
        self.network, self.projection, self.text, self.temperature = network, projection, text, temperature

    def forward(self, x: Float[Tensor, "B C H W"]) -> Float[Tensor, "B D"]:
        """Embeddings of images."""
        timm_like = cast(Any, self.network)
        features = timm_like.forward_head(timm_like.forward_features(x), pre_logits=True)
        return F.normalize(self.projection(features).float(), dim=1)

    def embed_captions(self, tokens: Int[Tensor, "B L"]) -> Float[Tensor, "B D"]:
        """Embeddings of captions as word ids."""
        return F.normalize(self.text(tokens).float(), dim=1)
