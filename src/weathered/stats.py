"""Intervals and paired comparisons: every number of the library carries its n and a 95 % interval."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from scipy import stats


class Estimate(NamedTuple):
    """A value with its interval [low, high] and the number of observations behind it."""

    value: float
    low: float
    high: float
    n: int


def mean_interval(values: Sequence[float], confidence: float = 0.95) -> Estimate:
    """Mean of repeated runs with Student's t interval.

    A single value has the interval (-inf, inf), and so have values that are all equal: a share is a count over n, so a
    few runs agree by chance, and their spread is not known to be 0.
    """
    array = np.asarray(values, dtype=float)
    if not len(array):
        raise ValueError("an interval needs at least one value")
    mean = float(array.mean())
    if _no_spread(array, np.abs(array).max()):
        return Estimate(mean, -np.inf, np.inf, len(array))
    half = float(stats.t.ppf(0.5 + confidence / 2, len(array) - 1) * stats.sem(array))
    return Estimate(mean, mean - half, mean + half, len(array))


def share_interval(values: Sequence[float], confidence: float = 0.95) -> Estimate:
    """The `mean_interval` of shares, cut to [0, 1] where it is known."""
    estimate = mean_interval(values, confidence)
    if not np.isfinite(estimate.low):
        return estimate
    return estimate._replace(low=max(0.0, estimate.low), high=min(1.0, estimate.high))


def proportion_interval(successes: float, n: int, confidence: float = 0.95) -> Estimate:
    """A share of n independent samples with Wilson's score interval (Wilson, JASA 1927)."""
    if n < 1 or not 0 <= successes <= n:
        raise ValueError(f"expected 0 <= successes <= n and n >= 1, got {successes} of {n}")
    share = successes / n
    z = float(stats.norm.ppf(0.5 + confidence / 2))
    centre = (share + z * z / (2 * n)) / (1 + z * z / n)
    half = z / (1 + z * z / n) * np.sqrt(share * (1 - share) / n + z * z / (4 * n * n))
    # at the ends the bound is the share itself, which rounding would miss by 1e-17
    low = 0.0 if successes == 0 else max(0.0, float(centre - half))
    high = 1.0 if successes == n else min(1.0, float(centre + half))
    return Estimate(share, low, high, n)


def difference_of_proportions(first: Estimate, second: Estimate) -> Estimate:
    """first - second for independent shares with Wilson's intervals (Newcombe, Statistics in Medicine 1998, method 10).

    Raises ValueError unless both values lie in their intervals and in [0, 1].
    """
    for share in (first, second):
        if not 0 <= share.low <= share.value <= share.high <= 1:
            raise ValueError(f"expected a share with an interval around it in [0, 1], got {tuple(share)}")
    value = first.value - second.value
    low = value - np.hypot(first.value - first.low, second.high - second.value)
    high = value + np.hypot(first.high - first.value, second.value - second.low)
    return Estimate(value, max(-1.0, float(low)), min(1.0, float(high)), first.n + second.n)


def sample_mean_interval(values: np.ndarray, confidence: float = 0.95) -> Estimate:
    """Mean of a per-sample quantity with the normal interval of the central limit theorem."""
    array = np.asarray(values, dtype=float)
    if not len(array):
        raise ValueError("an interval needs at least one value")
    mean = float(array.mean())
    half = (
        float(stats.norm.ppf(0.5 + confidence / 2) * array.std(ddof=1) / np.sqrt(len(array)))
        if len(array) > 1
        else np.inf
    )
    return Estimate(mean, mean - half, mean + half, len(array))


def interval_text(low: float | None, high: float | None, form: str = ".4f", unknown: str = "-") -> str:
    """An interval for a line of text, as in `[0.81, 0.84]`, or `unknown` where a side is None or infinite."""
    if low is None or high is None or not np.isfinite([low, high]).all():
        return unknown
    return f"[{low:{form}}, {high:{form}}]"


class Comparison(NamedTuple):
    """Paired difference of an arm against a baseline over the same seeds: estimate and two-sided p-value."""

    difference: Estimate
    p_value: float

    @property
    def excludes_zero(self) -> bool:
        """Whether the interval lies wholly on one side of 0."""
        return self.difference.low > 0 or self.difference.high < 0


def paired_comparison(arm: Sequence[float], baseline: Sequence[float]) -> Comparison:
    """Paired t interval and test of arm - baseline, seed by seed.

    arm, baseline: one value per seed, in the same order of seeds, finite. Where all differences are equal, up to the
    rounding of the values, the interval is infinite, as in `mean_interval`, and p is 1. Raises ValueError if lengths
    differ or a value is not finite.
    """
    if len(arm) != len(baseline):
        raise ValueError(f"a paired comparison needs the same seeds, got {len(arm)} and {len(baseline)} values")
    if not np.isfinite([*arm, *baseline]).all():
        raise ValueError(f"a paired comparison needs finite values, got {list(arm)} and {list(baseline)}")
    differences = np.asarray(arm, dtype=float) - np.asarray(baseline, dtype=float)
    estimate = mean_interval(differences.tolist())
    # differences carry the rounding of the values they are made of
    if _no_spread(differences, np.abs([*arm, *baseline]).max()):
        return Comparison(estimate._replace(low=-np.inf, high=np.inf), 1.0)
    return Comparison(estimate, float(stats.ttest_rel(arm, baseline).pvalue))


def _no_spread(values: np.ndarray, scale: float) -> bool:
    """Whether values are one, or equal up to the rounding of numbers of this size."""
    return bool(np.ptp(values) <= 1e-12 * scale)
