"""Low precision: passes in bfloat16, weights and updates in float32.

Source: Micikevicius et al., "Mixed Precision Training", ICLR 2018, as taken up by He et al., "Bag of Tricks for Image
Classification with Convolutional Neural Networks", CVPR 2019. The paper computes in float16 and scales the loss,
because small gradients are 0 there. bfloat16 has the range of float32 and needs no scale, with three bits less of
precision. Float16 is not offered.
"""

from dataclasses import replace

from weathered.core.settings import Settings
from weathered.tricks.base import Trick


class LowPrecision(Trick):
    """Forward and backward passes in bfloat16; weights, gradients and updates stay float32."""

    changes = "precision"

    def settings(self, settings: Settings) -> Settings:
        """Settings with the precision `bf16-mixed`."""
        return replace(settings, precision="bf16-mixed")
