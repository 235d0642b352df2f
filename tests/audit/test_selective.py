"""Selective prediction: limits, closed forms, and independence of the order of the samples."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from weathered.audit.selective import (
    area_under_risk_coverage,
    audit_selective,
    best_area,
    errors_by_confidence,
)


def test_the_area_in_closed_form():
    errors = errors_by_confidence(np.array([0.9, 0.8, 0.7, 0.6]), np.array([True, False, True, True]))
    assert errors.tolist() == [0, 1, 0, 0]
    assert float(area_under_risk_coverage(errors)) == pytest.approx((0 + 1 / 2 + 1 / 3 + 1 / 4) / 4)


@given(st.integers(1, 40), st.data())
def test_the_best_order_has_the_best_area_and_no_excess(size, data):
    correct = np.array(data.draw(st.lists(st.booleans(), min_size=size, max_size=size)))
    confidence = np.linspace(1, 0.5, size)
    best = np.sort(correct)[::-1]
    area = float(area_under_risk_coverage(errors_by_confidence(confidence, best)))
    assert area == pytest.approx(float(best_area(1 - correct.mean(), size)))
    assert area <= float(area_under_risk_coverage(errors_by_confidence(confidence, correct))) + 1e-12


def test_confidence_that_says_nothing_has_the_error_rate_everywhere():
    errors = errors_by_confidence(np.full(10, 0.7), np.arange(10) < 6)
    assert errors == pytest.approx(np.full(10, 0.4))
    assert float(area_under_risk_coverage(errors)) == pytest.approx(0.4)


@given(st.integers(0, 100))
def test_the_order_of_samples_does_not_count_even_with_ties(seed):
    rng = np.random.default_rng(seed)
    confidence, correct = rng.integers(5, 9, 30) / 10, rng.random(30) < 0.6
    turned = rng.permutation(30)
    first, second = errors_by_confidence(confidence, correct), errors_by_confidence(confidence[turned], correct[turned])
    assert first == pytest.approx(second)


def test_answers_in_the_best_order_have_no_excess_in_any_draw():
    labels = torch.zeros(20).long()
    logits = torch.zeros(20, 2, dtype=torch.float64)
    logits[:, 0] = torch.linspace(5, 1, 20)
    labels[16:] = 1
    found = audit_selective(logits, labels, resamples=200).summary["excess area under risk-coverage"]
    assert (found.value, found.low) == (0, 0)
    assert found.high == pytest.approx(0, abs=1e-12)


def test_a_perfect_and_a_useless_model():
    labels = torch.arange(4).repeat(25)
    right = torch.nn.functional.one_hot(labels, 4).double() * torch.linspace(1, 5, 100)[:, None]
    result = audit_selective(right, labels, resamples=50)
    assert result.summary["area under risk-coverage"].value == 0
    assert result.summary["risk at 80% coverage"].value == 0
    wrong = audit_selective(right, (labels + 1) % 4, resamples=50)
    assert wrong.summary["area under risk-coverage"].value == 1
    assert wrong.summary["excess area under risk-coverage"].value == pytest.approx(0)


def test_intervals_cover_the_area_of_the_population():
    rng = np.random.default_rng(0)

    def sample(size):
        p = rng.uniform(0.5, 1, size)
        right = rng.random(size) < p
        logits = torch.zeros(size, 2, dtype=torch.float64)
        logits[:, 0] = torch.as_tensor(np.log(p / (1 - p)))
        return logits, torch.as_tensor(~right).long()

    truth = audit_selective(*sample(200_000), resamples=1).summary["area under risk-coverage"].value
    covered = 0
    for _ in range(60):
        found = audit_selective(*sample(300), resamples=200).summary["area under risk-coverage"]
        covered += found.low <= truth <= found.high
    assert covered >= 50


def test_what_does_not_fit():
    with pytest.raises(ValueError, match=r"\(N,\)"):
        errors_by_confidence(np.zeros(3), np.zeros(2, bool))
    with pytest.raises(ValueError, match="resamples must be at least 1"):
        audit_selective(torch.zeros(3, 2), torch.tensor([0, 1, 0]), resamples=0)
    with pytest.raises(ValueError, match="labels must be in"):
        audit_selective(torch.zeros(3, 2), torch.tensor([0, 1, 2]))
