"""RandAugment: a fixed number of random operations on each image, all at one magnitude.

Source: Cubuk et al., "RandAugment: Practical automated data augmentation with a reduced search space", NeurIPS 2020,
with the operations and ranges of torchvision.transforms.v2. `num_ops` operations are drawn for each image, each of the
fourteen with chance 1/14 and with replacement, and applied in turn at magnitude / 30 of the full strength: shear 0.3,
translation 150/331 of the side, rotation 30 degrees, blends 1 +- 0.9, posterize 4 bits, solarize the whole range.
Limits: at magnitude 0 only autocontrast and equalize change an image.
"""

import torch
from jaxtyping import Float, Int
from torch import Tensor

from weathered.augment.operations import LEVELS, TRAITS, check_images, draw, operate
from weathered.core.batch import Batch
from weathered.core.roles import BatchTransform


class RandAugment(BatchTransform):
    """Apply `num_ops` operations to each image, each drawn by itself from fourteen, at the strength `magnitude`.

    num_ops: whole number >= 1. magnitude in [0, 30]; the source tunes both, and takes larger ones for larger networks
    and data. Images have 1 or 3 channels, uint8 or floating point in [0, 1], and stay what they are; labels are
    untouched. Parts that paste images into one another must come after it.
    """

    accepts_uint8 = True
    traits = TRAITS

    def __init__(self, num_ops: int = 2, magnitude: float = 9.0):
        if num_ops < 1:
            raise ValueError(f"num_ops must be >= 1, got {num_ops}; to switch it off, leave the part out")
        if not 0 <= magnitude <= LEVELS:
            raise ValueError(f"magnitude must be in [0, {LEVELS}], got {magnitude}")
        self.num_ops, self.magnitude = num_ops, magnitude

    def draws(
        self, size: int, shape: tuple[int, int], rng: torch.Generator
    ) -> list[tuple[Int[Tensor, "B"], Float[Tensor, "B"]]]:
        """The operations and strengths of `size` images (H, W), one pair for each of `num_ops`."""
        height, width = shape
        shift = 150 / 331
        most = 0, 0.3, 0.3, shift * width, shift * height, 30, 0.9, 0.9, 0.9, 0.9, 4, 1, 0, 0
        return [draw(size, self.magnitude, most, rng) for _ in range(self.num_ops)]

    def apply(self, batch: Batch, rng: torch.Generator) -> Batch:
        x = batch.x
        check_images(x)
        for operation, strength in self.draws(len(x), (x.shape[2], x.shape[3]), rng):
            x = operate(x, operation.to(x.device), strength.to(x.device))
        return batch.replace(x=x)
