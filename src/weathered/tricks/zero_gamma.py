"""Zero gamma: every residual block starts as its shortcut.

Source: Goyal et al., "Accurate, Large Minibatch SGD", 2017, as taken up by He et al., "Bag of Tricks for Image
Classification with Convolutional Neural Networks", CVPR 2019. The scale of the batch normalisation that ends a branch
starts at 0. In the first step the convolutions of the branch get no gradient, the scale does. With weight decay on
the scale it stays near 0, so it belongs with `no-bias-decay`; very short training never switches the branches on.
"""

from weathered.tricks.base import Trick, with_option


class ZeroGamma(Trick):
    """The last scale of each branch of the model `resnet` starts at 0."""

    changes = "the model's zero_gamma"

    def model(self, spec: str) -> str:
        """The model with `zero_gamma`. Raises Incompatible unless it is a resnet."""
        return with_option(spec, "zero_gamma", True, "zero-gamma")
