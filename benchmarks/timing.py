"""Side-by-side timing: interleaved repeats in one process, medians of ratios, outputs compared first."""

import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Row:
    """One comparison. ratio: peer's time over ours, above 1 where we are faster; target: what it should reach."""

    what: str
    peer: str
    ours_ms: float
    peer_ms: float
    ratio: float
    target: float
    n: int

    @property
    def verdict(self) -> str:
        return "reached" if self.ratio >= self.target else "missed"


def side_by_side(
    what: str,
    peer: str,
    ours: Callable[[], Any],
    theirs: Callable[[], Any],
    target: float,
    repeats: int = 30,
    inner: int = 1,
    warmup: int = 3,
) -> Row:
    """Run the two in turn, the order swapped each time, and take the median of the ratios pair by pair.

    inner: calls per measurement, for short functions.
    """
    for _ in range(warmup):
        ours()
        theirs()
    pairs = []
    for number in range(repeats):
        if number % 2:
            second, first = timed(theirs, inner), timed(ours, inner)
        else:
            first, second = timed(ours, inner), timed(theirs, inner)
        pairs.append((first, second))
    ratio = statistics.median(second / first for first, second in pairs)
    ours_ms, peer_ms = (1000 * statistics.median(values) / inner for values in zip(*pairs, strict=True))
    return Row(what, peer, ours_ms, peer_ms, ratio, target, repeats)


def timed(function: Callable[[], Any], inner: int) -> float:
    begun = time.perf_counter()
    for _ in range(inner):
        function()
    return time.perf_counter() - begun
