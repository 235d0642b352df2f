"""TrivialAugment: one random operation at a random strength on each image, and nothing to tune.

Source: Müller and Hutter, "TrivialAugment: Tuning-free Yet State-of-the-Art Data Augmentation", ICCV 2021, in their
wide ranges as torchvision.transforms.v2 has them. Each image draws one of the fourteen operations with chance 1/14 and
one of 31 levels, 0/30 to 30/30 of the full strength: shear 0.99, translation 32 pixels, rotation 135 degrees, blends
1 +- 0.99, posterize 6 bits, solarize the whole range.
Limits: a sample that draws the identity or level 0 stays, but for autocontrast and equalize. A translation by the whole
side leaves a black image, which the source's range reaches on its 32 x 32 images; here the range ends at the side of
smaller ones.
"""

import torch
from jaxtyping import Float, Int
from torch import Tensor

from weathered.augment.operations import LEVELS, TRAITS, check_images, draw, operate
from weathered.core.batch import Batch
from weathered.core.roles import BatchTransform

FARTHEST = 32
"""Pixels of the largest translation."""


class TrivialAugment(BatchTransform):
    """Apply one operation of fourteen to each image, at a strength drawn from the whole range.

    Images have 1 or 3 channels, uint8 or floating point in [0, 1], and stay what they are; labels are untouched.
    Parts that paste images into one another must come after it.
    """

    accepts_uint8 = True
    traits = TRAITS

    def draws(
        self, size: int, shape: tuple[int, int], rng: torch.Generator
    ) -> tuple[Int[Tensor, "B"], Float[Tensor, "B"]]:
        """The operations and strengths of `size` images (H, W)."""
        right, down = min(FARTHEST, shape[1]), min(FARTHEST, shape[0])
        most = 0, 0.99, 0.99, right, down, 135, 0.99, 0.99, 0.99, 0.99, 6, 1, 0, 0
        levels = torch.randint(LEVELS + 1, (size,), generator=rng, device=rng.device)
        return draw(size, levels, most, rng)

    def apply(self, batch: Batch, rng: torch.Generator) -> Batch:
        x = batch.x
        check_images(x)
        operation, strength = self.draws(len(x), (x.shape[2], x.shape[3]), rng)
        return batch.replace(x=operate(x, operation.to(x.device), strength.to(x.device)))
