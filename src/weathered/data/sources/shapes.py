"""`shapes:N`: generated images of rectangles in a few classes, with the class of each pixel; for trials and tests.

Half of the classes are common. Each rare class has nearly the colour of a common one, so that it is easily taken for
it, and is drawn with a probability of 1 in 16. Pixels carry Gaussian noise.
"""

import torch

from weathered.core.errors import DataError
from weathered.core.rng import generator
from weathered.data.dataset import Dataset
from weathered.data.sources.options import ReadOptions, refuse_columns

SIZE = 20
CLASSES = 8
RECTANGLES = 6
RARE = 1 / 16
NOISE = 0.35
APART = 0.25
"""How far the colour of a rare class lies from that of its common one, of a range of 1."""

MOST = 100_000


def read_shapes(rest: str, options: ReadOptions) -> Dataset:
    """N images (3, 20, 20) uint8 with masks of 8 classes; 130 without a number. The same for the same N.

    Raises DataError unless N is a whole number in [2, 100000].
    """
    if rest and not (rest.isascii() and rest.isdigit() and 2 <= int(rest) <= MOST):
        raise DataError(f"'shapes' takes a number of images in [2, {MOST}], as in shapes:200, got '{rest}'.")
    refuse_columns("shapes", options)
    size = int(rest) if rest else 130
    rng = generator(int(options.test), "shapes", size)
    colours = _colours()
    common = CLASSES // 2
    masks = torch.randint(0, common, (size, 1, 1), generator=rng).expand(size, SIZE, SIZE).clone()
    across = torch.arange(SIZE)
    for _ in range(RECTANGLES):
        label = torch.randint(0, common, (size,), generator=rng)
        label += common * (torch.rand(size, generator=rng) < RARE)
        corner = torch.randint(0, SIZE - 4, (2, size), generator=rng)
        extent = torch.randint(4, SIZE // 2 + 1, (2, size), generator=rng)
        low, high = corner[..., None], (corner + extent)[..., None]
        rows, columns = (across >= low) & (across < high)
        inside = rows[:, :, None] & columns[:, None]
        masks = torch.where(inside, label[:, None, None], masks)
    noise = torch.randn(size, 3, SIZE, SIZE, generator=rng) * NOISE
    images = (colours[masks].movedim(-1, 1) + noise).clamp(0, 1).mul(255).round().to(torch.uint8)
    kinds = [f"{kind} {place}" for kind in ("common", "rare") for place in range(1, common + 1)]
    return Dataset.segmentation(images, masks.to(torch.uint8), tuple(kinds), name="shapes")


def _colours() -> torch.Tensor:
    """(8, 3) colours in [0, 1]: corners of a cube for the common classes, a point beside each for its rare one."""
    common = torch.tensor([[0.2, 0.2, 0.8], [0.8, 0.2, 0.2], [0.2, 0.8, 0.2], [0.8, 0.8, 0.8]])
    beside = common + APART * torch.tensor([[1.0, 0, -1], [-1, 1, 0], [0, -1, 1], [-1, 0, -1]])
    return torch.cat([common, beside])
