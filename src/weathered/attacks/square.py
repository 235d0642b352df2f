"""Square attack: a random search that asks the model for its answers alone, so that hidden gradients do not help it.

Source: Andriushchenko et al., "Square Attack: a query-efficient black-box adversarial attack via random search", ECCV
2020, the Linf version, with the schedule of the authors' code.
It begins with vertical stripes x +- epsilon. Each query sets a random square, of a random place and one sign for each
channel, to x +- epsilon and keeps that where the margin of a wrong class over the label grows. The area of the square
falls from `area` of the image in steps of a half, at the queries 10, 50, 200, 500, 1000, 2000, 4000, 6000 and 8000 of
10,000, stretched to the number given.
Limits: epsilon = 0 gives x; the perturbation is +-epsilon at each pixel, cut at 0 and 1.
"""

from __future__ import annotations

import math

import torch
from jaxtyping import Float
from torch import Tensor, nn

from weathered.attacks.base import Attack, Norm, Passes, Search, check_count, margin
from weathered.core.facts import Traits

HALVINGS = (10, 50, 200, 500, 1000, 2000, 4000, 6000, 8000)
"""Queries of 10,000 after which the area halves."""


def side_of(query: int, queries: int, area: float, height: int, width: int) -> int:
    """The side in pixels of the square of a query, counted from 0; at least 1, at most the shorter side."""
    place = int(query / queries * 10_000)
    share = area / 2 ** sum(place > mark for mark in HALVINGS)
    return min(max(round(math.sqrt(share * height * width)), 1), height, width)


class Square(Attack):
    """Random search by squares. queries >= 1: forward passes for each image. area in (0, 1]: first square's share.

    epsilon, early_stop: as in `Attack`; the norm is linf. Images (B, C, H, W) only.
    """

    norms = ("linf",)
    traits = Traits(needs={"image": "it changes squares of images"})

    def __init__(
        self,
        epsilon: float = 8 / 255,
        norm: Norm = "linf",
        queries: int = 5000,
        area: float = 0.8,
        early_stop: bool = True,
    ):
        super().__init__(epsilon, norm, early_stop)
        check_count("queries", queries)
        if not 0 < area <= 1:
            raise ValueError(f"area must be in (0, 1], got {area}")
        self.queries, self.area = queries, area

    def passes(self) -> Passes:
        return Passes(forward=self.queries, backward=0)

    @torch.no_grad()
    def search(self, model: nn.Module, found: Search, logits: Float[Tensor, "B C"], rng: torch.Generator) -> None:
        x = found.whole.x
        if x.ndim != 4:
            raise ValueError(f"Square needs images (B, C, H, W), got {tuple(x.shape)}")
        size, channels, height, width = x.shape
        ball = found.ball
        z = self._ends(ball.low, ball.high, self._signs(rng, (size, channels, 1, width), x)[found.open])
        value = torch.full_like(z[:, 0, 0, 0], -torch.inf)
        candidate = z
        for query in range(self.queries):
            if query:
                side = side_of(query, self.queries, self.area, height, width)
                window = self._windows(rng, size, height, width, side, x.device)[found.open]
                ends = self._ends(ball.low, ball.high, self._signs(rng, (size, channels, 1, 1), x)[found.open])
                candidate = torch.where(window, ends, z)
            answers: Tensor = model(candidate)
            gained = margin(answers, found.targets)
            better = gained > value
            z, value = torch.where(better.view(-1, 1, 1, 1), candidate, z), torch.where(better, gained, value)
            if (stays := found.note(candidate, answers)) is not None:
                if not len(found.open):
                    return
                z, value, ball = z[stays], value[stays], found.ball

    @staticmethod
    def _signs(rng: torch.Generator, shape: tuple[int, ...], like: Tensor) -> Tensor:
        """Whether to go up, for all rows, so that draws do not depend on which are open."""
        return torch.randint(2, shape, generator=rng, device=rng.device).bool().to(like.device)

    @staticmethod
    def _ends(low: Tensor, high: Tensor, up: Tensor) -> Tensor:
        return torch.where(up, high, low)

    @staticmethod
    def _windows(rng: torch.Generator, size: int, height: int, width: int, side: int, device: torch.device) -> Tensor:
        """Where the square of each row lies, (size, 1, H, W) bool."""
        top = torch.randint(height - side + 1, (size, 1), generator=rng, device=rng.device).to(device)
        left = torch.randint(width - side + 1, (size, 1), generator=rng, device=rng.device).to(device)
        down, across = torch.arange(height, device=device), torch.arange(width, device=device)
        rows, columns = (down >= top) & (down < top + side), (across >= left) & (across < left + side)
        return rows[:, None, :, None] & columns[:, None, None, :]
