"""Groups: gaps in closed form, what is equal stays equal, and what is missing is named."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from weathered.audit.groups import audit_groups
from weathered.stats import Estimate, difference_of_proportions, proportion_interval


def logits_for(predicted, classes=3, sure=4.0):
    return torch.nn.functional.one_hot(torch.as_tensor(predicted), classes).double() * sure


NAMES = ("a", "b", "c")


def test_gaps_in_closed_form():
    # group a: 4 of 4 right; group b: class 0 right in 1 of 4, class 1 in 2 of 2
    labels = torch.tensor([0, 0, 1, 1, 0, 0, 0, 0, 1, 1])
    predicted = torch.tensor([0, 0, 1, 1, 0, 1, 1, 2, 1, 1])
    groups = torch.tensor([0] * 4 + [1] * 6)
    result = audit_groups(logits_for(predicted), labels, groups, ("a", "b"), NAMES)
    assert result.summary["worst group accuracy"].value == pytest.approx(3 / 6)
    assert result.summary["group accuracy gap"].value == pytest.approx(1 - 3 / 6)
    assert result.summary["equal opportunity gap"].value == pytest.approx(1 - 1 / 4)
    assert "class 'a', between 'a' and 'b'" in result.notes[0]
    assert result.higher_is_better["worst group accuracy"]
    assert not result.higher_is_better["group accuracy gap"]


@given(st.integers(0, 50))
def test_renaming_groups_changes_no_figure(seed):
    rng = torch.Generator().manual_seed(seed)
    logits, labels = torch.randn(60, 3, generator=rng), torch.randint(3, (60,), generator=rng)
    groups = torch.randint(4, (60,), generator=rng)
    first = audit_groups(logits, labels, groups, ("a", "b", "c", "d"), NAMES).summary
    turned = audit_groups(logits, labels, 3 - groups, ("d", "c", "b", "a"), NAMES).summary
    for name, estimate in first.items():
        assert turned[name].value == pytest.approx(estimate.value)


@given(st.integers(0, 30))
def test_groups_that_are_copies_of_each_other_have_no_gap(seed):
    rng = torch.Generator().manual_seed(seed)
    logits, labels = torch.randn(40, 3, generator=rng), torch.randint(3, (40,), generator=rng)
    groups = torch.arange(2).repeat_interleave(40)
    result = audit_groups(logits.repeat(2, 1), labels.repeat(2), groups, ("a", "b"), NAMES)
    assert result.summary["group accuracy gap"].value == 0
    assert result.summary["equal opportunity gap"].value == 0
    assert result.summary["group accuracy gap"].low < 0


def test_a_group_without_samples_is_named_and_counts_nowhere():
    labels, groups = torch.tensor([0, 1, 0, 1]), torch.tensor([0, 0, 2, 2])
    result = audit_groups(logits_for([0, 1, 0, 0]), labels, groups, ("a", "b", "c"), NAMES, torch.tensor([5, 9, 0]))
    assert any("no test samples" in note and "'b'" in note for note in result.notes)
    assert any("no training samples" in note and "'c'" in note for note in result.notes)
    assert result.summary["worst group accuracy"].value == 0.5
    table = result.tables[0].rows
    assert table[1][:3] == ("b", 9, 0)


def test_no_class_in_two_groups_leaves_no_equal_opportunity():
    result = audit_groups(logits_for([0, 0, 1, 1]), torch.tensor([0, 0, 1, 1]), torch.tensor([0, 0, 1, 1]), "ab", NAMES)
    assert "equal opportunity gap" not in result.summary


@pytest.mark.parametrize(
    ("groups", "message"),
    [
        (torch.tensor([0, 1, 2, 0]), r"must be in \[0, 1\]"),
        (torch.tensor([0, 1, 0]), r"must be \(4,\) whole numbers"),
        (torch.tensor([0.0, 1, 0, 1]), "whole numbers"),
        (torch.tensor([1, 1, 1, 1]), "at least two of them"),
    ],
)
def test_groups_that_do_not_fit(groups, message):
    with pytest.raises(ValueError, match=message):
        audit_groups(logits_for([0, 1, 0, 1]), torch.tensor([0, 1, 0, 1]), groups, ("a", "b"), NAMES)


@given(st.integers(0, 40), st.integers(0, 40))
def test_the_interval_of_a_difference(a, b):
    first, second = proportion_interval(a, 40), proportion_interval(b, 50)
    found, turned = difference_of_proportions(first, second), difference_of_proportions(second, first)
    assert found.low <= found.value <= found.high
    assert (turned.low, turned.high) == pytest.approx((-found.high, -found.low))


def test_the_difference_of_a_published_example():
    # Newcombe 1998, table II, case (a): 56 of 70 against 48 of 80, method 10 without correction: .0524 to .3339
    found = difference_of_proportions(proportion_interval(56, 70), proportion_interval(48, 80))
    assert (found.low, found.high) == pytest.approx((0.0524, 0.3339), abs=1e-4)


def test_a_difference_needs_shares():
    with pytest.raises(ValueError, match="a share with an interval"):
        difference_of_proportions(Estimate(0.5, 0.6, 0.7, 3), Estimate(0.5, 0.4, 0.6, 3))


def test_calibration_of_groups_is_told_apart():
    rng = np.random.default_rng(0)
    labels = torch.as_tensor(rng.integers(0, 2, 4000))
    groups = torch.arange(2).repeat_interleave(2000)
    wrong = torch.as_tensor(rng.random(4000)) < torch.where(groups == 0, 0.1, 0.4)
    logits = logits_for(torch.where(wrong, 1 - labels, labels), 2, sure=float(np.log(9)))
    table = audit_groups(logits, labels, groups, ("a", "b"), ("x", "y")).tables[0]
    error = table.columns.index("calibration error")
    assert table.rows[0][error] < 0.03
    assert table.rows[1][error] == pytest.approx(0.3, abs=0.04)
