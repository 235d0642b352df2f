"""LADC without a run: blended Gaussians, and what is drawn from them."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.testing import assert_close

from weathered.core.rng import generator
from weathered.procedures.ladc import LADC, FeatureCalibration, class_gaussians, head_classes

COUNTS = (60, 30, 8, 1, 3)


def tail(counts=COUNTS, width: int = 6, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    """Rows of classes with different means and spreads, shuffled."""
    rng = generator(seed, "tail")
    labels = torch.arange(len(counts)).repeat_interleave(torch.tensor(counts))
    mixing = torch.randn(len(counts), width, width, generator=rng, dtype=torch.float64)
    noise = torch.randn(len(labels), 1, width, generator=rng, dtype=torch.float64)
    means = 3 * torch.randn(len(counts), width, generator=rng, dtype=torch.float64)
    features = means[labels] + (noise @ mixing[labels])[:, 0]
    order = torch.randperm(len(labels), generator=rng)
    return features[order], labels[order]


def test_means_and_covariances_are_those_of_the_classes_and_one_row_has_none():
    features, labels = tail()
    found = class_gaussians(features.float(), labels)
    assert found.means.dtype == found.covariances.dtype == torch.float64
    for c in (0, 1, 2, 4):
        rows = features.float().double()[labels == c]
        assert_close(found.means[c], rows.mean(0))
        assert_close(found.covariances[c], rows.T.cov())
    assert torch.equal(found.covariances[3], torch.zeros(6, 6).double())
    assert found.counts.tolist() == list(COUNTS)


def test_head_classes_are_two_fifths_of_the_classes_with_ties_or_those_above_a_threshold():
    assert head_classes(torch.tensor([5, 9, 1, 7, 3])).tolist() == [False, True, False, True, False]
    assert head_classes(torch.tensor([5, 9, 1, 5, 5])).tolist() == [True, True, False, True, True]
    assert head_classes(torch.full((7,), 4)).all()
    assert head_classes(torch.tensor([5, 9, 1, 7, 3]), 5).tolist() == [True, True, False, True, False]


def test_delta_one_with_the_own_covariance_is_the_gaussian_of_the_class():
    features, labels = tail()
    plain = class_gaussians(features, labels)
    for m in (1, 2):
        found = FeatureCalibration(m, delta=1.0, ridge=1e-9, own_covariance=1.0).fit(features, labels)
        assert_close(found.means_, plain.means)
        assert_close(found.covariances_, plain.covariances, atol=1e-6, rtol=0)


def test_blending_by_hand():
    features, labels = tail((40, 20, 30, 4, 2))
    plain, found = class_gaussians(features, labels), FeatureCalibration(2, 0.3, head_count=20).fit(features, labels)
    assert found.head_.tolist() == [True, True, True, False, False]
    distances = (plain.means[:3] - plain.means[3]).square().sum(1)
    near = distances.argsort()[:2]
    assert sorted(found.neighbours_[3].tolist()) == sorted(near.tolist())
    share = plain.counts[near].double() / plain.counts[near].sum()
    assert_close(found.means_[3], 0.3 * plain.means[3] + 0.7 * (share @ plain.means[near]))
    within = torch.stack([(features[labels == c] - plain.means[c]).square().sum(0) for c in range(5)]).sum() / 91 / 6
    blended = sum(float(a) * plain.covariances[k] for a, k in zip(share, near, strict=True))
    assert_close(found.covariances_[3], blended + 1e-3 * within * torch.eye(6).double(), atol=1e-9, rtol=1e-9)
    assert_close(found.means_[:3], plain.means[:3])
    assert_close(found.covariances_[0], plain.covariances[0] + 1e-3 * within * torch.eye(6).double())


def test_the_nearest_class_is_that_of_the_shortest_straight_way():
    means = torch.tensor([[3.0, 3.0], [5.0, 0.0], [0.0, 0.0]])
    labels = torch.tensor([0, 0, 1, 1, 2])
    away = torch.tensor([[0.1, 0.0], [-0.1, 0.0], [0.0, 0.1], [0.0, -0.1], [0.0, 0.0]])
    found = FeatureCalibration(1).fit(means[labels] + away, labels)
    assert found.neighbours_[2].tolist() == [0]


def test_delta_zero_with_one_neighbour_takes_its_mean_exactly():
    features, labels = tail()
    found = FeatureCalibration(1, delta=0.0).fit(features, labels)
    for c in (2, 3, 4):
        assert torch.equal(found.means_[c], found.means_[found.neighbours_[c, 0]])


@given(delta=st.floats(0, 1), m=st.integers(1, 2), seed=st.integers(0, 5))
def test_a_blended_mean_lies_between_its_own_and_the_borrowed_one(delta, m, seed):
    features, labels = tail(seed=seed)
    own, borrowed, found = (
        FeatureCalibration(m, delta=share).fit(features, labels).means_ for share in (1.0, 0.0, delta)
    )
    assert_close(found, delta * own + (1 - delta) * borrowed)


@given(own=st.floats(0, 1), seed=st.integers(0, 5))
def test_covariances_are_symmetric_and_positive_even_for_one_row(own, seed):
    features, labels = tail(seed=seed)
    found = FeatureCalibration(own_covariance=own).fit(features, labels).covariances_
    assert torch.equal(found, found.mT)
    assert (torch.linalg.eigvalsh(found) > 0).all()


def test_draws_have_the_mean_and_the_covariance_they_are_drawn_from():
    features, labels = tail()
    found = FeatureCalibration(clamp=False).fit(features, labels)
    drawn, of_class = found.sample(generator(0), torch.tensor([0, 0, 0, 100_000, 0]))
    assert (of_class == 3).all()
    for value, expected in ((drawn.mean(0), found.means_[3]), (drawn.T.cov(), found.covariances_[3])):
        assert float((value - expected).norm() / expected.norm()) < 0.02


def test_every_class_has_as_many_rows_as_the_largest_and_real_rows_stay():
    features, labels = tail()
    features = features.float()
    before = features.clone()
    rows, of_class = FeatureCalibration().fit(features, labels).balance(features, labels, generator(0))
    assert of_class.bincount().tolist() == [60] * 5
    assert torch.equal(rows[: len(features)], before)
    assert torch.equal(of_class[: len(labels)], labels)
    assert torch.equal(features, before)
    assert rows.dtype == torch.float32


def test_classes_of_one_size_draw_nothing():
    features, labels = tail((9, 9, 9))
    found = FeatureCalibration().fit(features, labels)
    drawn, of_class = found.sample(generator(0))
    assert drawn.shape == (0, 6)
    assert not len(of_class)
    assert torch.equal(found.balance(features, labels, generator(0))[0], features)


def test_a_shift_of_all_features_moves_means_and_nothing_else():
    (features, labels), shift = tail(), 100 * torch.randn(6, generator=generator(9), dtype=torch.float64)
    one, moved = (FeatureCalibration().fit(z, labels) for z in (features, features + shift))
    assert_close(moved.means_, one.means_ + shift)
    assert_close(moved.covariances_, one.covariances_, atol=1e-9, rtol=1e-9)
    assert torch.equal(moved.neighbours_, one.neighbours_)


def test_other_numbers_for_the_classes_permute_the_result():
    features, labels = tail()
    new = torch.tensor([3, 0, 4, 1, 2])
    one, other = (FeatureCalibration().fit(features, y) for y in (labels, new[labels]))
    assert_close(other.means_[new], one.means_)
    assert_close(other.covariances_[new], one.covariances_)
    assert torch.equal(other.neighbours_[new], new[one.neighbours_])


def test_one_seed_has_one_set_and_another_has_another():
    features, labels = tail()
    found = FeatureCalibration().fit(features, labels)
    first, again, other = (found.sample(generator(seed))[0] for seed in (0, 0, 1))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)


def test_draws_are_clamped_only_where_all_features_are_at_least_0():
    features, labels = tail()
    drawn = {
        (clamp, positive): float(FeatureCalibration(clamp=clamp).fit(z, labels).sample(generator(0))[0].min())
        for clamp in (True, False)
        for positive, z in ((True, features.relu()), (False, features))
    }
    assert drawn[True, True] == 0
    assert drawn[False, True] < 0
    assert drawn[True, False] == drawn[False, False] < 0


def test_powers_act_before_statistics_and_on_what_is_returned():
    features, labels = tail()
    positive = features.abs()
    for power, by_hand in ((0.5, positive.sqrt()), (0.0, (positive + 1e-6).log())):
        found = FeatureCalibration(power=power).fit(positive, labels)
        assert_close(found.means_, FeatureCalibration().fit(by_hand, labels).means_)
        assert_close(found.transform(positive), by_hand)
        assert_close(found.balance(positive, labels, generator(0))[0][: len(labels)], by_hand)
    assert FeatureCalibration().transform(features) is features
    with pytest.raises(ValueError, match="power=0.5 takes features >= 0, got -"):
        FeatureCalibration(power=0.5).fit(features, labels)


def test_bad_input_is_refused(images):
    features, labels = tail()
    for options, message in (
        ({"delta": 1.1}, r"delta must be in \[0, 1\], got 1.1"),
        ({"neighbours": 0}, "neighbours must be in"),
        ({"ridge": 0.0}, "ridge must be in"),
        ({"own_covariance": -0.1}, "own_covariance must be in"),
    ):
        with pytest.raises(ValueError, match=message):
            FeatureCalibration(**options)
        with pytest.raises(ValueError, match=message):
            LADC(**options)
    with pytest.raises(ValueError, match="start must be in"):
        LADC(1.5)
    with pytest.raises(ValueError, match=r"classes without one: \[5\]"):
        FeatureCalibration().fit(features, labels, 6)
    with pytest.raises(ValueError, match="no class has head_count=61 rows, the largest has 60"):
        FeatureCalibration(head_count=61).fit(features, labels)
    with pytest.raises(ValueError, match="features must be finite, row 3 is not"):
        FeatureCalibration().fit(features.index_fill(0, torch.tensor([3]), torch.nan), labels)
    with pytest.raises(ValueError, match=r"labels must be in \[0, 3\], got 0 to 4"):
        FeatureCalibration().fit(features, labels, 4)
    with pytest.raises(ValueError, match=r"expected features \(N, D\)"):
        FeatureCalibration().fit(features[:3], labels)
    with pytest.raises(ValueError, match="call fit"):
        FeatureCalibration().sample(generator(0))
    for ridge, z in ((1e-3, torch.ones_like(features)), (1e-20, torch.cat([features, features], 1))):
        with pytest.raises(ValueError, match=f"not positive definite: raise ridge={ridge:g}, unless no feature varies"):
            FeatureCalibration(ridge=ridge).fit(z, labels).sample(generator(0))
    with pytest.warns(UserWarning, match="9 neighbours were asked for, but only 2 classes are frequent"):
        found = FeatureCalibration(9).fit(features, labels)
    assert torch.equal(found.means_, FeatureCalibration(2).fit(features, labels).means_)
