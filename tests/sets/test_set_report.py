"""What is measured of sets, the curve of both rules, and the closed form of the gain on known posteriors."""

from itertools import pairwise

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from weathered.core.rng import generator
from weathered.sets.average_k import AverageK
from weathered.sets.report import ambiguity_gain, error_curve, measure_sets
from weathered.sets.top_k import TopK
from weathered.stats import proportion_interval


def posteriors(n=20_000, seed=0):
    """The population of the check: half of the inputs clear, half ambiguous, 20 classes."""
    rng = np.random.default_rng(seed)
    return np.concatenate([rng.dirichlet(np.full(20, 0.02), n // 2), rng.dirichlet(np.ones(20), n // 2)])


def drawn_labels(scores, seed):
    u = np.random.default_rng(seed).random((len(scores), 1))
    return (scores.cumsum(1) < u).sum(1).clip(max=scores.shape[1] - 1)


def error_of(mask, scores):
    """The error on known posteriors, without drawing a label."""
    return 1 - (mask * scores).sum(1).mean()


@pytest.fixture(scope="module")
def population():
    return posteriors()


@pytest.mark.parametrize(
    ("k", "top", "average"), [(1, 0.508, 0.473), (2, 0.368, 0.341), (3, 0.298, 0.250), (5, 0.211, 0.128)]
)
def test_known_posteriors_give_the_measured_errors_and_the_gain_of_the_closed_form(population, k, top, average):
    of_top = error_of(TopK(k).predict(population), population)
    of_average = error_of(AverageK(k).fit(population).predict(population), population)
    assert of_top == pytest.approx(top, abs=0.01)
    assert of_average == pytest.approx(average, abs=0.01)
    assert of_top - of_average > 0.02
    assert of_top - of_average == pytest.approx(ambiguity_gain(population, k), abs=1e-9)


@given(st.integers(1, 40), st.integers(1, 7), st.integers(0, 1000), st.data())
def test_the_gain_is_the_difference_for_any_k_and_never_negative(n, num_classes, seed, data):
    """k n is whole and k need not be: top-K then takes its last label in part."""
    scores = np.random.default_rng(seed).dirichlet(np.full(num_classes, 0.5), n)
    k = data.draw(st.integers(0, n * num_classes)) / n
    whole = int(k)
    below, above = (TopK(size).predict(scores) for size in (whole, min(whole + 1, num_classes)))
    of_top = (1 - (k - whole)) * error_of(below, scores) + (k - whole) * error_of(above, scores)
    rule = AverageK(k).fit(scores)
    of_average = error_of((scores > rule.threshold_) + rule.q_ * (scores == rule.threshold_), scores)
    gain = ambiguity_gain(scores, k)
    assert gain >= 0
    assert of_top - of_average == pytest.approx(gain, abs=1e-9)


def test_the_gain_between_whole_counts_lies_on_a_line():
    """The best error for a mean size is linear between whole k n, and so is that of top-K within one whole K."""
    scores = posteriors(100)
    for m in (50, 130, 250):
        ends = [ambiguity_gain(scores, k / 100) for k in (m, m + 1)]
        for share in (0.2, 0.5, 0.9):
            expected = ends[0] + share * (ends[1] - ends[0])
            assert ambiguity_gain(scores, (m + share) / 100) == pytest.approx(expected, abs=1e-12)


def test_no_gain_where_top_k_is_a_threshold_already():
    rng = np.random.default_rng(0)
    same = np.stack([rng.permutation([0.5, 0.3, 0.15, 0.05]) for _ in range(60)])
    for k in range(5):
        assert ambiguity_gain(same, k) == pytest.approx(0, abs=1e-15)
    assert ambiguity_gain(np.full((7, 5), 0.2), 1.7) == 0
    apart = np.concatenate([same, np.tile([0.9, 0.1, 0.0, 0.0], (60, 1))])
    assert ambiguity_gain(apart, 1) == pytest.approx(0, abs=1e-15)  # 0.5 and 0.9 above 0.3 and 0.1
    # K = 2: the clear rows give up 0.1, of which the others take 0.15: half of the rows gain 0.05
    assert ambiguity_gain(apart, 2) == pytest.approx(0.025)


def test_the_gain_is_for_distributions():
    with pytest.raises(ValueError, match="sum to 1"):
        ambiguity_gain(np.full((2, 3), 0.5), 1)
    with pytest.raises(ValueError, match="not finite"):
        ambiguity_gain(np.full((2, 3), np.nan), 1)
    with pytest.raises(ValueError, match=r"k must be in \[0, 3\]"):
        ambiguity_gain(np.full((2, 3), 1 / 3), 3.5)


def test_a_mask_is_measured_as_counted_by_hand():
    mask = np.array([[1, 0, 0], [1, 1, 0], [0, 0, 0], [1, 1, 1]], bool)
    for given_mask, labels in ((mask, np.array([0, 2, 1, 2])), (torch.from_numpy(mask), torch.tensor([0, 2, 1, 2]))):
        report = measure_sets(given_mask, labels)
        assert report.error == proportion_interval(2, 4)
        assert report.empty == proportion_interval(1, 4)
        assert report.histogram.tolist() == [1, 1, 1, 1]
        assert report.size.value == 1.5
        assert report.size.high - 1.5 == pytest.approx(1.959964 * np.std([1, 2, 0, 3], ddof=1) / 2)
        assert report.deviation == pytest.approx(np.std([1, 2, 0, 3]))


@given(st.integers(1, 30), st.integers(1, 6), st.integers(0, 100))
def test_figures_of_a_mask_agree_with_each_other(n, num_classes, seed):
    rng = np.random.default_rng(seed)
    report = measure_sets(rng.random((n, num_classes)) < 0.4, rng.integers(num_classes, size=n))
    sizes = np.arange(num_classes + 1)
    assert report.histogram.sum() == n == report.error.n == report.size.n
    assert report.histogram @ sizes / n == pytest.approx(report.size.value)
    assert report.histogram @ sizes**2 / n - report.size.value**2 == pytest.approx(report.deviation**2, abs=1e-9)
    assert report.empty.value == report.histogram[0] / n <= report.error.value
    assert report.error.low <= report.error.value <= report.error.high


def test_masks_and_labels_that_do_not_fit_are_refused():
    with pytest.raises(ValueError, match="booleans"):
        measure_sets(np.ones((2, 3)), np.zeros(2, int))  # pyright: ignore[reportArgumentType]
    with pytest.raises(ValueError, match="at least one row"):
        measure_sets(np.ones((0, 3), bool), np.zeros(0, int))
    with pytest.raises(ValueError, match="Labels must be in"):
        measure_sets(np.ones((2, 3), bool), np.array([0, 3]))
    with pytest.raises(ValueError, match="fitted to 20 classes"):
        error_curve(posteriors(10), np.full((2, 3), 1 / 3), np.zeros(2, int), [1])


def test_the_curve_is_what_the_rules_measure_and_falls(population):
    scores = posteriors(4000, seed=1)
    labels = drawn_labels(scores, 2)
    ks = [0, 0.5, 1, 2, 2.5, 3, 5, 10, 19.5, 20]
    curve = error_curve(population, scores, labels, ks)
    assert [point.k for point in curve] == ks
    for point in curve:
        average = measure_sets(AverageK(point.k).fit(population).predict(scores), labels)
        assert point.average_k.value == pytest.approx(average.error.value, abs=1e-3)  # draws of equal scores
        assert point.size.value == pytest.approx(average.size.value, abs=1e-3)
        assert point.gain.value == pytest.approx(point.top_k.value - point.average_k.value)
        if point.k == int(point.k):
            assert point.top_k == measure_sets(TopK(point.k).predict(scores), labels).error
    halves = [error_curve(population, scores, labels, [k])[0].top_k.value for k in (2, 2.5, 3)]
    assert halves[1] == pytest.approx((halves[0] + halves[2]) / 2)
    for before, after in pairwise(curve):
        assert after.top_k.value <= before.top_k.value
        assert after.average_k.value <= before.average_k.value
    assert (curve[0].average_k.value, curve[-1].average_k.value) == (1, 0)
    for point in curve[2:7]:
        assert point.gain.low > 0  # wins with labels drawn from the posteriors as well


def test_the_curve_takes_equal_scores_in_expectation():
    scores, labels = np.full((400, 4), 0.25), np.random.default_rng(0).integers(4, size=400)
    point = error_curve(scores, scores, labels, [1])[0]
    assert point.average_k.value == 0.75
    assert point.size.value == 1
    errors = [
        measure_sets(AverageK(1).fit(scores).predict(scores, generator(seed, "curve")), labels).error.value
        for seed in range(50)
    ]
    assert np.mean(errors) == pytest.approx(0.75, abs=0.02)


def test_labels_change_no_threshold_and_no_size(population):
    scores = posteriors(2000, seed=1)
    labels = drawn_labels(scores, 2)
    shuffled = np.random.default_rng(0).permutation(labels)
    one, other = (error_curve(population, scores, y, [1, 2, 3]) for y in (labels, shuffled))
    assert [point.size for point in one] == [point.size for point in other]
    assert all(b.average_k.value > a.average_k.value + 0.1 for a, b in zip(one, other, strict=True))
