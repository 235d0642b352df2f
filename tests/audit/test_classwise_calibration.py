"""Class-wise calibration: agreement with the error of each class alone, limits, and intervals."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from weathered.audit.calibration import audit_calibration, bin_confidence, expected_calibration_error
from weathered.audit.classwise_calibration import classwise_calibration


def rng(seed=0):
    return torch.Generator().manual_seed(seed)


@given(st.integers(0, 40))
def test_each_class_has_the_error_of_its_own_probability(seed):
    logits, labels = torch.randn(150, 4, generator=rng(seed)), torch.randint(4, (150,), generator=rng(seed))
    found = classwise_calibration(logits, labels, rng(), resamples=5)
    p = logits.double().softmax(1).numpy()
    for c in range(4):
        expected = expected_calibration_error(p[:, c], (labels == c).numpy())
        assert found.by_class[c] == pytest.approx(expected)
    assert found.mean.value == pytest.approx(found.by_class.mean())


def test_one_hot_predictions():
    labels, predicted = torch.tensor([0, 0, 1, 2]), torch.tensor([0, 1, 1, 1])
    logits = torch.nn.functional.one_hot(predicted, 3).double() * 100
    found = classwise_calibration(logits, labels, rng(), resamples=5)
    # class 0: one label missed; class 1: two wrong predictions; class 2: one label missed
    assert found.by_class == pytest.approx([1 / 4, 2 / 4, 1 / 4])


def test_labels_drawn_from_the_probabilities_leave_next_to_nothing():
    logits = torch.randn(40_000, 3, generator=rng(), dtype=torch.float64)
    labels = torch.multinomial(logits.softmax(1), 1, generator=rng(1))[:, 0]
    found = classwise_calibration(logits, labels, rng())
    assert found.mean.value < 0.01
    sharper = classwise_calibration(3 * logits, labels, rng())
    assert sharper.mean.low > found.mean.high


def test_renaming_classes_changes_nothing():
    logits, labels = torch.randn(90, 4), torch.randint(4, (90,))
    turn = torch.tensor([2, 0, 3, 1])
    first = classwise_calibration(logits, labels, rng(), resamples=20)
    turned = classwise_calibration(logits[:, turn], turn.argsort()[labels], rng(), resamples=20)
    assert turned.by_class == pytest.approx(first.by_class[turn.numpy()])
    assert turned.mean == pytest.approx(first.mean)


def test_it_belongs_to_the_calibration_audit():
    logits, labels = torch.randn(90, 4), torch.randint(4, (90,))
    summary = audit_calibration(logits, labels).summary
    assert summary["class-wise calibration error"].value > 0


@given(st.integers(1, 40), st.lists(st.floats(0, 1), min_size=1, max_size=50))
def test_bins_without_a_search_are_those_of_one(bins, values):
    edges = np.arange(bins + 1) / bins
    confidence = np.array([*values, *edges, *np.nextafter(edges[1:], 0), *np.nextafter(edges[:-1], 1)])
    expected = np.maximum(np.searchsorted(edges, confidence, side="left") - 1, 0)
    assert bin_confidence(confidence, bins).of_sample.tolist() == expected.tolist()


def test_what_does_not_fit():
    with pytest.raises(ValueError, match="resamples"):
        classwise_calibration(torch.zeros(3, 2), torch.tensor([0, 1, 0]), rng(), resamples=0)
    with pytest.raises(ValueError, match="labels must be in"):
        classwise_calibration(torch.zeros(3, 2), torch.tensor([0, 1, 2]), rng())
