"""Warm-up: a learning rate that rises linearly at the start of training.

Source: Goyal et al., "Accurate, Large Minibatch SGD", 2017, as taken up by He et al., "Bag of Tricks for Image
Classification with Convolutional Neural Networks", CVPR 2019. In step i of the first m the rate is lr * i / m,
counted from 1, so the first step already moves and the m-th has all of lr; the schedule of the run begins there.
Limit: a share below that of one step is no warm-up.
"""

from dataclasses import replace

from weathered.core.settings import Settings
from weathered.tricks.base import Trick


class WarmUp(Trick):
    """The learning rate rises linearly over the first `share` of training, step by step.

    share in (0, 1): by default 5 of 120 epochs, as in the paper. Raises ValueError for any other.
    """

    changes = "warmup"

    def __init__(self, share: float = 5 / 120):
        if not 0 < share < 1:
            raise ValueError(f"share must be in (0, 1), got {share}")
        self.share = share

    def settings(self, settings: Settings) -> Settings:
        """Settings with `warmup`."""
        return replace(settings, warmup=self.share)
