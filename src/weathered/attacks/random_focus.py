"""Random focus: the search of AstFocus in frames and squares drawn anew for each step, in place of learned ones.

What AstFocus must beat: the same budget, the same steps, no agents. See `astfocus` and `score_based`.
"""

from __future__ import annotations

import torch
from torch import Tensor

from weathered.attacks.focus import FocusedAttack, Regions
from weathered.attacks.score_based import Focus


class Drawn:
    """A number of frames drawn evenly from the least to the most, so many frames, and a place in each."""

    def __init__(self, regions: Regions, x: Tensor, rng: torch.Generator):
        self.regions, self.device, self.rng = regions, x.device, rng

    def choose(self) -> Tensor:
        regions = self.regions
        number = int(torch.randint(regions.least, regions.most + 1, (), generator=self.rng))
        frames = regions.some_frames(number, self.rng)
        places = torch.randint(regions.places, (regions.count,), generator=self.rng)
        return regions.mask(frames, places).to(self.device)

    def learn(self, reward: float) -> None:
        """Nothing is learnt."""


class RandomFocus(FocusedAttack):
    """Noise in one square of each of a few frames, all drawn at random. Clips (B, T, C, H, W) only.

    patch, grid, frames: as in `FocusedAttack`. The rest as in `ScoreAttack`.
    """

    def focus(self, x: Tensor, rng: torch.Generator) -> Focus:
        return Drawn(self.regions(x.shape), x, rng)
