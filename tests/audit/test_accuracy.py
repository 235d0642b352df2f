"""Accuracy audit: counts by hand, classes without samples, thirds, and bounded memory."""

import json

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from weathered.audit.accuracy import (
    audit_accuracy,
    class_accuracies,
    frequent_confusions,
    mean_of_proportions,
    thirds_by_count,
)
from weathered.audit.per_sample import per_sample
from weathered.stats import Estimate, proportion_interval


def logits_for(predicted: list[int], num_classes: int, size: float = 5.0) -> torch.Tensor:
    return size * torch.nn.functional.one_hot(torch.tensor(predicted), num_classes).float()


def test_counts_by_hand():
    labels = torch.tensor([0, 0, 0, 0, 1, 1, 2, 2])
    result = audit_accuracy(logits_for([0, 0, 0, 1, 1, 1, 0, 0], 3), labels, ("a", "b", "c"))
    assert result.summary["accuracy"] == proportion_interval(5, 8)
    assert result.summary["balanced accuracy"].value == pytest.approx((3 / 4 + 1 + 0) / 3)
    assert result.summary["worst class accuracy"] == proportion_interval(0, 2)
    confusions = result.tables[1].rows
    assert confusions[0][:4] == ("c", "a", 2, 2)
    assert confusions[1][:4] == ("a", "b", 1, 4)
    assert result.per_sample["correct"].tolist() == [True, True, True, False, True, True, False, False]


def test_class_without_test_samples_is_stated_and_in_no_mean():
    result = audit_accuracy(logits_for([0, 1, 1], 3), torch.tensor([0, 1, 0]), ("a", "b", "<c>"))
    assert result.tables[0].rows[2] == ("<c>", 0, "no test samples", "", "")
    assert result.summary["balanced accuracy"].value == pytest.approx(0.75)
    assert result.figures[0].series[0].x == ["a", "b"]
    assert any("'<c>'" in note and "no test samples" in note for note in result.notes)
    assert "NaN" not in json.dumps(result.to_json())


def test_thirds_follow_training_counts_not_class_order():
    counts = np.array([5, 100, 20, 50, 1, 7])
    assert [third.tolist() for third in thirds_by_count(counts)] == [[1, 3], [2, 5], [0, 4]]
    labels = torch.arange(6).repeat_interleave(2)
    predicted = labels.clone()
    predicted[labels == 4] = 1
    result = audit_accuracy(logits_for(predicted.tolist(), 6), labels, tuple("abcdef"), torch.tensor(counts))
    assert [result.summary[f"{t} accuracy"].value for t in ("head", "middle", "tail")] == [1.0, 1.0, 0.5]
    assert result.summary["tail accuracy"].n == 4
    assert result.tables[0].rows[3][2] == 50


@pytest.mark.parametrize(
    ("counts", "reason"),
    [(None, "not known"), ([9, 9, 9], "size, 9 training"), ([9, 17, 12], "similar size"), ([1, 2], "fewer than 3")],
)
def test_no_thirds_with_a_reason(counts, reason):
    classes = 3 if counts is None else len(counts)
    train = None if counts is None else torch.tensor(counts)
    result = audit_accuracy(logits_for([0, 1], classes), torch.tensor([0, 1]), tuple("abc")[:classes], train)
    assert not any("tail" in name for name in result.summary)
    assert any(reason in note for note in result.notes)


def test_tie_across_thirds_and_untested_third_are_said():
    counts = torch.tensor([10, 10, 10, 10, 10, 1])
    result = audit_accuracy(logits_for([0, 4], 6), torch.tensor([0, 4]), tuple("abcdef"), counts)
    assert any("'b' and 'c' have equally many" in note for note in result.notes)
    assert any("middle accuracy is left out" in note for note in result.notes)
    assert "middle accuracy" not in result.summary


def test_mean_of_one_proportion_is_wilson():
    wilson = proportion_interval(3, 10)
    assert mean_of_proportions([wilson]) == pytest.approx(wilson)


def test_mean_of_proportions_covers_its_truth():
    rng, shares, sizes = np.random.default_rng(0), np.array([0.98, 0.7, 0.2]), np.array([10, 40, 15])
    covered = 0
    for hits in rng.binomial(sizes, shares, size=(2000, 3)):
        estimate = mean_of_proportions([proportion_interval(h, int(n)) for h, n in zip(hits, sizes, strict=True)])
        covered += estimate.low <= shares.mean() <= estimate.high
    assert 0.93 <= covered / 2000 <= 0.98


@given(st.lists(st.tuples(st.integers(0, 4), st.integers(0, 4)), min_size=1, max_size=60))
def test_confusions_and_classes_add_up(pairs):
    labels, predicted = np.array(pairs).T
    confusions = frequent_confusions(predicted, labels, 5, most=25)
    counts = [count for _, _, count in confusions]
    assert sum(counts) == (labels != predicted).sum()
    assert counts == sorted(counts, reverse=True)
    assert all(((labels == a) & (predicted == b)).sum() == count for a, b, count in confusions)
    by_class = [e for e in class_accuracies(labels == predicted, labels, 5) if e is not None]
    assert sum(e.value * e.n for e in by_class) == pytest.approx((labels == predicted).sum())


def test_many_classes_do_not_build_a_square_table():
    classes, rng = 30_000, torch.Generator().manual_seed(0)
    labels = torch.randint(classes, (40,), generator=rng)
    logits = torch.randn(40, classes, generator=rng)
    result = audit_accuracy(logits, labels, [f"class {c}" for c in range(classes)])
    assert len(result.tables[1].rows) == 20
    assert len(result.figures[0].series[0].x) == len(set(labels.tolist()))


def test_only_the_worst_classes_are_drawn():
    labels = torch.arange(60).repeat(2)
    predicted = torch.cat([labels[:60], torch.where(labels[60:] < 5, labels[60:] + 1, labels[60:])])
    result = audit_accuracy(logits_for(predicted.tolist(), 60), labels, [str(c) for c in range(60)])
    assert result.figures[0].series[0].x[:5] == ["0", "1", "2", "3", "4"]
    assert len(result.figures[0].series[0].x) == 40
    assert "40 worst of 60" in result.figures[0].description


def test_per_sample_does_not_depend_on_chunks(monkeypatch):
    logits = torch.randn(50, 7, generator=torch.Generator().manual_seed(0)) * 30
    labels = torch.arange(50) % 7
    whole = per_sample(logits, labels)
    monkeypatch.setattr("weathered.audit.per_sample.CHUNK_VALUES", 20)
    for one, other in zip(whole, per_sample(logits, labels), strict=True):
        assert np.array_equal(one, other)
    p = logits.double().softmax(1)
    onehot = torch.nn.functional.one_hot(labels, 7).double()
    assert np.allclose(whole.brier, (p - onehot).square().sum(1), atol=1e-12)
    assert np.allclose(whole.loss, -(logits.double().log_softmax(1) * onehot).sum(1), atol=1e-12)


@pytest.mark.parametrize(
    ("logits", "labels", "names", "message"),
    [
        (torch.zeros(2, 3), torch.tensor([0, 3]), "abc", "got 3 at position 1"),
        (torch.zeros(2, 3), torch.tensor([0, -1]), "abc", "got -1 at position 1"),
        (torch.zeros(2, 3), torch.tensor([0]), "abc", "one label per row"),
        (torch.zeros(2, 3), torch.tensor([0, 1]), "ab", "3 columns but there are 2 classes"),
        (torch.zeros(0, 3), torch.zeros(0, dtype=torch.long), "abc", "at least one sample"),
        (torch.tensor([[0.0, 1.0], [float("nan"), 0.0]]), torch.tensor([0, 1]), "ab", "row 1 is not"),
    ],
)
def test_bad_input_is_named(logits, labels, names, message):
    with pytest.raises(ValueError, match=message):
        audit_accuracy(logits, labels, tuple(names))


def test_arguments_are_left_alone():
    logits, labels = torch.randn(9, 4, generator=torch.Generator().manual_seed(1)), torch.arange(9) % 4
    before = logits.clone(), labels.clone()
    audit_accuracy(logits, labels, tuple("abcd"), torch.tensor([4, 3, 2, 1]))
    assert torch.equal(logits, before[0])
    assert torch.equal(labels, before[1])


def test_estimate_is_inside_its_interval():
    for name, estimate in audit_accuracy(logits_for([0, 1, 2], 3), torch.tensor([0, 1, 2]), "abc").summary.items():
        assert isinstance(estimate, Estimate)
        assert 0 <= estimate.low <= estimate.value <= estimate.high <= 1, name
