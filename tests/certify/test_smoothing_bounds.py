"""Bounds, radii and summaries of certificates, against the binomial distribution and sums by hand."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from weathered.certify.smoothing import (
    CertifyResult,
    RandomizedSmoothing,
    average_certified_radius,
    certified_accuracy,
    certified_radius,
    clopper_pearson_lower,
    radius_ceiling,
)

SIGMA = 0.5


@pytest.mark.parametrize("n", [10, 1000, 100_000])
@pytest.mark.parametrize("alpha", [0.001, 0.05])
def test_bound_is_where_the_upper_tail_equals_alpha(n, alpha):
    """The bound q solves P(Binomial(n, q) >= k) = alpha; k = n gives q^n = alpha, and k = 0 gives 0."""
    k = torch.tensor([0, 1, n // 3, n // 2 + 1, n - 1, n])
    bound = clopper_pearson_lower(k, n, alpha)
    assert bound.dtype == torch.float64
    assert bound[0] == 0
    np.testing.assert_allclose(stats.binom.sf(k[1:] - 1, n, bound[1:]), alpha, rtol=1e-6)
    assert float(bound[-1]) == pytest.approx(alpha ** (1 / n), abs=1e-10)
    expected = [stats.binomtest(int(c), n, alternative="greater").proportion_ci(1 - alpha).low for c in k]
    np.testing.assert_allclose(bound, expected, atol=1e-10)
    assert clopper_pearson_lower(k.view(2, 3), n, alpha).shape == (2, 3)
    assert float(clopper_pearson_lower(int(k[2]), n, alpha)) == float(bound[2])


@pytest.mark.parametrize("p", [0.03, 0.5, 0.9, 0.999])
@pytest.mark.parametrize("alpha", [0.01, 0.1])
def test_bound_exceeds_the_truth_at_most_with_probability_alpha(p, alpha):
    draws, n = 20_000, 200
    k = torch.as_tensor(np.random.default_rng(0).binomial(n, p, draws))
    failures = float((clopper_pearson_lower(k, n, alpha) > p).double().mean())
    assert failures <= alpha + 3 * math.sqrt(alpha * (1 - alpha) / draws)


@settings(deadline=None, max_examples=50)
@given(st.integers(1, 2000), st.floats(1e-4, 0.4), st.floats(0.05, 3))
def test_radius_grows_with_votes_and_is_linear_in_sigma(n, alpha, sigma):
    k = torch.arange(n + 1)
    radius = certified_radius(k, n, sigma, alpha)
    assert (radius.diff() >= 0).all()
    assert ((radius > 0) <= (clopper_pearson_lower(k, n, alpha) >= 0.5)).all()
    torch.testing.assert_close(certified_radius(k, n, 2 * sigma, alpha), 2 * radius)
    if alpha ** (1 / n) > 0.5:
        assert float(radius[-1]) == pytest.approx(radius_ceiling(n, sigma, alpha), rel=1e-7)
    else:
        with pytest.raises(ValueError, match="cannot certify"):
            radius_ceiling(n, sigma, alpha)


def test_radius_ceiling_of_the_usual_settings():
    assert radius_ceiling(100_000, 1.0, 0.001) == pytest.approx(3.81, abs=0.005)
    assert radius_ceiling(1000, 1.0, 0.001) == pytest.approx(2.46, abs=0.005)
    with pytest.raises(ValueError, match="use n >= 10"):
        RandomizedSmoothing(SIGMA, n=9)
    assert RandomizedSmoothing(SIGMA, n=10).radius_ceiling > 0


def test_certified_accuracy_and_average_radius():
    radii = torch.tensor([0.5, 0.2, 0.0, 0.9, 0.0], dtype=torch.float64)
    result = CertifyResult(torch.tensor([1, 0, -1, 2, 2]), radii, torch.zeros(5, dtype=torch.int64), 1000, 0.001, SIGMA)
    labels = torch.tensor([1, 0, 0, 1, 2])  # right, right, abstained, wrong, right with radius 0
    accuracies = certified_accuracy(result, labels, [0.0, 0.2, 0.21, 0.5, 0.6])
    assert [a.value for a in accuracies] == [0.6, 0.4, 0.2, 0.2, 0.0]
    assert all(a.low <= a.value <= a.high and a.n == 5 for a in accuracies)
    average = average_certified_radius(result, labels)
    assert average.value == pytest.approx(0.7 / 5)
    assert average.low == 0.0
    assert average.value < average.high < radius_ceiling(1000, SIGMA, 0.001)
    with pytest.raises(ValueError, match="least"):
        certified_accuracy(result, torch.tensor([1, 0, -1, 1, 2]), [0.0])
    with pytest.raises(ValueError, match="radii"):
        certified_accuracy(result, labels, [-0.1])
    with pytest.raises(ValueError, match="labels must be 5"):
        average_certified_radius(result, labels[:4])


@settings(deadline=None, max_examples=30)
@given(st.integers(0, 10_000), st.integers(2, 40))
def test_certified_accuracy_never_rises_with_the_radius(seed, images):
    """Summed over a fine grid it is the average certified radius, for mean(R) = integral of P(R >= r)."""
    rng = torch.Generator().manual_seed(seed)
    radii = torch.rand(images, generator=rng, dtype=torch.float64)
    result = CertifyResult(torch.zeros(images).long(), radii, torch.zeros(images).long(), 1000, 0.001, SIGMA)
    labels = torch.randint(0, 2, (images,), generator=rng)
    grid = np.arange(0.005, 1, 0.01)
    values = np.array([a.value for a in certified_accuracy(result, labels, grid.tolist())])
    assert (np.diff(values) <= 0).all()
    assert values.sum() * 0.01 == pytest.approx(average_certified_radius(result, labels).value, abs=1e-2)
