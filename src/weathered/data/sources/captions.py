"""`captions:N`: generated images of one object each with a caption of five words; for trials and tests.

An object has one of 4 shapes, 6 colours, 9 places and 2 sizes, 432 combinations in all, and stands on coloured noise.
The caption names them all, as in "small red disc top left". The class of an image is its shape.
"""

from itertools import product

import torch
from jaxtyping import Bool, Int
from torch import Tensor

from weathered.core.errors import DataError
from weathered.core.rng import generator
from weathered.core.tokens import WordTokeniser
from weathered.data.dataset import Dataset
from weathered.data.sources.columns import with_captions
from weathered.data.sources.options import ReadOptions, refuse_columns

SIZE = 32
SIZES = {"small": 3.5, "large": 5.5}
"""Half of an object's height, in pixels."""

COLOURS = {
    "red": (0.9, 0.1, 0.1),
    "green": (0.1, 0.8, 0.1),
    "blue": (0.1, 0.2, 0.9),
    "yellow": (0.9, 0.9, 0.1),
    "purple": (0.7, 0.1, 0.8),
    "cyan": (0.1, 0.9, 0.9),
}
SHAPES = ("disc", "square", "triangle", "cross")
ROWS = {"top": 6.0, "middle": 15.5, "bottom": 25.0}
COLUMNS = {"left": 6.0, "center": 15.5, "right": 25.0}
COMBINATIONS = tuple(product(SIZES, COLOURS, SHAPES, ROWS, COLUMNS))
VOCABULARY = tuple(sorted({word for combination in COMBINATIONS for word in combination}))

NOISE = 0.15
MOST = 100_000


def read_captions(rest: str, options: ReadOptions) -> Dataset:
    """N images (3, 32, 32) uint8 with captions; 432 without a number, each combination once. The same for the same N.

    No combination occurs twice before all have occurred. Raises DataError unless N is a whole number in [2, 100000].
    """
    if rest and not (rest.isascii() and rest.isdigit() and 2 <= int(rest) <= MOST):
        raise DataError(f"'captions' takes a number of images in [2, {MOST}], as in captions:400, got '{rest}'.")
    refuse_columns("captions", options)
    size = int(rest) if rest else len(COMBINATIONS)
    rng = generator(int(options.test), "captions", size)
    rounds = -(-size // len(COMBINATIONS))
    drawn = torch.cat([torch.randperm(len(COMBINATIONS), generator=rng) for _ in range(rounds)])[:size]
    chosen = [COMBINATIONS[number] for number in drawn.tolist()]
    shapes = torch.tensor([SHAPES.index(shape) for _, _, shape, _, _ in chosen])
    half = torch.tensor([SIZES[name] for name, *_ in chosen])
    middle = torch.tensor([(ROWS[row], COLUMNS[column]) for *_, row, column in chosen])
    middle += torch.randint(-1, 2, middle.shape, generator=rng)
    colours = torch.tensor([COLOURS[colour] for _, colour, *_ in chosen])
    images = torch.full((size, 3, SIZE, SIZE), 0.5)
    images = torch.where(_inside(shapes, middle, half)[:, None], colours[:, :, None, None], images)
    images += torch.randn(images.shape, generator=rng) * NOISE
    pixels = images.clamp_(0, 1).mul_(255).round_().to(torch.uint8)
    dataset = Dataset.of(pixels, shapes, SHAPES, name="captions")
    return with_captions(dataset, [" ".join(names) for names in chosen], WordTokeniser(VOCABULARY))


def _inside(shapes: Int[Tensor, "N"], middle: Tensor, half: Tensor) -> Bool[Tensor, "N H W"]:
    """Which pixels belong to the object. middle (N, 2): its row and column."""
    place = torch.arange(SIZE)
    down = ((place - middle[:, :1]) / half[:, None])[:, :, None]
    across = ((place - middle[:, 1:]) / half[:, None])[:, None]
    far, near = torch.maximum(down.abs(), across.abs()), torch.minimum(down.abs(), across.abs())
    kinds = (
        down**2 + across**2 <= 1,
        far <= 0.85,
        (down.abs() <= 1) & (across.abs() <= (down + 1) / 2),
        (far <= 1) & (near <= 0.3),
    )
    return torch.stack(kinds)[shapes, torch.arange(len(shapes))]
