"""The self-confidence without the label noise: its limits, its likelihood, inputs in pieces, and what it finds."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from label_data import noisy, softmax
from sklearn.metrics import average_precision_score

from weathered.audit.labels.confident import confident_learning
from weathered.audit.labels.corrected_confidence import corrected_confidence, estimated_transition, true_class
from weathered.audit.labels.issues import find_issues
from weathered.audit.labels.quality import DEFAULT, label_quality, quality


def transition_matrix(size: int, noise: float, rng: np.random.Generator) -> np.ndarray:
    return (1 - noise) * np.eye(size) + noise * softmax(rng.normal(size=(size, size)) * 2)


def test_without_noise_it_is_the_self_confidence():
    p = softmax(np.random.default_rng(0).normal(size=(30, 4)))
    assert true_class(p, np.eye(4)) == pytest.approx(p)


def test_without_steps_it_is_the_self_confidence():
    p, y, _ = noisy()
    learnt = confident_learning(p, y)
    assert corrected_confidence(learnt, p, iterations=0) == pytest.approx(learnt.rows.own)


def test_one_step_of_two_classes_by_hand():
    transition = np.array([[0.9, 0.1], [0.4, 0.6]])
    mixed = 0.7 * 0.9 + 0.3 * 0.4
    first = 0.7 * (0.9 * 0.7 / mixed + 0.1 * 0.3 / (1 - mixed))
    assert true_class(np.array([[0.7, 0.3]]), transition, 1) == pytest.approx(np.array([[first, 1 - first]]))


@settings(max_examples=40, deadline=None)
@given(st.integers(2, 8), st.floats(0, 0.5), st.integers(0, 2**31))
def test_no_step_lowers_the_likelihood_and_rows_stay_distributions(size, noise, seed):
    rng = np.random.default_rng(seed)
    p, transition = softmax(rng.normal(size=(10, size)) * 3), transition_matrix(size, noise, rng)
    before = -np.inf
    for iterations in range(6):
        q = true_class(p, transition, iterations)
        assert (q >= 0).all()
        assert q.sum(axis=1) == pytest.approx(1)
        likelihood = (p * np.log(q @ transition)).sum(axis=1)
        assert (likelihood >= before - 1e-9).all()
        before = likelihood


def test_many_steps_find_the_true_probabilities_where_the_transition_is_known():
    rng = np.random.default_rng(1)
    truth, transition = softmax(rng.normal(size=(20, 4))), transition_matrix(4, 0.3, rng)
    assert true_class(truth @ transition, transition, 5000) == pytest.approx(truth, abs=1e-3)


def test_certain_predictions_stay_certain_and_classes_without_labels_do_no_harm():
    p, y = np.eye(4, dtype=np.float32)[[0, 0, 1, 1, 2]], np.array([0, 1, 1, 1, 2])
    learnt = confident_learning(p, y)
    assert estimated_transition(learnt)[3].tolist() == [0, 0, 0, 1]
    assert corrected_confidence(learnt, p).tolist() == [1, 0, 1, 1, 1]


def test_the_estimated_transition_is_a_distribution_for_each_class():
    p, y, _ = noisy()
    transition = estimated_transition(confident_learning(p, y))
    assert transition.sum(axis=1) == pytest.approx(1)
    assert (transition.diagonal() > 0).all()


@pytest.mark.parametrize("block_rows", [1, 64, 10_000])
def test_a_file_and_any_blocks_give_the_same_bits(tmp_path, block_rows):
    p, y, _ = noisy()
    np.save(tmp_path / "p.npy", p)
    expected = label_quality(p, y)
    assert np.array_equal(label_quality(tmp_path / "p.npy", y, block_rows=block_rows), expected)
    assert np.array_equal(find_issues(tmp_path / "p.npy", y, block_rows=block_rows).score, expected)


def test_it_is_the_default_and_needs_what_was_counted():
    p, y, _ = noisy()
    learnt = confident_learning(p, y)
    assert DEFAULT == "corrected_confidence"
    assert np.array_equal(quality(learnt, p), corrected_confidence(learnt, p))
    with pytest.raises(ValueError, match="iterations must be at least 0"):
        corrected_confidence(learnt, p, iterations=-1)


def test_where_the_noise_goes_one_way_it_ranks_wrong_labels_better_than_the_self_confidence():
    rng = np.random.default_rng(2)
    transition = np.eye(4)
    transition[0, :2] = 0.6, 0.4
    truth = rng.integers(4, size=4000)
    logits = rng.normal(size=(4000, 4)) * 1.2
    logits[np.arange(4000), truth] += 2
    y = (rng.random((4000, 1)) > transition[truth].cumsum(axis=1)).sum(axis=1)
    p = softmax(logits) @ transition
    found = average_precision_score(truth != y, -label_quality(p, y))
    assert found > average_precision_score(truth != y, -label_quality(p, y, "self_confidence")) + 0.02
