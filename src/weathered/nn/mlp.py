"""mlp: fully connected layers for tables, and for images taken as one row of pixels."""

import math

from torch import nn

from weathered.nn.rows import RowNetwork


class MLP(RowNetwork):
    """`depth` hidden layers of `width` units with ReLU. x (B, ...) is flattened; features (B, width).

    norm: batch normalisation before each ReLU.
    """

    def __init__(self, input_shape: tuple[int, ...], width: int = 256, depth: int = 2, norm: bool = False):
        if width < 1 or depth < 1:
            raise ValueError(f"width and depth must be at least 1, got {width} and {depth}")
        layers: list[nn.Module] = [nn.Flatten()]
        size = math.prod(input_shape)
        for _ in range(depth):
            layers += [nn.Linear(size, width), *([nn.BatchNorm1d(width)] if norm else []), nn.ReLU()]
            size = width
        super().__init__(nn.Sequential(*layers), width)
        self.stage_names = tuple(f"layers.{i}" for i, layer in enumerate(layers) if isinstance(layer, nn.ReLU))
