"""Calibration audit: bin edges, closed forms, coverage of the interval, and speed."""

import time

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from weathered.audit.calibration import (
    audit_calibration,
    bin_confidence,
    calibration_interval,
    expected_calibration_error,
)


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


@pytest.mark.parametrize("bins", [1, 7, 10, 15, 100])
def test_edges_belong_to_the_bin_below_and_zero_to_the_first(bins):
    edges = np.arange(bins + 1) / bins
    expected = [0, *range(bins)]
    assert bin_confidence(edges, bins).of_sample.tolist() == expected
    inside = np.nextafter(edges[:-1], 1)
    assert bin_confidence(inside, bins).of_sample.tolist() == list(range(bins))


@given(arrays(np.float64, st.integers(1, 80), elements=st.floats(0, 1)), st.integers(1, 20), st.booleans())
def test_each_confidence_lies_in_exactly_one_bin(confidence, bins, equal_mass):
    edges, place = bin_confidence(confidence, bins, equal_mass)
    assert len(edges) <= bins + 1
    assert ((confidence > edges[place]) | (confidence == 0)).all()
    assert (confidence <= edges[place + 1]).all()
    assert (place[confidence == 0] == 0).all()


def test_equal_mass_bins_hold_equally_many():
    confidence = np.random.default_rng(0).permutation(np.linspace(0.01, 1, 150))
    assert np.bincount(bin_confidence(confidence, 15, equal_mass=True).of_sample).tolist() == [10] * 15


def test_equal_mass_never_splits_ties():
    confidence = np.array([1.0] * 90 + [0.3] * 10)
    edges, place = bin_confidence(confidence, 15, equal_mass=True)
    assert len(set(place[:90])) == len(set(place[90:])) == 1
    assert edges[0] == 0
    assert edges[-1] == 1


def test_closed_forms():
    right = np.array([True, False, True, True])
    assert expected_calibration_error(right.astype(float), right) == 0
    assert expected_calibration_error(np.ones(4), np.zeros(4, bool)) == 1
    confidence = np.array([0.9, 0.8, 0.6, 0.3])
    assert expected_calibration_error(confidence, right, bins=1) == pytest.approx(abs(0.65 - 0.75))
    # Two bins: (0, .5] holds .3 (right), (.5, 1] holds the rest (2 of 3 right, mean confidence 2.3 / 3).
    assert expected_calibration_error(confidence, right, bins=2) == pytest.approx((0.7 + 0.3) / 4)


@given(arrays(np.float64, 40, elements=st.floats(0, 1)), st.integers(0, 2**31))
def test_bounded_and_finer_nested_bins_find_no_less(confidence, seed):
    correct = np.random.default_rng(seed).random(40) < 0.5
    coarse, fine = (expected_calibration_error(confidence, correct, bins) for bins in (4, 16))
    assert abs(confidence.mean() - correct.mean()) - 1e-12 <= coarse <= fine + 1e-12
    assert fine <= 1


@pytest.mark.parametrize("bad", [[-0.1], [1.1], [float("nan")], []])
def test_confidence_outside_the_unit_interval_is_refused(bad):
    with pytest.raises(ValueError, match="in \\[0, 1\\]"):
        bin_confidence(np.array(bad))


def test_zero_bins_and_resamples_are_refused():
    with pytest.raises(ValueError, match="bins"):
        bin_confidence(np.ones(1), 0)
    with pytest.raises(ValueError, match="resamples"):
        calibration_interval(np.ones(1), np.ones(1, bool), seeded(), resamples=0)


@pytest.mark.parametrize(("overconfidence", "truth"), [(0.0, 0.0), (0.1, 0.0714), (0.3, 0.2143)])
def test_interval_covers_the_true_error(overconfidence, truth):
    """Confidence ~ Beta(5, 2) with mean 5/7, accuracy (1 - overconfidence) times it, so the error is 5/7 of it."""
    rng, covered, runs = np.random.default_rng(1), 0, 120
    for run in range(runs):
        confidence = rng.beta(5, 2, 1000)
        correct = rng.random(1000) < confidence * (1 - overconfidence)
        estimate, _ = calibration_interval(confidence, correct, seeded(run), resamples=200)
        assert estimate.low <= estimate.value <= estimate.high
        covered += estimate.low - 1e-4 <= truth <= estimate.high + 1e-4
    assert covered / runs >= 0.83


def test_perfect_calibration_scores_what_the_note_says():
    rng = np.random.default_rng(2)
    confidence = rng.beta(5, 2, 500)
    _, perfect = calibration_interval(confidence, rng.random(500) < confidence, seeded(), resamples=500)
    drawn = [expected_calibration_error(confidence, rng.random(500) < confidence) for _ in range(500)]
    assert np.mean(np.array(drawn) <= perfect) == pytest.approx(0.975, abs=0.025)


def test_interval_does_not_depend_on_chunks_of_memory_and_repeats(monkeypatch):
    rng = np.random.default_rng(3)
    confidence, correct = rng.random(100), rng.random(100) < 0.5
    one = calibration_interval(confidence, correct, seeded(), resamples=50)
    assert one == calibration_interval(confidence, correct, seeded(), resamples=50)
    monkeypatch.setattr("weathered.audit.calibration.DRAWS_AT_ONCE", 300)
    other = calibration_interval(confidence, correct, seeded(), resamples=50)
    assert other[0].low == pytest.approx(one[0].low, abs=0.03)
    assert other[0].value == one[0].value


def test_audit_of_a_known_model():
    rng = seeded(4)
    logits = torch.randn(4000, 5, generator=rng)
    labels = torch.multinomial(logits.softmax(1), 1, generator=rng)[:, 0]
    calibrated = audit_calibration(logits, labels, seeded())
    sharper = audit_calibration(4 * logits, labels, seeded())
    assert calibrated.summary["expected calibration error"].low == 0
    assert "cannot be told apart" in calibrated.notes[0]
    assert sharper.summary["expected calibration error"].low > 0.1
    assert "overconfident" in sharper.notes[0]
    assert "underconfident" in audit_calibration(0.2 * logits, labels, seeded()).notes[0]
    for name, estimate in calibrated.summary.items():
        assert estimate.value < sharper.summary[name].value
        assert not calibrated.higher_is_better[name]
    log_p = logits.double().log_softmax(1)
    nll = -log_p.gather(1, labels[:, None]).mean()
    assert calibrated.summary["negative log likelihood"].value == pytest.approx(float(nll))
    assert calibrated.figures[0].diagonal
    assert sum(int(row[1]) for row in calibrated.tables[0].rows) == 4000


def test_extreme_logits_stay_finite():
    logits = torch.tensor([[1e4, -1e4], [-1e4, 1e4], [0.0, 0.0]])
    result = audit_calibration(logits, torch.tensor([0, 0, 1]))
    assert result.summary["Brier score"].value == pytest.approx((0 + 2 + 0.5) / 3)
    assert all(np.isfinite(estimate).all() for estimate in result.summary.values())


def test_large_input_takes_one_fast_pass():
    rng = np.random.default_rng(0)
    confidence, correct = rng.random(50_000), rng.random(50_000) < 0.5
    start = time.perf_counter()
    expected_calibration_error(confidence, correct)
    assert time.perf_counter() - start < 0.1
