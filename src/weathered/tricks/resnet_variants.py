"""ResNet-B, -C and -D: where a residual network halves its maps, and how its stem looks.

Source: He et al., "Bag of Tricks for Image Classification with Convolutional Neural Networks", CVPR 2019. B: the
stride of a branch is on its 3x3 convolution. C: as B, and three 3x3 make the stem. D: as C, and the shortcut averages
before its 1x1. The blocks are in `weathered.nn.resnet`, whose own default is A; torchvision's and timm's ResNets are B.
"""

from weathered.tricks.base import Trick, with_option


class _Variant(Trick):
    changes = "the model's variant"
    variant: str

    def model(self, spec: str) -> str:
        """The model with this variant. Raises Incompatible unless it is a resnet without another."""
        return with_option(spec, "variant", self.variant, f"resnet-{self.variant}")


class ResNetB(_Variant):
    """The model `resnet` in variant B: the stride of a branch is on its 3x3 convolution."""

    variant = "b"


class ResNetC(_Variant):
    """The model `resnet` in variant C: B, with three 3x3 convolutions as its stem."""

    variant = "c"


class ResNetD(_Variant):
    """The model `resnet` in variant D: C, with shortcuts that average before they halve."""

    variant = "d"
