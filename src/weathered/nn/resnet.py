"""resnet: residual networks of bottleneck blocks in the variants A to D.

Source: He et al., "Deep Residual Learning for Image Recognition", CVPR 2016 (A), and He et al., "Bag of Tricks for
Image Classification with Convolutional Neural Networks", CVPR 2019 (B, C, D). A block gives relu(shortcut(x) +
branch(x)); the branch is a 1x1, a 3x3 and a 1x1 convolution, each followed by batch normalisation. Where a stage
halves the size:

- A: the first 1x1 of the branch has stride 2 and sees a quarter of the positions, as does the 1x1 of the shortcut.
- B: the 3x3 has the stride in its place.
- C: as B, and the 7x7 of the stem becomes three 3x3.
- D: as C, and the shortcut averages 2x2 positions before a 1x1 without stride, so it sees all of them.

With zero_gamma the last scale of each branch starts at 0, so that every block starts as relu of its shortcut.
"""

from typing import Literal, cast

from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

from weathered.nn.stages import StagedNetwork

Variant = Literal["a", "b", "c", "d"]

BLOCKS = {26: (2, 2, 2, 2), 50: (3, 4, 6, 3), 101: (3, 4, 23, 3)}
"""Depth -> blocks of each stage."""

EXPANSION = 4
"""Channels of a block's output for each one inside it."""


def _convolution(inputs: int, outputs: int, size: int, stride: int = 1) -> list[nn.Module]:
    return [
        nn.Conv2d(inputs, outputs, size, stride, padding=size // 2, bias=False),
        nn.BatchNorm2d(outputs),
    ]


class Bottleneck(nn.Module):
    """relu(shortcut(x) + branch(x)) for x (B, inputs, H, W) -> (B, 4 inner, ceil(H / stride), ceil(W / stride)).

    inner: channels of the 3x3 convolution. The shortcut is the identity where the shapes agree.
    """

    def __init__(self, inputs: int, inner: int, stride: int, variant: Variant):
        super().__init__()
        outputs = EXPANSION * inner
        first, second = (stride, 1) if variant == "a" else (1, stride)
        self.branch = nn.Sequential(
            *_convolution(inputs, inner, 1, first),
            nn.ReLU(),
            *_convolution(inner, inner, 3, second),
            nn.ReLU(),
            *_convolution(inner, outputs, 1),
        )
        self.shortcut = nn.Sequential()
        if stride > 1 and variant == "d":
            # padding is not counted and odd sizes are rounded up, as the 3x3 does
            self.shortcut.append(nn.AvgPool2d(2, stride, ceil_mode=True, count_include_pad=False))
            stride = 1
        if inputs != outputs or stride > 1:
            self.shortcut.extend(_convolution(inputs, outputs, 1, stride))

    @property
    def last_scale(self) -> Tensor:
        """The scale (4 inner,) of the batch normalisation that ends the branch."""
        return cast(nn.BatchNorm2d, self.branch[-1]).weight

    def forward(self, x: Float[Tensor, "B C H W"]) -> Float[Tensor, "B D h w"]:
        return F.relu(self.shortcut(x) + self.branch(x))


def _stem(in_channels: int, width: int, deep: bool, small: bool) -> nn.Sequential:
    stride = 1 if small else 2
    if deep:
        half = width // 2
        layers = [
            *_convolution(in_channels, half, 3, stride),
            nn.ReLU(),
            *_convolution(half, half, 3),
            nn.ReLU(),
            *_convolution(half, width, 3),
        ]
    else:
        layers = _convolution(in_channels, width, 3 if small else 7, stride)
    layers.append(nn.ReLU())
    return nn.Sequential(*layers, *([] if small else [nn.MaxPool2d(3, 2, padding=1)]))


class ResNet(StagedNetwork):
    """Four stages of bottleneck blocks, each after the first halved in size; see the module for the variants.

    x (B, in_channels, H, W); features (B, 32 width) after global average pooling.
    depth: 26, 50 or 101 layers. variant: a, b, c or d. width: channels of the stem, even; 64 in the papers.
    zero_gamma: start every block as its shortcut. small: a 3x3 stem without stride and pooling, for small images.
    Convolutions start from the normal distribution of He et al. (2015), with the variance of their outputs.
    Raises ValueError for another depth, variant or width.
    """

    def __init__(
        self,
        in_channels: int = 3,
        depth: int = 50,
        variant: Variant = "a",
        width: int = 64,
        zero_gamma: bool = False,
        small: bool = False,
    ):
        super().__init__()
        if depth not in BLOCKS:
            raise ValueError(f"depth must be one of {', '.join(map(str, BLOCKS))}, got {depth}")
        if variant not in ("a", "b", "c", "d"):
            raise ValueError(f"variant must be one of a, b, c, d, got '{variant}'")
        if width < 2 or width % 2:
            raise ValueError(f"width must be a positive even number, got {width}")
        self.stem = _stem(in_channels, width, variant in ("c", "d"), small)
        channels = width
        for number, count in enumerate(BLOCKS[depth]):
            inner, blocks = width * 2**number, nn.Sequential()
            for block in range(count):
                stride = 2 if number and not block else 1
                blocks.append(Bottleneck(channels, inner, stride, variant))
                channels = EXPANSION * inner
            self.stages.append(blocks)
        self.num_features = channels
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
            elif isinstance(module, Bottleneck) and zero_gamma:
                nn.init.zeros_(module.last_scale)

    def stage_input(self, x: Tensor, number: int) -> Tensor:
        return self.stem(x) if number == 0 else x
