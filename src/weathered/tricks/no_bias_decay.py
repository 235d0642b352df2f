"""No bias decay: weight decay on weights alone.

Source: Jia et al., "Highly Scalable Deep Learning Training System with Mixed-Precision", 2018, as taken up by He et
al., "Bag of Tricks for Image Classification with Convolutional Neural Networks", CVPR 2019. Biases, and scales and
shifts of normalisation, get no decay; see `weathered.core.decay` for which those are. Limit: without weight decay it
changes nothing.
"""

from dataclasses import replace

from weathered.core.settings import Settings
from weathered.tricks.base import Trick


class NoBiasDecay(Trick):
    """Weight decay spares biases and the parameters of normalisation layers."""

    changes = "no_bias_decay"

    def settings(self, settings: Settings) -> Settings:
        """Settings with `no_bias_decay`."""
        return replace(settings, no_bias_decay=True)
