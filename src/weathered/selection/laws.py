"""Laws of scalar features in each cell, which is one class in one domain, and their distance in total variation.

A law is estimated with a Gaussian kernel: samples are counted on a grid, and the counts are convolved once. With n the
size of the largest cell, the bandwidth is 1.06 n^(-1/5) times a scale, which is the mean over cells of the standard
deviation within a cell: of that feature, or over all features as well. The grid of a feature reaches 6 bandwidths
beyond its samples, with a step of at most a quarter of the bandwidth. Total variation is 1/2 sum |p - q|, in [0, 1].
Limits: equal samples are 0 apart, samples with a gap of many bandwidths between them 1. In between the estimate is too
low for laws far apart, by smoothing, and too high for equal ones, by chance, the more so the fewer samples there are.
"""

import warnings
from collections.abc import Iterator
from itertools import combinations
from typing import Literal, NamedTuple

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

Scaling = Literal["feature", "global"]

SHORTEST_SCALE = 1e-3
"""Of a feature's range: no scale is shorter, so that a grid has no more than some ten thousand points."""

MARGIN = 6
STEPS = 4
"""Least steps of the grid in a bandwidth."""

VALUES_AT_ONCE = 2**22


class Cells(NamedTuple):
    """The cells of N samples. number (N,) = e K + y for the e-th of `domains` (E,) and the y-th of `classes` (K,).

    counts (E, K): samples. present (E, K): whether they are enough.
    """

    number: Int[Tensor, "N"]
    domains: Int[Tensor, "E"]
    classes: Int[Tensor, "K"]
    counts: Int[Tensor, "E K"]
    present: Bool[Tensor, "E K"]

    @property
    def missing(self) -> list[tuple[int, int, int]]:
        """(domain, class, samples) of each cell with too few."""
        return [
            (int(self.domains[e]), int(self.classes[y]), int(self.counts[e, y]))
            for e, y in (~self.present).nonzero().tolist()
        ]


def cells_of(labels: Int[Tensor, "N"], domains: Int[Tensor, "N"], min_count: int) -> Cells:
    """The cells of samples, of which those with fewer than `min_count` >= 2 are not present.

    Raises ValueError unless labels and domains are (N,) whole numbers >= 0 with N >= 1, and where no cell is present.
    """
    if min_count < 2:
        raise ValueError(f"min_count must be at least 2, got {min_count}")
    for name, values in (("labels", labels), ("domains", domains)):
        if values.ndim != 1 or values.is_floating_point() or len(values) != len(labels) or not len(values):
            raise ValueError(
                f"{name} must be ({len(labels)},) whole numbers, at least one, got {tuple(values.shape)} of "
                f"{values.dtype}"
            )
        if int(values.min()) < 0:
            raise ValueError(f"{name} must be 0 or above, got {int(values.min())} at position {int(values.argmin())}")
    kinds, y = labels.unique(return_inverse=True)
    places, e = domains.unique(return_inverse=True)
    number = e * len(kinds) + y
    counts = torch.bincount(number, minlength=len(places) * len(kinds)).view(len(places), len(kinds))
    present = counts >= min_count
    if not present.any():
        raise ValueError(
            f"every class has fewer than min_count = {min_count} samples in every domain, {int(counts.max())} at most; "
            "give more samples, or a smaller min_count at the price of more noise"
        )
    return Cells(number, places, kinds, counts, present)


def warn_of_missing(cells: Cells, min_count: int) -> None:
    """Warn of the cells that are left out, and of a single domain."""
    if missing := cells.missing:
        listing = ", ".join(f"class {y} in domain {e} ({n} samples)" for e, y, n in missing[:5])
        more = f" and {len(missing) - 5} more" if len(missing) > 5 else ""
        warnings.warn(f"left out for fewer than {min_count} samples: {listing}{more}", stacklevel=3)
    if len(cells.domains) < 2:
        warnings.warn("there is one training domain, so the variation of every feature is 0", stacklevel=3)


def equal_cells(
    labels: Int[Tensor, "N"], domains: Int[Tensor, "N"], min_count: int, rng: torch.Generator
) -> Int[Tensor, "M"]:
    """Positions, ascending, of equally many samples from each cell that is present: as many as the smallest has.

    rng: on the CPU. Raises ValueError as `cells_of`.
    """
    cells = cells_of(labels, domains, min_count)
    each = int(cells.counts[cells.present].min())
    shuffled = torch.randperm(len(labels), generator=rng)
    order = shuffled[cells.number[shuffled].argsort(stable=True)]
    counts = cells.counts.flatten()
    rank = torch.arange(len(order)) - (counts.cumsum(0) - counts)[cells.number[order]]
    return order[(rank < each) & cells.present.flatten()[cells.number[order]]].sort().values


def total_variation(p: Float[Tensor, "*B G"], q: Float[Tensor, "*B G"]) -> Float[Tensor, "*B"]:
    """1/2 sum |p - q| over the last axis, in [0, 1], for laws on the same grid."""
    return ((p - q).abs().sum(-1) / 2).clamp_max(1)


def variation_of(laws: Float[Tensor, "E K D G"], present: Bool[Tensor, "E K"]) -> Float[Tensor, "D"]:
    """Largest distance of a class's laws in two domains, (D,) in [0, 1]; 0 where no class is present in two."""
    found = laws.new_zeros(laws.shape[2])
    for a, b in combinations(range(len(laws)), 2):
        both = present[a] & present[b]
        if both.any():
            found = torch.maximum(found, total_variation(laws[a, both], laws[b, both]).amax(0))
    return found


def informativeness_of(laws: Float[Tensor, "E K D G"], present: Bool[Tensor, "E K"]) -> Float[Tensor, "D"]:
    """Mean over pairs of classes of the smallest distance of their laws in a domain, (D,) in [0, 1].

    Pairs that no domain has both of are left out. Raises ValueError if there are no others.
    """
    total, pairs = laws.new_zeros(laws.shape[2]), 0
    for a, b in combinations(range(laws.shape[1]), 2):
        both = present[:, a] & present[:, b]
        if both.any():
            total, pairs = total + total_variation(laws[both, a], laws[both, b]).amin(0), pairs + 1
    if not pairs:
        raise ValueError("informativeness needs two classes with enough samples in one domain")
    return total / pairs


def laws_in_blocks(
    features: Float[Tensor, "N D"], cells: Cells, scaling: Scaling = "feature", grid: int = 512
) -> Iterator[tuple[Int[Tensor, "B"], Float[Tensor, "E K B G"]]]:
    """The laws of some features at a time: their positions (B,), and probabilities (E, K, B, G) on a grid of G >= grid
    points, 0 in cells that are not present. Memory: the features in float64, and one block.

    scaling: whether the bandwidth follows each feature, or all of them together. grid in [16, 65536].
    Raises ValueError if the features are not (N, D) with D >= 1 and finite, or an argument is out of range.
    """
    if scaling not in ("feature", "global"):
        raise ValueError(f"scaling must be 'feature' or 'global', got {scaling!r}")
    if not 16 <= grid <= 65536:
        raise ValueError(f"grid must be in [16, 65536], got {grid}")
    if features.ndim != 2 or len(features) != len(cells.number) or not features.shape[1]:
        raise ValueError(f"features must be ({len(cells.number)}, D) with D >= 1, got {tuple(features.shape)}")
    if not torch.isfinite(features).all():
        row = int((~torch.isfinite(features)).any(1).nonzero()[0])
        raise ValueError(f"features must be finite, row {row} holds NaN or infinity")
    rows = cells.present.flatten()[cells.number]
    # cells that are present, numbered without gaps
    place = cells.present.flatten().long().cumsum(0) - 1
    x, cell, size = features[rows].double(), place[cells.number[rows]], int(cells.present.sum())
    low, high = x.amin(0), x.amax(0)
    scale = _scales(x, cell, size, high - low, scaling)
    width = 1.06 * int(cells.counts[cells.present].max()) ** -0.2 * scale
    needed = STEPS * ((high - low) / width + 2 * MARGIN) + 1
    points = torch.full_like(needed, 2).pow(needed.log2().ceil()).long().clamp_min(grid)
    for count in points.unique().tolist():
        alike = (points == count).nonzero()[:, 0]
        step = (high - low + 2 * MARGIN * width) / (count - 1)
        for block in alike.split(max(1, VALUES_AT_ONCE // max(size * count, len(x)))):
            start = low[block] - MARGIN * width[block]
            bins = ((x[:, block] - start) / step[block]).round().long().clamp(0, count - 1)
            known = _smoothed(bins, cell, size, (width / step)[block], count)
            laws = known.new_zeros(cells.present.numel(), len(block), count)
            laws[cells.present.flatten()] = known
            yield block, laws.view(*cells.present.shape, len(block), count)


def _scales(x: Tensor, cell: Tensor, size: int, spread: Tensor, scaling: Scaling) -> Float[Tensor, "D"]:
    counts = torch.bincount(cell, minlength=size)[:, None]
    mean = x.new_zeros(size, x.shape[1]).index_add_(0, cell, x) / counts
    square = x.new_zeros(size, x.shape[1]).index_add_(0, cell, (x - mean[cell]) ** 2) / counts
    deviation = square.sqrt()
    scale = deviation.mean(0) if scaling == "feature" else deviation.mean().expand(x.shape[1])
    # a constant feature has no scale, and any will do
    return torch.where(spread > 0, torch.maximum(scale, SHORTEST_SCALE * spread), torch.ones_like(spread))


def _smoothed(
    bins: Int[Tensor, "M B"], cell: Int[Tensor, "M"], size: int, width: Float[Tensor, "B"], points: int
) -> Float[Tensor, "C B G"]:
    """Counts in bins as shares of each cell, convolved with a Gaussian of a width in steps."""
    features = bins.shape[1]
    flat = (cell[:, None] * features + torch.arange(features)) * points + bins
    counts = torch.bincount(flat.flatten(), minlength=size * features * points).view(size, features, points)
    shares = counts.double() / torch.bincount(cell, minlength=size)[:, None, None]
    distance = torch.arange(points)
    # the convolution goes round, which the margin on both sides makes harmless
    distance = torch.minimum(distance, points - distance)
    kernel = torch.exp(-((distance / width[:, None]) ** 2) / 2)
    kernel = kernel / kernel.sum(1, keepdim=True)
    return torch.fft.irfft(torch.fft.rfft(shares) * torch.fft.rfft(kernel), n=points).clamp_min(0)
