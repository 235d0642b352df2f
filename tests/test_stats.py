"""Intervals and paired comparisons against closed forms, and the verdicts that rest on them."""

import math

import numpy as np
import pytest
from scipy import stats as scipy_stats

from weathered.stats import interval_text, mean_interval, paired_comparison, proportion_interval, share_interval
from weathered.verification import Claim, SeedResult, conclude


def test_mean_interval_is_students():
    values = [0.5, 0.7, 0.9]
    low, high = scipy_stats.t.interval(0.95, 2, np.mean(values), scipy_stats.sem(values))
    estimate = mean_interval(values)
    assert (estimate.low, estimate.high) == pytest.approx((low, high))
    assert estimate.n == 3
    assert mean_interval([1.0]).low == -math.inf
    with pytest.raises(ValueError, match="at least one"):
        mean_interval([])


def test_equal_values_have_no_known_interval():
    """Two runs that agree do not show that all runs agree."""
    for values in ([0.9, 0.9], [0.1 + 0.2, 0.3, 0.3], [0.0, 0.0]):
        for interval in (mean_interval, share_interval):
            assert interval(values)[1:] == (-math.inf, math.inf, len(values))
    assert mean_interval([0.9, 0.9001]).low > 0.89


def test_an_interval_of_shares_stays_inside():
    estimate = share_interval([0.9, 1.0])
    assert estimate.high == 1.0
    assert estimate.low >= 0.0
    assert share_interval([0.9]) == (0.9, -math.inf, math.inf, 1)


def test_wilson_interval_at_the_ends_and_in_the_middle():
    assert proportion_interval(0, 10).low == 0.0
    assert proportion_interval(10, 10).high == 1.0
    assert proportion_interval(10, 10).low == pytest.approx(0.7225, abs=1e-4)
    with pytest.raises(ValueError, match="successes"):
        proportion_interval(3, 2)


def test_pairing_matters():
    baseline, arm = [0.1, 0.5, 0.9], [0.2, 0.59, 1.01]
    assert paired_comparison(arm, baseline).excludes_zero
    assert not paired_comparison(arm[::-1], baseline).excludes_zero
    assert paired_comparison(arm, baseline).p_value == pytest.approx(scipy_stats.ttest_rel(arm, baseline).pvalue)


def test_equal_differences_prove_nothing():
    for arm, baseline in (([0.7, 0.8, 0.9], [0.5, 0.6, 0.7]), ([405 / 450, 410 / 450], [400 / 450, 405 / 450])):
        assert len(set(np.subtract(arm, baseline))) > 1, "rounding must tell the differences apart"
        assert not paired_comparison(arm, baseline).excludes_zero
    comparison = paired_comparison([0.75, 0.875], [0.5, 0.625])
    assert comparison.difference.value == 0.25
    assert not comparison.excludes_zero
    assert comparison.p_value == 1.0


def test_an_interval_in_words_or_that_there_is_none():
    assert interval_text(0.5, 0.75) == "[0.5000, 0.7500]"
    assert interval_text(-0.5, 0.75, "+.1f") == "[-0.5, +0.8]"
    for low, high in ((None, None), (-math.inf, math.inf), (0.1, math.nan), (None, 0.5)):
        assert interval_text(low, high) == "-"
        assert interval_text(low, high, unknown="not known") == "not known"


def test_refusals():
    with pytest.raises(ValueError, match="same seeds"):
        paired_comparison([1.0], [1.0, 2.0])
    with pytest.raises(ValueError, match="finite"):
        paired_comparison([math.nan, 1.0], [0.0, 1.0])


@pytest.mark.parametrize(
    ("main", "higher", "verdict"),
    [
        ((0.8, 0.81, 0.83), True, "shown"),
        ((0.8, 0.81, 0.83), False, "reversed"),
        ((0.2, 0.21, 0.23), True, "reversed"),
        ((0.2, 0.21, 0.23), False, "shown"),
        ((0.4, 0.5, 0.62), True, "not shown"),
    ],
)
def test_verdicts_follow_the_interval_and_the_direction(main, higher, verdict):
    claim = Claim("x", "s", "d", "m", "base", "main", ("base", "main"), lambda seed: {}, higher)
    measured = [SeedResult({"base": 0.5, "main": value}, {}, 1.0) for value in main]
    record = conclude(claim, range(3), measured)
    assert record["verdict"] == verdict
    assert record["values"]["main"] == list(main)
    assert record["seconds"] == 3.0
    assert set(record) >= {"slug", "claim", "data", "metric", "arms", "seeds", "difference", "interval", "versions"}
