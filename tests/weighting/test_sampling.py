"""Samplers by class: probabilities, limits, what is drawn, and a run that begins to balance late."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.testing import assert_close

from weathered.core.fit import fit
from weathered.core.run import Run
from weathered.core.settings import Settings
from weathered.losses.cross_entropy import CrossEntropy
from weathered.nn.build import build_model
from weathered.weighting.base import class_weights, power_weights
from weathered.weighting.class_balanced import ClassBalanced
from weathered.weighting.class_balanced_sampling import ClassBalancedSampling
from weathered.weighting.drw import DRW
from weathered.weighting.progressive_sampling import ProgressiveSampling

COUNTS = torch.tensor([500, 100, 20, 5])
LABELS = torch.arange(4).repeat_interleave(COUNTS)


def shares(weights: torch.Tensor) -> torch.Tensor:
    return torch.zeros(4, dtype=torch.float64).index_add_(0, LABELS, weights)


@given(st.floats(0, 1))
def test_classes_are_drawn_by_a_power_of_their_sizes(power):
    found = power_weights(LABELS, power)
    expected = COUNTS.double() ** power
    assert_close(shares(found), expected / expected.sum())
    for c in range(4):
        assert_close(found[c == LABELS], (shares(found) / COUNTS)[c].expand(int(COUNTS[c])))


@pytest.mark.parametrize("progress", [-0.1, 90, float("nan")])
def test_progress_is_a_share_and_no_epoch(progress):
    losses, labels = torch.ones(4), torch.arange(4)
    for call in (
        lambda: ClassBalancedSampling().weights(LABELS, progress),
        lambda: ProgressiveSampling().weights(LABELS, progress),
        lambda: DRW(COUNTS)(losses, labels, progress),
    ):
        with pytest.raises(ValueError, match=r"progress must be in \[0, 1\], a share of training and not an epoch"):
            call()


@given(st.integers(1, 10**6), st.integers(1, 300), st.floats(0, 1 - 1e-9))
def test_equal_counts_weigh_one(count, num_classes, beta):
    ones, counts = torch.ones(num_classes).double(), [count] * num_classes
    assert torch.equal(class_weights(counts, rule="inverse"), ones)
    assert_close(class_weights(counts, beta), ones, rtol=1e-12, atol=0)


def test_limits():
    assert_close(ClassBalancedSampling(1.0).weights(LABELS, 0.5), torch.full((625,), 1 / 625).double())
    assert_close(shares(ClassBalancedSampling().weights(LABELS, 0.0)), torch.full((4,), 0.25).double())
    assert_close(ProgressiveSampling().weights(LABELS, 0.0), torch.full((625,), 1 / 625).double())
    assert_close(shares(ProgressiveSampling().weights(LABELS, 1.0)), torch.full((4,), 0.25).double())
    middle = (COUNTS / COUNTS.sum()).double() / 2 + 0.125
    assert_close(shares(ProgressiveSampling().weights(LABELS, 0.5)), middle, atol=1e-7, rtol=0)


def test_a_class_without_rows_is_never_drawn():
    found = power_weights(torch.tensor([0, 0, 2]), 0.0)
    assert_close(found, torch.tensor([0.25, 0.25, 0.5]).double())


def test_draws_follow_the_weights(small_digits):
    labels = torch.where(torch.arange(len(small_digits)) % 5 == 0, 1, 0)
    data = small_digits.replace(labels=labels, class_names=("many", "few"))
    run = Run(build_model("mlp:width=8", data), data, sampler=ClassBalancedSampling(), settings=Settings(epochs=200))
    drawn = torch.cat([data.labels[run.order(epoch)] for epoch in range(200)]).double().mean()
    assert abs(float(drawn) - 0.5) < 0.02


def test_balance_begins_at_its_start(small_digits):
    seen = []

    class Watched(CrossEntropy):
        def __call__(self, logits, labels):
            seen.append(labels)
            return super().__call__(logits, labels)

    labels = torch.where(torch.arange(len(small_digits)) % 10 == 0, 1, 0)
    data = small_digits.replace(labels=labels, class_names=("many", "few"))
    sampler = ClassBalancedSampling(start=0.5)
    settings = Settings(epochs=4, batch_size=len(data))
    fit(Run(build_model("mlp:width=8", data), data, sampler=sampler, loss=Watched(), settings=settings))
    early, late = (torch.cat(part).double().mean() for part in (seen[:2], seen[2:]))
    assert float(early) < 0.2
    assert float(late) > 0.35


def test_class_balanced_weights_are_those_of_drw_from_the_start():
    losses, labels = torch.rand(8, dtype=torch.float64), torch.arange(8) % 4
    for options in ({}, {"beta": 0.99}, {"rule": "inverse"}):
        expected = DRW(COUNTS, start=0.0, **options)(losses, labels, 0.0)
        assert torch.equal(ClassBalanced(COUNTS, **options)(losses, labels, 0.3), expected)


def test_bad_inputs():
    for power in (-0.1, 1.5, float("nan")):
        with pytest.raises(ValueError, match=r"power must be in \[0, 1\]"):
            ClassBalancedSampling(power)
    with pytest.raises(ValueError, match=r"start must be in \[0, 1\]"):
        ClassBalancedSampling(start=160)
    with pytest.raises(ValueError, match="at least one label"):
        power_weights(torch.zeros(0, dtype=torch.int64), 0.5)
