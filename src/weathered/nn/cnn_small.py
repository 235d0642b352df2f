"""cnn_small: a convolutional network of about 100,000 parameters for images of 8 to 64 pixels."""

from typing import Literal

from torch import Tensor, nn
from torch.nn import functional as F

from weathered.nn.stages import StagedNetwork

Norm = Literal["batch", "group", "none"]


def _norm(kind: Norm, channels: int) -> nn.Module:
    if kind == "batch":
        return nn.BatchNorm2d(channels)
    if kind == "group":
        return nn.GroupNorm(8, channels)
    if kind == "none":
        return nn.Identity()
    raise ValueError(f"norm must be 'batch', 'group' or 'none', got '{kind}'")


def _block(inputs: int, outputs: int, norm: Norm) -> nn.Sequential:
    convolution = nn.Conv2d(inputs, outputs, 3, padding=1, bias=norm == "none")
    return nn.Sequential(convolution, _norm(norm, outputs), nn.ReLU())


class CNNSmall(StagedNetwork):
    """Five 3x3 convolutions in three stages of (width, 2 width, 2 width) channels, halved in size between stages.

    x (B, in_channels, H, W) with H, W >= 4; features (B, 2 width) after global average pooling.
    width: channels of the first stage, a multiple of 8. norm: `batch`, `group` (8 groups) or `none`.
    """

    def __init__(self, in_channels: int = 3, width: int = 32, norm: Norm = "batch"):
        super().__init__()
        if width < 8 or width % 8:
            raise ValueError(f"width must be a positive multiple of 8, got {width}")
        wide = 2 * width
        self.stages = nn.ModuleList(
            [
                nn.Sequential(_block(in_channels, width, norm), _block(width, width, norm)),
                nn.Sequential(_block(width, wide, norm), _block(wide, wide, norm)),
                nn.Sequential(_block(wide, wide, norm)),
            ]
        )
        self.num_features = wide

    def stage_input(self, x: Tensor, number: int) -> Tensor:
        return x if number == 0 else F.max_pool2d(x, 2)
