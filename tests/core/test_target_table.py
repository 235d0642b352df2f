"""The table of averaged targets: its closed form, whose rows change, and what never reaches it."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.testing import assert_close

from weathered.core.target_table import TargetTable, averaged_targets, label_table


def predictions(rows: int, classes: int, seed: int) -> torch.Tensor:
    rng = torch.Generator().manual_seed(seed)
    return (4 * torch.randn(rows, classes, generator=rng)).softmax(1)


def test_the_table_starts_from_the_labels():
    labels = torch.tensor([2, 0, 1])
    assert torch.equal(label_table(labels, 3), torch.eye(3)[labels])
    assert_close(label_table(labels, 3, 0.3), 0.7 * torch.eye(3)[labels] + 0.1)
    with pytest.raises(ValueError, match=r"labels must be in \[0, 1\], got 2 at position 0"):
        label_table(labels, 2)
    with pytest.raises(ValueError, match="smoothing"):
        label_table(labels, 3, 1.0)


@pytest.mark.parametrize("momentum", [0.0, 0.5, 0.9, 1.0])
def test_constant_predictions_give_the_closed_form(momentum):
    table, p = label_table(torch.tensor([0, 1, 2]), 4), predictions(3, 4, 0)
    start, index = table.clone(), torch.tensor([2, 0, 1])
    for n in range(1, 12):
        table[index] = averaged_targets(table, index, p, momentum)
        expected = momentum**n * start[index] + (1 - momentum**n) * p
        assert_close(table[index], expected, atol=1e-6, rtol=0)
    if momentum == 1.0:
        assert torch.equal(table, start)


def test_seven_sure_predictions_outvote_a_label():
    table, other = label_table(torch.tensor([0]), 3), torch.tensor([[0.0, 1.0, 0.0]])
    index, won = torch.tensor([0]), []
    for _ in range(8):
        table[index] = averaged_targets(table, index, other, 0.9)
        won.append(int(table.argmax(1)))
    assert won == [0, 0, 0, 0, 0, 0, 1, 1]


@given(st.integers(1, 12), st.integers(2, 6), st.floats(0, 1), st.integers(0, 1000))
def test_rows_stay_distributions_and_other_rows_stay(visited, classes, momentum, seed):
    rng = torch.Generator().manual_seed(seed)
    table = label_table(torch.randint(classes, (20,), generator=rng), classes)
    for step in range(5):
        before, index = table.clone(), torch.randint(20, (visited,), generator=rng)
        table[index] = averaged_targets(table, index, predictions(visited, classes, seed + step), momentum)
        untouched = torch.ones(20, dtype=torch.bool)
        untouched[index] = False
        assert torch.equal(table[untouched], before[untouched])
    assert_close(table.sum(1), torch.ones(20), atol=1e-5, rtol=0)
    assert float(table.min()) >= 0
    assert float(table.max()) <= 1


def test_the_order_of_a_batch_does_not_matter_even_where_it_holds_a_row_twice():
    table, p = label_table(torch.arange(6) % 3, 3), predictions(5, 3, 1)
    index = torch.tensor([4, 0, 4, 2, 5])
    new = averaged_targets(table, index, p, 0.9)
    perm = torch.tensor([3, 2, 4, 0, 1])
    assert torch.equal(averaged_targets(table, index[perm], p[perm], 0.9), new[perm])
    assert torch.equal(new[0], new[2])
    assert_close(new[0], 0.9 * table[4] + 0.1 * (p[0] + p[2]) / 2)


def test_arguments_stay_as_they_were_and_carry_no_gradient():
    table, logits = label_table(torch.arange(3), 3), torch.zeros(3, 3, requires_grad=True)
    new = averaged_targets(table, torch.arange(3), logits.softmax(1), 0.5)
    assert torch.equal(table, torch.eye(3))
    assert not new.requires_grad


def test_half_precision_is_used_for_storage_only():
    labels, index, rows = torch.arange(8) % 5, torch.arange(8), []
    for half in (False, True):
        table = label_table(labels, 5).to(torch.float16 if half else torch.float32)
        for step in range(50):
            new = averaged_targets(table, index, predictions(8, 5, step), 0.9)
            assert new.dtype == torch.float32
            assert_close(new.sum(1), torch.ones(8), atol=1e-5, rtol=0)
            table[index] = new.to(table.dtype)
        rows.append(new)
    assert_close(rows[0], rows[1], atol=5e-3, rtol=0)


def test_what_would_spoil_the_table_is_refused():
    table, p, index = label_table(torch.arange(3), 3), torch.eye(3), torch.arange(3)
    with pytest.raises(IndexError, match=r"index must be in \[0, 2\], got 3 at position 1"):
        averaged_targets(table, torch.tensor([0, 3, 1]), p, 0.9)
    with pytest.raises(IndexError, match="got -1 at position 0"):
        averaged_targets(table, torch.tensor([-1, 0, 1]), p, 0.9)
    with pytest.raises(ValueError, match="probability must be"):
        averaged_targets(table, index, p[:, :2], 0.9)
    with pytest.raises(ValueError, match="finite, row 1 is not"):
        averaged_targets(table, index, torch.tensor([[1.0, 0, 0], [math.nan] * 3, [0, 0, 1]]), 0.9)
    for momentum in (-0.1, 1.1, math.nan):
        with pytest.raises(ValueError, match="momentum"):
            averaged_targets(table, index, p, momentum)


def test_a_state_is_copied_and_must_fit():
    start = torch.eye(3)
    first, second = TargetTable(start, 0.9), TargetTable(torch.zeros(3, 3), 0.9)
    second.load_state_dict(first.state_dict())
    first.rows[0] = 0.0
    assert torch.equal(second.rows, torch.eye(3))
    assert torch.equal(start, torch.eye(3))
    with pytest.raises(ValueError, match=r"the table is \(2, 3\)"):
        TargetTable(torch.ones(2, 3), 0.9).load_state_dict(first.state_dict())
