"""The two rules that average-K is compared with: fixed size, and fixed coverage."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from weathered.core.rng import generator
from weathered.sets.average_k import AverageK
from weathered.sets.conformal import Conformal
from weathered.sets.top_k import TopK, largest

GRID = st.tuples(st.integers(1, 9), st.integers(1, 6)).flatmap(
    lambda shape: arrays(np.float64, shape, elements=st.integers(0, 8).map(lambda i: i / 8))
)


def drawn(n, seed, num_classes=6):
    """Known posteriors and labels drawn from them."""
    rng = np.random.default_rng(seed)
    scores = rng.dirichlet(np.full(num_classes, 0.4), n)
    return scores, (scores.cumsum(1) < rng.random((n, 1))).sum(1).clip(max=num_classes - 1)


@given(GRID, st.data())
def test_the_largest_entries_are_those_of_a_stable_sort(scores, data):
    count = data.draw(st.integers(0, scores.shape[1]))
    expected = np.zeros(scores.shape, bool)
    np.put_along_axis(expected, np.argsort(-scores, axis=1, kind="stable")[:, :count], True, axis=1)
    assert np.array_equal(largest(scores, count), expected)


def test_top_k_of_whole_k_has_that_size_for_arrays_and_tensors():
    scores, _ = drawn(300, 0)
    for k in range(7):
        mask = TopK(k).fit(scores).predict(scores)
        assert (mask.sum(1) == k).all()
        assert np.array_equal(mask, TopK(k).predict(torch.from_numpy(scores)))
    assert np.array_equal(TopK(1).predict(scores).argmax(1), scores.argmax(1))


def test_top_k_of_other_k_adds_the_next_label_with_the_rest_as_probability():
    scores, _ = drawn(20_000, 0)
    mask = TopK(2.3).predict(scores, generator(0, "rest"))
    three = mask.sum(1) == 3
    assert three.mean() == pytest.approx(0.3, abs=0.012)
    assert np.array_equal(mask[three], TopK(3).predict(scores[three]))
    assert np.array_equal(mask[~three], TopK(2).predict(scores[~three]))
    assert np.array_equal(TopK(2.3).predict(scores), TopK(2.3).predict(scores))
    assert not np.array_equal(mask, TopK(2.3).predict(scores, generator(1, "rest")))


def test_top_k_refuses_what_cannot_be_used():
    scores = np.full((3, 4), 0.25)
    for k in (-1, float("nan"), float("inf")):
        with pytest.raises(ValueError, match="k must be a finite number >= 0"):
            TopK(k)
    with pytest.raises(ValueError, match=r"k must be in \[0, 4\]"):
        TopK(5).predict(scores)
    scores[1, 1] = np.nan
    with pytest.raises(ValueError, match="row 1 holds NaN"):
        TopK(1).predict(scores)
    with pytest.warns(UserWarning, match="instead of 1"):
        TopK(1).predict(np.ones((2, 3)))


@pytest.mark.parametrize("miscoverage", [0.05, 0.1, 0.3])
def test_conformal_sets_miss_as_often_as_promised_for_any_model(miscoverage):
    """Over draws of both sets the miss rate is floor(miscoverage (n + 1)) / (n + 1), here of a model that is wrong."""
    n, missed = 79, []
    for seed in range(300):
        scores, labels = drawn(n + 200, seed)
        scores = scores**3 / (scores**3).sum(1, keepdims=True)
        rule = Conformal(miscoverage).fit(scores[:n], labels[:n])
        mask = rule.predict(scores[n:])
        missed.append(1 - mask[np.arange(200), labels[n:]].mean())
    expected = np.floor(miscoverage * (n + 1)) / (n + 1)
    assert np.mean(missed) == pytest.approx(expected, abs=4 * np.std(missed) / 300**0.5)


def test_the_conformal_threshold_is_the_corrected_quantile():
    p = np.arange(1, 20) / 40
    scores = np.stack([p, 1 - p], 1)[np.random.default_rng(0).permutation(19)]
    rule = Conformal(0.1).fit(scores, np.zeros(19, int))
    assert rule.threshold_ == 2 / 40  # floor(0.1 * 20) = 2
    many = np.stack([np.arange(1, 100) / 100, np.arange(99, 0, -1) / 100], 1)
    assert Conformal(0.29).fit(many, np.zeros(99, int)).threshold_ == 29 / 100  # 0.29 * 100 in floats is less than 29
    assert rule.predict(np.array([[0.05, 0.95], [0.04, 0.96]])).tolist() == [[True, True], [False, True]]
    few = Conformal(0.04).fit(scores, np.zeros(19, int))
    assert few.predict(np.array([[0.0, 1.0]])).all()  # 19 inputs cannot tell 4 %


def test_labels_matter_to_conformal_sets_alone_and_average_k_promises_no_coverage():
    """The same shape of set: one threshold; a shift of the labels moves conformal's and leaves average-K's."""
    scores, labels = drawn(2000, 1)
    wrong = np.random.default_rng(0).permutation(labels)
    conformal = [Conformal(0.1).fit(scores, y) for y in (labels, wrong)]
    assert conformal[1].threshold_ < conformal[0].threshold_ / 5
    average = AverageK(conformal[0].predict(scores).sum(1).mean()).fit(scores)
    assert average.threshold_ == pytest.approx(conformal[0].threshold_, abs=0.002)
    missed = 1 - average.predict(scores)[np.arange(2000), wrong].mean()
    assert missed > 0.3


def test_conformal_refuses_what_cannot_be_used():
    scores = np.full((3, 4), 0.25)
    for miscoverage in (0, 1, -0.1, float("nan")):
        with pytest.raises(ValueError, match="miscoverage must be in"):
            Conformal(miscoverage)
    with pytest.raises(ValueError, match="call fit"):
        Conformal(0.1).predict(scores)
    with pytest.raises(ValueError, match="one label for each of 3 rows"):
        Conformal(0.1).fit(scores, np.zeros(2, int))
    with pytest.raises(ValueError, match="Labels must be in"):
        Conformal(0.1).fit(scores, np.array([0, 1, 4]))
    with pytest.raises(ValueError, match="at least one row"):
        Conformal(0.1).fit(scores[:0], np.zeros(0, int))
    rule = Conformal(0.4).fit(scores, torch.tensor([0, 1, 2]))
    with pytest.raises(ValueError, match="fitted to 4 classes"):
        rule.predict(scores[:, :3])
    other = Conformal(0.4)
    other.load_state_dict(rule.state_dict())
    assert np.array_equal(other.predict(scores), rule.predict(scores))
    with pytest.raises(ValueError, match="Conformal learns"):
        other.load_state_dict({"q_": 1.0})
