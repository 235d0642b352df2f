"""Training dynamics and two networks: closed forms, direction, and gaps."""

import numpy as np
import pytest
import torch
from label_data import noisy
from scipy.spatial.distance import jensenshannon

from weathered.audit.labels.trajectory import (
    area_under_margin,
    margin_threshold,
    margins,
    mean_loss_score,
    two_networks,
)
from weathered.core.errors import DataError


def test_margin_is_the_gap_to_the_best_other_class():
    z = np.array([[3.0, 1.0, -2.0], [3.0, 1.0, -2.0], [-5.0, -6.0, -9.0]])
    assert margins(z, np.array([0, 1, 2])).tolist() == [2, -2, -4]
    assert margins(torch.from_numpy(z), torch.tensor([0, 1, 2])).tolist() == [2, -2, -4]


def test_area_is_the_mean_over_the_epochs_in_which_a_sample_was_seen():
    values = np.array([[1.0, 2.0, np.nan], [3.0, np.nan, -1.0]])
    assert area_under_margin(values).tolist() == [2, 2, -1]
    assert area_under_margin(torch.tensor(values, dtype=torch.float32)).tolist() == [2, 2, -1]
    assert mean_loss_score(values).tolist() == [-2, -2, 1]


def test_threshold_is_the_quantile_of_the_extra_class():
    area = np.arange(200.0)
    assert margin_threshold(area, np.arange(101)) == pytest.approx(99)
    assert margin_threshold(area, np.arange(101), 0.5) == pytest.approx(50)


def test_area_under_the_margin_separates_labels_that_are_learnt_late():
    """A linear model learns four clusters by gradient descent; a tenth of the labels is wrong."""
    rng = np.random.default_rng(0)
    true = np.arange(400) % 4
    x = np.eye(4)[true] * 3 + rng.normal(size=(400, 4))
    given = np.where(np.arange(400) < 40, (true + 1) % 4, true)
    weights, seen = np.zeros((4, 4)), []
    for _ in range(20):
        z = x @ weights
        seen.append(margins(z, given))
        p = np.exp(z - z.max(axis=1, keepdims=True))
        weights += 0.5 * x.T @ (np.eye(4)[given] - p / p.sum(axis=1, keepdims=True)) / len(x)
    area = area_under_margin(np.stack(seen))
    assert np.median(area[:40]) < 0 < np.median(area[40:])


def test_two_networks_against_scipy_and_limits():
    p, y, _ = noisy(100, 4, seed=1)
    q, _, _ = noisy(100, 4, seed=2)
    found = two_networks(p, q, y)
    assert found.self_confidence == pytest.approx((p + q)[np.arange(100), y] / 2)
    assert found.agreement == pytest.approx(1 - jensenshannon(p, q, axis=1, base=2) ** 2)
    best = p.argmax(axis=1)
    assert np.array_equal(found.both_against, (best == q.argmax(axis=1)) & (best != y))
    assert two_networks(p, p, y).agreement == pytest.approx(np.ones(100))
    opposite = two_networks(np.eye(2), np.eye(2)[::-1], np.array([0, 1]))
    assert opposite.agreement == pytest.approx([0, 0])
    for mine, expected in zip(two_networks(q, p, y), found, strict=True):
        assert mine == pytest.approx(expected)


def test_bad_input_is_refused():
    p, y, _ = noisy(5, 3)
    with pytest.raises(DataError, match="one shape"):
        two_networks(p, p[:4], y)
    with pytest.raises(DataError, match="row 2 sums to"):
        two_networks(p, np.where(np.arange(5)[:, None] == 2, 0.5, p), y)
    with pytest.raises(DataError, match="Sample 1 has no losses"):
        mean_loss_score(np.array([[1.0, np.nan]]))
    with pytest.raises(DataError, match="\\(E, N\\)"):
        area_under_margin(np.ones(3))
    with pytest.raises(DataError, match="Logits must be finite, row 1"):
        margins(np.array([[1.0, 2.0], [np.nan, 1.0]]), np.array([0, 1]))
    with pytest.raises(DataError, match="extra class"):
        margin_threshold(np.ones(3), np.array([], int))
    with pytest.raises(ValueError, match="quantile"):
        margin_threshold(np.ones(3), np.array([0]), 99)
