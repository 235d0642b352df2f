"""Linear scaling: the learning rate in proportion to the batch.

Source: Goyal et al., "Accurate, Large Minibatch SGD", 2017, as taken up by He et al., "Bag of Tricks for Image
Classification with Convolutional Neural Networks", CVPR 2019. rate = lr * batch_size / samples. Limit: a batch of
`samples` trains at lr itself. The rule is one of SGD: a batch b times as large has a gradient of the same size and
less noise, and takes b times as long a step. Adam divides by the size of the gradient, noise included, and asks for
about the square root, so it is refused here.
"""

from dataclasses import replace

from weathered.core.errors import Incompatible
from weathered.core.settings import Settings
from weathered.tricks.base import Trick


class LinearScaling(Trick):
    """Take `lr` as the learning rate of a batch of `samples`; that of the run is in proportion to its batch.

    samples: at least 1. The batch is that of all devices together. Raises ValueError for other samples.
    """

    changes = "lr_samples"

    def __init__(self, samples: int = 256):
        if samples < 1:
            raise ValueError(f"samples must be at least 1, got {samples}")
        self.samples = samples

    def settings(self, settings: Settings) -> Settings:
        """Settings with `lr_samples`. Raises Incompatible for an optimizer other than sgd."""
        if settings.optimizer != "sgd":
            raise Incompatible(
                f"linear-scaling is a rule of sgd; {settings.optimizer} asks for about the square root of the batch. "
                "Remove linear-scaling and set --lr, or use --optimizer sgd."
            )
        return replace(settings, lr_samples=self.samples)
