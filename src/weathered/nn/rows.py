"""Networks that take each input as one row of numbers and give one row of features."""

from jaxtyping import Float
from torch import Tensor, nn


class RowNetwork(nn.Module):
    """Layers in turn. x (B, ...) -> features (B, num_features), which the head leaves as they are.

    layers: the first of them flattens. num_features: width of the last.
    """

    def __init__(self, layers: nn.Sequential, num_features: int):
        super().__init__()
        self.layers, self.num_features = layers, num_features

    def forward_features(self, x: Tensor) -> Float[Tensor, "B D"]:
        return self.layers(x)

    def forward_head(self, x: Float[Tensor, "B D"], pre_logits: bool = True) -> Float[Tensor, "B D"]:
        return x

    def forward(self, x: Tensor) -> Tensor:
        return self.forward_features(x)
