"""mlp: fully connected layers for tables, and for images taken as one row of pixels."""

import math

from jaxtyping import Float
from torch import Tensor, nn


class MLP(nn.Module):
    """`depth` hidden layers of `width` units with ReLU. x (B, ...) is flattened; features (B, width).

    norm: batch normalisation before each ReLU.
    """

    def __init__(self, input_shape: tuple[int, ...], width: int = 256, depth: int = 2, norm: bool = False):
        super().__init__()
        if width < 1 or depth < 1:
            raise ValueError(f"width and depth must be at least 1, got {width} and {depth}")
        layers: list[nn.Module] = [nn.Flatten()]
        size = math.prod(input_shape)
        for _ in range(depth):
            layers += [nn.Linear(size, width), *([nn.BatchNorm1d(width)] if norm else []), nn.ReLU()]
            size = width
        self.layers = nn.Sequential(*layers)
        self.stage_names = tuple(f"layers.{i}" for i, layer in enumerate(layers) if isinstance(layer, nn.ReLU))
        self.num_features = width

    def forward_features(self, x: Tensor) -> Float[Tensor, "B D"]:
        return self.layers(x)

    def forward_head(self, x: Float[Tensor, "B D"], pre_logits: bool = True) -> Float[Tensor, "B D"]:
        return x

    def forward(self, x: Tensor) -> Tensor:
        return self.forward_features(x)
