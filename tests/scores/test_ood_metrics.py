"""AUROC and the two false positive rates: references, symmetry, ties, and intervals that hold what they claim."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import norm
from sklearn.metrics import roc_auc_score, roc_curve

from weathered.audit.ood_metrics import auroc, fpr_at_id_acceptance, fpr_at_ood_recall

SCORES = st.lists(st.integers(-4, 4), min_size=1, max_size=30)


def tensor(values):
    return torch.tensor(values, dtype=torch.float64)


@settings(max_examples=60, deadline=None)
@given(SCORES, SCORES, st.floats(0.05, 1.0))
def test_agree_with_scikit_learn_also_with_ties(ids, oods, share):
    truth = np.repeat([0, 1], [len(ids), len(oods)])
    values = np.array([*ids, *oods])
    assert auroc(tensor(ids), tensor(oods)).value == pytest.approx(roc_auc_score(truth, values))
    id_flagged, ood_caught, _ = roc_curve(truth, values, drop_intermediate=False)
    expected = id_flagged[(ood_caught >= share - 1e-9).argmax()]
    assert fpr_at_ood_recall(tensor(ids), tensor(oods), share).value == pytest.approx(expected)
    ood_accepted, id_accepted, _ = roc_curve(1 - truth, -values, drop_intermediate=False)
    expected = ood_accepted[(id_accepted >= share - 1e-9).argmax()]
    assert fpr_at_id_acceptance(tensor(ids), tensor(oods), share).value == pytest.approx(expected)


@settings(max_examples=30, deadline=None)
@given(SCORES, SCORES)
def test_intervals_hold_the_value_and_the_sides_mirror(ids, oods):
    i, o = tensor(ids), tensor(oods)
    for estimate in (auroc(i, o), fpr_at_id_acceptance(i, o), fpr_at_ood_recall(i, o)):
        assert 0 <= estimate.low <= estimate.value <= estimate.high <= 1
        assert estimate.low < estimate.high
    forward, mirrored = auroc(i, o), auroc(o, i)
    assert forward.value == pytest.approx(1 - mirrored.value)
    assert forward.low == pytest.approx(1 - mirrored.high, abs=1e-6)
    assert fpr_at_ood_recall(i, o) == fpr_at_id_acceptance(-o, -i)


def test_the_two_directions_are_different_numbers():
    ids, oods = torch.arange(100).double(), torch.cat([torch.full((10,), -1.0), torch.full((90,), 200.0)]).double()
    assert fpr_at_id_acceptance(ids, oods).value == pytest.approx(0.1)
    assert fpr_at_ood_recall(ids, oods).value == 1.0
    assert fpr_at_id_acceptance(ids, oods).n == 100
    assert auroc(ids, oods[:50]).n == 150


def test_perfect_separation_keeps_an_open_interval_that_shrinks():
    few, many = (auroc(torch.zeros(n) - torch.rand(n), torch.ones(n)) for n in (10, 1000))
    assert few.value == many.value == many.high == 1
    assert few.low < many.low < 1
    assert many.low > 0.99
    rate = fpr_at_id_acceptance(torch.zeros(100), torch.ones(100))
    assert rate.value == rate.low == 0
    assert 0.01 < rate.high < 0.05


def test_infinite_scores_are_ranked():
    assert auroc(tensor([0.0, float("-inf")]), tensor([float("inf"), 1.0])).value == 1


def test_intervals_cover_about_as_often_as_they_say():
    rng = np.random.default_rng(0)
    distance, spread, rounds = 1.5, 1.5, 100
    threshold = norm.ppf(0.95)
    truth = (
        norm.cdf(distance / np.hypot(1, spread)),
        norm.cdf((threshold - distance) / spread),
        1 - norm.cdf(distance - spread * threshold),
    )
    hits = np.zeros(3)
    for _ in range(rounds):
        ids, oods = tensor(rng.normal(size=200)), tensor(rng.normal(distance, spread, size=150))
        found = (auroc(ids, oods), fpr_at_id_acceptance(ids, oods), fpr_at_ood_recall(ids, oods))
        hits += [e.low <= t <= e.high for e, t in zip(found, truth, strict=True)]
    assert (hits / rounds > 0.87).all()


@pytest.mark.parametrize("metric", [auroc, fpr_at_id_acceptance, fpr_at_ood_recall])
def test_bad_scores_are_refused(metric):
    good = torch.zeros(3)
    with pytest.raises(ValueError, match="OOD scores must not be NaN, row 1"):
        metric(good, torch.tensor([0.0, float("nan")]))
    with pytest.raises(ValueError, match="ID scores must be"):
        metric(torch.zeros(0), good)
    with pytest.raises(ValueError, match="OOD scores must be"):
        metric(good, torch.zeros(3, 1))


def test_impossible_shares_are_refused():
    for metric in (fpr_at_id_acceptance, fpr_at_ood_recall):
        with pytest.raises(ValueError, match="accept must be in"):
            metric(torch.zeros(3), torch.zeros(3), 0.0)
