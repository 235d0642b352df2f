"""Targets are convex combinations whatever is mixed into them."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.testing import assert_close

from weathered.core.batch import Batch
from weathered.core.objective import losses_of
from weathered.core.roles import Part
from weathered.core.target import Target, as_target
from weathered.losses.cross_entropy import CrossEntropy
from weathered.losses.logitclip import LogitClip
from weathered.weighting.drw import DRW

sizes = st.integers(1, 12)
seeds = st.integers(0, 10_000)


@given(size=sizes, seed=seeds, rounds=st.integers(0, 4))
def test_rows_sum_to_one_after_any_chain_of_mixes(size, seed, rounds):
    rng = torch.Generator().manual_seed(seed)
    target = Target.hard(torch.randint(5, (size,), generator=rng))
    for number in range(rounds):
        lam = torch.rand((size,) if number % 2 else (), generator=rng)
        target = target.mix(torch.randperm(size, generator=rng), lam)
    dense = target.dense(5)
    assert_close(dense.sum(1), torch.ones(size), atol=1e-6, rtol=0)
    assert (dense >= 0).all()
    assert target.labels.shape[0] == 2**rounds


@given(size=sizes, seed=seeds)
def test_mix_equals_the_mix_of_dense_targets(size, seed):
    rng = torch.Generator().manual_seed(seed)
    target = Target.soft(torch.rand(size, 4, generator=rng).softmax(1))
    partner, lam = torch.randperm(size, generator=rng), torch.rand(size, generator=rng)
    expected = lam[:, None] * target.dense(4) + (1 - lam)[:, None] * target.dense(4)[partner]
    assert_close(target.mix(partner, lam).dense(4), expected)


def test_soft_and_dense_are_inverse():
    p = torch.rand(6, 3).softmax(1)
    assert_close(Target.soft(p).dense(3), p)


def test_hard_target_round_trip_and_select():
    labels = torch.tensor([2, 0, 1])
    target = Target.hard(labels)
    assert target.is_hard
    assert torch.equal(target.single(), labels)
    assert torch.equal(target.select(torch.tensor([True, False, True])).single(), labels[[0, 2]])


def test_cat_fills_shorter_mixtures_with_weight_zero():
    hard = Target.hard(torch.tensor([1, 2]))
    mixed = hard.mix(torch.tensor([1, 0]), torch.tensor(0.25))
    both = Target.cat([hard, mixed])
    assert_close(both.dense(3), torch.cat([hard.dense(3), mixed.dense(3)]))


def test_refusals_name_the_row_and_the_value():
    with pytest.raises(ValueError, match="row 1 sums to 0.5"):
        Target.soft(torch.tensor([[0.5, 0.5], [0.25, 0.25]]))
    with pytest.raises(ValueError, match="one-dimensional integers"):
        Target.hard(torch.rand(3))
    with pytest.raises(ValueError, match="mixtures of 2"):
        Target.hard(torch.tensor([0, 1])).mix(torch.tensor([1, 0]), torch.tensor(0.5)).single()
    with pytest.raises(ValueError, match=r"\[0, 1\], got 2"):
        Target.hard(torch.tensor([2])).dense(2)
    with pytest.raises(ValueError, match=r"\[0, 1\], got -100"):
        Target.hard(torch.tensor([1, -100])).dense(2)
    with pytest.raises(ValueError, match="3 inputs but 2 labels"):
        Batch.of(torch.rand(3, 1), torch.tensor([0, 1]))


NARROW = torch.full((4, 3), 1 / 3)


class HardOnly(Part):
    def __call__(self, logits, labels):
        return torch.nn.functional.cross_entropy(logits, labels, reduction="none")


@pytest.mark.parametrize("classes", [2, 4])
@pytest.mark.parametrize("loss", [CrossEntropy(), LogitClip(), HardOnly()])
def test_soft_labels_that_are_not_as_wide_as_the_logits_are_refused(classes, loss):
    """Whatever became of them on the way; else a class would silently get no probability."""
    target, partner = Target.soft(NARROW), torch.tensor([1, 0, 3, 2])
    made = [
        target,
        target.mix(partner, torch.tensor(0.3)),
        Target.hard(torch.arange(4) % 2).blend(target, torch.tensor(0.3)),
        target.select(partner > 0).to("cpu"),
        Target.cat([Target.hard(torch.tensor([0])), target]),
    ]
    for each in made:
        message = f"soft labels must have one column for each of {classes} classes, got 3 columns"
        with pytest.raises(ValueError, match=message):
            each.dense(classes)
        with pytest.raises(ValueError, match=message):
            losses_of(loss, torch.zeros(len(each), classes), each)
        with pytest.raises(ValueError, match=message):
            DRW([5] * classes)(torch.zeros(len(each)), each, 0.9)
        assert torch.isfinite(losses_of(loss, torch.zeros(len(each), 3), each)).all()


def test_soft_labels_of_two_widths_are_not_combined():
    narrow, wide = Target.soft(NARROW), Target.soft(torch.full((4, 5), 0.2))
    for combine in (lambda: narrow.blend(wide, torch.tensor(0.5)), lambda: Target.cat([wide, narrow])):
        with pytest.raises(ValueError, match="soft labels of 3 and of 5 columns"):
            combine()


def test_hard_labels_and_their_mixtures_fit_any_number_of_classes_that_holds_them():
    mixed = Target.hard(torch.tensor([0, 2])).mix(torch.tensor([1, 0]), torch.tensor(0.25))
    for classes in (3, 10):
        assert_close(mixed.dense(classes)[0, :3], torch.tensor([0.25, 0.0, 0.75]))


def test_as_target_accepts_all_three_forms():
    labels = torch.tensor([0, 1])
    target = as_target(labels)
    assert as_target(target) is target
    assert torch.equal(as_target(torch.eye(2)).dense(2), target.dense(2))
