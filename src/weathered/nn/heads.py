"""Classifier heads that end a network: the cosine head, and the linear one, which is torch's own but for pixels."""

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F


class CosineHead(nn.Module):
    """Cosine of the angle between features and one direction per class: logits in [-1, 1], no bias, no scale.

    features (B, D) -> (B, C), or maps (B, D, H, W) -> (B, C, H, W). A zero feature vector gives 0 for every class.
    The scale belongs to the loss (for example `LDAM`), so it is applied exactly once.
    Source: the normalised classifier of Cao et al., NeurIPS 2019.
    """

    def __init__(self, in_features: int, num_classes: int):
        super().__init__()
        self.in_features, self.out_features = in_features, num_classes
        self.weight = nn.Parameter(torch.empty(num_classes, in_features))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Vectors of unit length in the directions of points that are uniform in a cube, as the source draws them."""
        with torch.no_grad():
            self.weight.uniform_(-1, 1)
            self.weight.copy_(F.normalize(self.weight, dim=1))

    def forward(self, features: Float[Tensor, "B D"]) -> Float[Tensor, "B C"]:
        unit, directions = F.normalize(features, dim=1, eps=1e-8), F.normalize(self.weight, dim=1, eps=1e-8)
        return F.conv2d(unit, directions[..., None, None]) if unit.ndim == 4 else F.linear(unit, directions)


class PixelLinear(nn.Linear):
    """A linear classifier of each pixel: maps (B, D, H, W) -> (B, C, H, W), or features (B, D) -> (B, C)."""

    def forward(self, input: Float[Tensor, "B D *size"]) -> Float[Tensor, "B C *size"]:
        if input.ndim != 4:
            return super().forward(input)
        return F.conv2d(input, self.weight[..., None, None], self.bias)


def build_head(kind: str, in_features: int, num_classes: int, per_pixel: bool = False) -> nn.Module:
    """`linear` or `cosine`; raises ValueError for anything else. per_pixel: for maps (B, D, H, W)."""
    if kind == "linear":
        return (PixelLinear if per_pixel else nn.Linear)(in_features, num_classes)
    if kind == "cosine":
        return CosineHead(in_features, num_classes)
    raise ValueError(f"head must be 'linear' or 'cosine', got '{kind}'")
