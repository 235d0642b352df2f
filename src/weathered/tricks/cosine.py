"""Cosine decay: the learning rate falls along half a cosine, from its peak to 0.

Source: Loshchilov and Hutter, "SGDR", ICLR 2017, as taken up by He et al., "Bag of Tricks for Image Classification with
Convolutional Neural Networks", CVPR 2019. Of T steps after warm-up, step t has the rate lr / 2 (1 + cos(pi t / T)),
t from 0: lr at the start, half of it in the middle. The last step is the one before 0 is reached; the authors' code
divides by T - 1, so that its last step does nothing.
"""

from dataclasses import replace

from weathered.core.settings import Settings
from weathered.tricks.base import Trick


class CosineDecay(Trick):
    """The learning rate falls along half a cosine after warm-up, whatever schedule the recipe names."""

    changes = "schedule"

    def settings(self, settings: Settings) -> Settings:
        """Settings with the schedule `cosine`."""
        return replace(settings, schedule="cosine")
