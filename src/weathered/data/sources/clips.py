"""`clips:N`: generated clips of noise in which one of four textures shows for a few frames; for trials and tests.

A clip has 16 grey frames of 24x24 pixels, 0.5 plus normal noise of 0.05. In 5 frames in a row a texture of 5x5 pixels,
of +0.12 and -0.12, lies at a random place, the same in each of them. The class is the texture.
"""

import torch
from jaxtyping import Float
from torch import Tensor

from weathered.core.errors import DataError
from weathered.core.rng import generator
from weathered.data.dataset import Dataset
from weathered.data.sources.options import ReadOptions, refuse_columns

FRAMES, SIZE = 16, 24
SIDE, SHOWN = 5, 5
NOISE, AMPLITUDE = 0.05, 0.12
TEXTURES = ("rows", "columns", "checks", "rings")
MOST = 100_000


def textures() -> Float[Tensor, "4 5 5"]:
    """The textures, of values -1 and 1, in the order of their names."""
    row, column = torch.meshgrid(torch.arange(SIDE), torch.arange(SIDE), indexing="ij")
    ring = torch.maximum((row - SIDE // 2).abs(), (column - SIDE // 2).abs())
    return 1.0 - 2 * (torch.stack([row, column, row + column, ring]) % 2)


def read_clips(rest: str, options: ReadOptions) -> Dataset:
    """N clips (16, 1, 24, 24) uint8 of 4 classes; 400 without a number. The same for the same N.

    Raises DataError unless N is a whole number in [2, 100000].
    """
    if rest and not (rest.isascii() and rest.isdigit() and 2 <= int(rest) <= MOST):
        raise DataError(f"'clips' takes a number of clips in [2, {MOST}], as in clips:200, got '{rest}'.")
    refuse_columns("clips", options)
    size = int(rest) if rest else 400
    rng = generator(int(options.test), "clips", size)
    labels = torch.randint(len(TEXTURES), (size,), generator=rng)
    first = torch.randint(FRAMES - SHOWN + 1, (size, 1), generator=rng)
    corner = torch.randint(SIZE - SIDE + 1, (2, size, 1), generator=rng)
    clips = torch.empty(size, FRAMES, 1, SIZE, SIZE, dtype=torch.uint8)
    frame, inside = torch.arange(FRAMES), torch.arange(SIDE)
    shown = (frame >= first) & (frame < first + SHOWN)
    signs = textures()
    # a block at a time, as noise takes four times the room of clips
    for rows in torch.arange(size).split(1000):
        x = 0.5 + NOISE * torch.randn(len(rows), FRAMES, SIZE, SIZE, generator=rng)
        drawn = torch.zeros(len(rows), SIZE, SIZE)
        down, across = (place[rows] + inside for place in corner)
        drawn[torch.arange(len(rows))[:, None, None], down[:, :, None], across[:, None]] = signs[labels[rows]]
        x += AMPLITUDE * shown[rows, :, None, None] * drawn[:, None]
        clips[rows] = x.clamp_(0, 1).mul_(255).round_().to(torch.uint8)[:, :, None]
    return Dataset.of(clips, labels, TEXTURES, name="clips")
