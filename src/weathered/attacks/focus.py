"""Where an attack on clips searches: squares on a grid of places, in some of the frames."""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import cached_property

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from torch.nn import functional as F

from weathered.attacks.base import Norm, check_count
from weathered.attacks.score_based import ScoreAttack
from weathered.core.facts import Traits

PATCH_SHARE = 65 / 112
"""Side of a square as a share of the shorter side of a frame, where none is given."""


class Regions:
    """Squares of a clip (T, C, H, W): `grid` x `grid` places, which begin at floor(a (H - patch)), a = 0, ..., 1.

    patch: side in pixels, None for 65 of 112 of the shorter side. frames: least and most of them that hold a square; of
    a clip with fewer the most is T. Raises ValueError for what is no clip of at least two frames, a square larger than
    a frame, or a clip with fewer frames than the least.
    """

    def __init__(
        self,
        shape: Sequence[int],
        patch: int | None = None,
        grid: int = 7,
        frames: Sequence[int] = (2, 10),
    ):
        check_regions(patch, grid, frames)
        if len(shape) != 4 or shape[0] < 2:
            raise ValueError(f"this attack needs clips (B, T, C, H, W), T >= 2, got inputs of shape {tuple(shape)}")
        self.count, self.channels, self.height, self.width = shape
        shorter = min(self.height, self.width)
        self.patch = max(1, round(PATCH_SHARE * shorter)) if patch is None else patch
        if self.patch > shorter:
            raise ValueError(f"patch must be in [1, {shorter}] for {self.height}x{self.width} frames, got {self.patch}")
        self.least, self.most = frames[0], min(frames[1], self.count)
        if self.least > self.count:
            raise ValueError(f"frames must be at most {self.count}, those of the clip, got at least {self.least}")
        share = torch.linspace(0, 1, grid, dtype=torch.float64) if grid > 1 else torch.zeros(1, dtype=torch.float64)
        # a whole number may come out a hair below
        tops, lefts = (((s - self.patch) * share + 1e-9).floor().long() for s in (self.height, self.width))
        self.corners: Int[Tensor, "places 2"] = torch.cartesian_prod(tops, lefts)

    @property
    def places(self) -> int:
        return len(self.corners)

    @cached_property
    def squares(self) -> Bool[Tensor, "places H W"]:
        """The pixels of each place."""
        rows, columns = torch.arange(self.height), torch.arange(self.width)
        top, left = self.corners[:, :1], self.corners[:, 1:]
        down, across = (rows >= top) & (rows < top + self.patch), (columns >= left) & (columns < left + self.patch)
        return down[:, :, None] & across[:, None]

    def mask(self, frames: Bool[Tensor, "T"], places: Int[Tensor, "T"]) -> Bool[Tensor, "T C H W"]:
        """The values of the squares at one place in each chosen frame."""
        inside = self.squares[places] & frames[:, None, None]
        return inside[:, None].expand(self.count, self.channels, self.height, self.width)

    def some_frames(self, number: int, rng: torch.Generator) -> Bool[Tensor, "T"]:
        """`number` frames, each as likely as another."""
        chosen = torch.zeros(self.count, dtype=torch.bool)
        chosen[torch.randperm(self.count, generator=rng)[:number]] = True
        return chosen

    def edges(self, clip: Float[Tensor, "T C H W"]) -> Float[Tensor, "T places"]:
        """How strongly values change from pixel to pixel in each square, as a share of the largest; 0 without any."""
        across, down = (clip.diff(dim=axis).abs().sum(1, keepdim=True) for axis in (3, 2))
        change = F.pad(across, (0, 1)) + F.pad(down, (0, 0, 0, 1))
        means = F.avg_pool2d(change, self.patch, stride=1)[:, 0]
        found = means[:, self.corners[:, 0], self.corners[:, 1]]
        return found / found.max().clamp_min(torch.finfo(found.dtype).tiny)


def check_regions(patch: int | None, grid: int, frames: Sequence[int]) -> None:
    """Raise ValueError for a side, a grid or numbers of frames that fit no clip."""
    if patch is not None:
        check_count("patch", patch)
    check_count("grid", grid)
    if len(frames) != 2 or not 1 <= frames[0] <= frames[1] or not all(math.isfinite(f) for f in frames):
        raise ValueError(f"frames must be the least and the most, 1 <= least <= most, got {list(frames)}")


class FocusedAttack(ScoreAttack):
    """Base of attacks that search one square in each of a few frames. Clips (B, T, C, H, W) only.

    patch: side of the square, 65 of 112 of the shorter side by default. grid: places along each side. frames: least and
    most frames of a step. The rest as in `ScoreAttack`.
    """

    traits = Traits(needs={"clip": "it chooses frames"})

    def __init__(
        self,
        epsilon: float = 0.05,
        norm: Norm = "linf",
        queries: int | None = None,
        samples: int = 60,
        sigma: float = 1e-3,
        step_size: float | None = None,
        min_step_size: float | None = None,
        targeted: bool = False,
        patch: int | None = None,
        grid: int = 7,
        frames: Sequence[int] = (2, 10),
    ):
        super().__init__(epsilon, norm, queries, samples, sigma, step_size, min_step_size, targeted)
        check_regions(patch, grid, frames)
        self.patch, self.grid, self.frames = patch, grid, tuple(frames)

    def regions(self, shape: Sequence[int]) -> Regions:
        """The squares of a clip (T, C, H, W)."""
        return Regions(shape, self.patch, self.grid, self.frames)

    def check_shape(self, shape: torch.Size) -> None:
        self.regions(shape)
