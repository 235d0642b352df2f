"""Makers in a recipe: each occurrence draws from a generator of its own, whatever else is named."""

import pytest
import torch

from weathered.data.prepare import prepare
from weathered.recipe import DataOptions, Recipe


def labels_of(*make, seed=0):
    return prepare(Recipe(data=DataOptions(make=make, seed=seed))).train.labels


def changed(first, second):
    return (first != second).nonzero()[:, 0]


@pytest.mark.parametrize("kind", ["symmetric", "instance"])
def test_the_same_noise_twice_draws_anew(kind):
    clean, once, twice = labels_of(), labels_of(f"{kind}:rate=0.3"), labels_of(f"{kind}:rate=0.3", f"{kind}:rate=0.3")
    count = int(0.3 * len(clean))
    first, second = changed(clean, once), changed(once, twice)
    assert len(first) == len(second) == count
    assert not torch.equal(first, second)
    # independent picks of 30 % meet in 30 % of the first: 121 of 404, standard deviation about 8
    shared = len(set(first.tolist()) & set(second.tolist()))
    assert abs(shared - 0.3 * count) < 45
    assert torch.equal(twice, labels_of(f"{kind}:rate=0.3", f"{kind}:rate=0.3"))
    assert not torch.equal(twice, labels_of(f"{kind}:rate=0.3", f"{kind}:rate=0.3", seed=1))


def test_another_maker_between_two_does_not_shift_the_second():
    first = labels_of("symmetric:rate=0.3")
    plain = labels_of("symmetric:rate=0.3", "symmetric:rate=0.2")
    between = labels_of("symmetric:rate=0.3", "asymmetric:rate=0.0", "symmetric:rate=0.2")
    assert torch.equal(plain, between)
    assert len(changed(first, plain)) == int(0.2 * len(first))


def test_the_truth_and_the_notes_of_two_noises():
    train = prepare(Recipe(data=DataOptions(make=("symmetric:rate=0.3", "symmetric:rate=0.3")))).train
    assert torch.equal(train.clean_labels, labels_of())
    assert len(train.notes) == 2
    wrong = int((train.labels != train.clean_labels).sum())
    assert train.notes[1].endswith(f"{wrong} now differ from the truth.")
    # 0.3 + 0.3 - 0.09 are touched, and one in nine of those touched twice returns
    assert abs(wrong / len(train) - (0.51 - 0.09 / 9)) < 0.04


def test_two_open_sets_and_two_long_tails():
    make = ("open-set:rate=0.2,source=digits", "open-set:rate=0.2,source=digits")
    train = prepare(Recipe(data=DataOptions(make=make))).train
    again = prepare(Recipe(data=DataOptions(make=make))).train
    count, size = int(0.2 * len(train)), len(train)
    foreign = int((train.clean_labels == -1).sum())
    assert count < foreign < 2 * count
    assert abs(foreign / size - 0.36) < 0.03
    everything = torch.arange(size)
    assert torch.equal(train.inputs.fetch(everything), again.inputs.fetch(everything))
    tails = prepare(Recipe(data=DataOptions(make=("long-tail:imbalance=2", "long-tail:imbalance=3")))).train
    assert tails.class_counts[0] / tails.class_counts[-1] == pytest.approx(3, rel=0.1)
