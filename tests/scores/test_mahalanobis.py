"""Mahalanobis: the naive formula, splits of the data, offsets that hurt naive sums, and precision."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.covariance import EmpiricalCovariance
from torch.testing import assert_close

from weathered.core.rng import generator
from weathered.scores import base, class_gaussian
from weathered.scores.base import Evidence
from weathered.scores.mahalanobis import Mahalanobis, mahalanobis_score


def naive(features, means, covariance):
    precision = torch.linalg.inv(covariance)
    return torch.stack([((features - m) @ precision * (features - m)).sum(1) for m in means], 1).amin(1)


def draw(name, *size):
    return torch.randn(*size, generator=generator(0, name), dtype=torch.float64)


def sample(rows=400, width=12, classes=5):
    labels = torch.arange(rows) % classes
    return 3 * draw("means", classes, width)[labels] + draw("h", rows, width) @ draw("mix", width, width), labels


@pytest.mark.parametrize(("classes", "width"), [(1, 3), (7, 20), (30, 8)])
def test_equals_the_naive_formula(classes, width):
    mixed = draw("mix", width, width)
    covariance = mixed @ mixed.T + 0.1 * torch.eye(width).double()
    features, means = 5 * draw("h", 200, width), 5 * draw("mu", classes, width) + 100
    assert_close(mahalanobis_score(features, means, covariance), naive(features, means, covariance), rtol=1e-8, atol=0)


def test_identity_is_the_squared_distance_to_the_nearest_mean():
    features, means = draw("h", 50, 6), draw("mu", 4, 6)
    expected = torch.cdist(features, means).square().amin(1)
    assert_close(mahalanobis_score(features, means, torch.eye(6)), expected)


def test_blocks_change_nothing(monkeypatch):
    features, labels = sample()
    whole = Mahalanobis().fit(features, labels).score(Evidence(features=features))
    monkeypatch.setattr(base, "CHUNK_VALUES", 100)
    monkeypatch.setattr(class_gaussian, "CHUNK_VALUES", 100)
    assert_close(Mahalanobis().fit(features, labels).score(Evidence(features=features)), whole, rtol=1e-9, atol=1e-9)


def test_learns_means_and_the_pooled_covariance():
    features, labels = sample()
    fitted = Mahalanobis().fit(features, labels)
    means = torch.stack([features[labels == c].mean(0) for c in range(5)])
    centred = (features - means[labels]).numpy()
    assert_close(fitted.means_, means)
    reference = EmpiricalCovariance(assume_centered=True).fit(centred).covariance_
    assert_close(fitted.covariance_, torch.from_numpy(reference))
    ridged = fitted.covariance_ + 1e-6 * torch.eye(12).double()
    assert_close(fitted.score(Evidence(features=features)), naive(features, means, ridged), rtol=1e-8, atol=0)


@settings(max_examples=30)
@given(st.lists(st.integers(0, 400), max_size=6), st.booleans())
def test_any_split_learns_the_same(cuts, by_class):
    features, labels = sample()
    order = labels.argsort(stable=True) if by_class else torch.arange(400)
    whole = Mahalanobis().fit(features, labels)
    parts = Mahalanobis()
    for start, stop in zip([0, *sorted(cuts)], [*sorted(cuts), 400], strict=True):
        parts.partial_fit(features[order[start:stop]], labels[order[start:stop]])
    assert_close(parts.class_counts_, whole.class_counts_)
    assert_close(parts.means_, whole.means_, rtol=1e-10, atol=1e-10)
    assert_close(parts.covariance_, whole.covariance_, rtol=1e-10, atol=1e-10)


def test_a_large_offset_costs_no_digits():
    features, labels = sample()
    plain = Mahalanobis().fit(features, labels)
    moved = Mahalanobis().partial_fit(features[:99] + 1e6, labels[:99]).partial_fit(features[99:] + 1e6, labels[99:])
    expected = plain.score(Evidence(features=features))
    assert_close(moved.score(Evidence(features=features + 1e6)), expected, rtol=1e-6, atol=1e-6)


def test_refitting_forgets_and_new_rows_count_at_once():
    features, labels = sample()
    query = Evidence(features=features[:20])
    fitted = Mahalanobis().fit(features + 5, labels)
    fitted.score(query)
    fitted.fit(features, labels)
    assert torch.equal(fitted.score(query), Mahalanobis().fit(features, labels).score(query))
    before = fitted.score(query)
    fitted.partial_fit(features[:20] + 9, torch.full((20,), 6))
    assert_close(fitted.class_counts_, torch.tensor([80, 80, 80, 80, 80, 0, 20]))
    assert not torch.equal(fitted.score(query), before)


def test_a_class_without_samples_attracts_nothing():
    features, labels = sample(classes=3)
    gapped = torch.where(labels == 2, 9, labels)  # classes 2 to 8 are empty and would sit at the origin
    query = Evidence(features=torch.zeros(1, 12, dtype=torch.float64))
    assert_close(
        Mahalanobis().fit(features, gapped).score(query), Mahalanobis().fit(features, labels).score(query), rtol=1e-9,
        atol=0,
    )  # fmt: skip


def test_a_constant_feature_needs_the_ridge():
    features, labels = sample()
    features = torch.cat([features, torch.ones(400, 1)], 1)
    assert torch.isfinite(Mahalanobis().fit(features, labels).score(Evidence(features=features))).all()
    with pytest.raises(ValueError, match="not positive definite; raise ridge"):
        Mahalanobis(ridge=0).fit(features, labels).score(Evidence(features=features))


@pytest.mark.parametrize("labels", [torch.zeros(9), torch.zeros(8, dtype=torch.int64), -torch.ones(9).long()])
def test_bad_labels_are_refused(labels):
    with pytest.raises(ValueError, match="labels must be"):
        Mahalanobis().fit(draw("h", 9, 2), labels)


def test_other_bad_calls_are_refused():
    fitted = Mahalanobis().fit(*sample())
    with pytest.raises(ValueError, match="width 12"):
        fitted.partial_fit(draw("h", 9, 2), torch.zeros(9).long())
    with pytest.raises(ValueError, match="width 12"):
        fitted.score(Evidence(features=draw("h", 9, 2)))
    with pytest.raises(ValueError, match="at least one row"):
        fitted.fit(draw("h", 0, 2), torch.zeros(0).long())
    with pytest.raises(ValueError, match="ridge must be >= 0"):
        Mahalanobis(ridge=-1)
    with pytest.raises(ValueError, match="do not fit"):
        mahalanobis_score(draw("h", 9, 2), draw("mu", 3, 2), torch.eye(3))


def test_float32_features_score_as_their_float64_copies():
    features, labels = sample()
    fitted = Mahalanobis().fit(features, labels)
    single = (features + 300).float()
    shifted = Mahalanobis().fit(single.double(), labels)
    for model, rows in ((fitted, features.float()), (shifted, single)):
        scores = model.score(Evidence(features=rows))
        assert scores.dtype == torch.float64
        assert_close(scores, model.score(Evidence(features=rows.double())), rtol=1e-4, atol=0)


def test_far_float32_features_stay_finite():
    features, labels = sample()
    fitted = Mahalanobis().fit(features, labels)
    far = torch.full((2, 12), 1e30)
    assert_close(fitted.score(Evidence(features=far)), fitted.score(Evidence(features=far.double())), rtol=1e-6, atol=0)


def test_many_classes_equal_a_loop_over_them():
    features, means, factor = draw("h", 64, 40), draw("mu", 300, 40), draw("mix", 40, 40)
    covariance = factor @ factor.T / 40 + torch.eye(40)
    space = class_gaussian.whiten(means, covariance)
    assert_close(class_gaussian.nearest(features, space), naive(features, means, covariance), rtol=1e-8, atol=0)
