"""Clips: frames (T, C, H, W) in a row, how frames are chosen from a longer clip, and a clip as one picture."""

import numpy as np
import torch
from jaxtyping import UInt8
from torch import Tensor

SHOWN = 8
"""Frames of a clip that a picture shows."""


def evenly(count: int, frames: int) -> list[int]:
    """Positions of `frames` of `count` frames: the middle ones of as many parts of one length.

    Raises ValueError unless 1 <= frames <= count.
    """
    if not 1 <= frames <= count:
        raise ValueError(f"frames must be in [1, {count}], the frames there are, got {frames}")
    return ((np.arange(frames) + 0.5) * count / frames).astype(int).tolist()


def film_strip(clip: UInt8[Tensor, "T C H W"], most: int = SHOWN) -> UInt8[Tensor, "C H W*n"]:
    """At most `most` frames, evenly taken, side by side from left to right."""
    return torch.cat(list(clip[evenly(len(clip), min(most, len(clip)))]), dim=2)
