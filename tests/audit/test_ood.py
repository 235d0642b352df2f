"""Out-of-distribution audit: both directions, ties, coverage, synthetic outliers, and a model end to end."""

import subprocess
import sys

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats
from sklearn.metrics import roc_auc_score
from torch import nn

from weathered.audit.ood import (
    AUROC,
    FALSE_ACCEPTED,
    FALSE_REJECTED,
    audit_ood,
    mean_auroc,
    mean_false_acceptance,
)
from weathered.audit.ood_sets import blend_pairs, shuffle_pixels, synthetic_ood_sets
from weathered.core.errors import DataError, Incompatible, SpecError
from weathered.core.rng import generator
from weathered.data.dataset import Dataset

values = st.lists(st.integers(-4, 4).map(float), min_size=1, max_size=40)


@given(values, values)
def test_auroc_is_sklearns_with_ties_and_turns_around(known, strange):
    known, strange = np.array(known), np.array(strange)
    truth = [0] * len(known) + [1] * len(strange)
    estimate = mean_auroc(known, [strange])
    assert estimate.value == pytest.approx(roc_auc_score(truth, np.concatenate([known, strange])))
    assert estimate.low <= estimate.value + 1e-12
    assert estimate.value <= estimate.high + 1e-12
    assert mean_auroc(strange, [known]).value == pytest.approx(1 - estimate.value)


@given(values, values, st.sampled_from([0.5, 0.8, 0.95, 1.0]))
def test_threshold_accepts_the_share_and_no_lower_one_does(known, strange, share):
    known, strange = np.array(known), np.array(strange)
    allowed = [t for t in known if (known <= t).mean() >= share - 1e-12]
    estimate = mean_false_acceptance(known, [strange], share)
    assert estimate.value == (strange <= min(allowed)).mean()
    assert 0 <= estimate.low <= estimate.value <= estimate.high <= 1


def test_nineteen_of_twenty_are_accepted():
    assert mean_false_acceptance(np.arange(20.0), [np.array([18.0, 18.5])]).value == 0.5


def test_directions_differ_and_are_named():
    """Half of the outliers hide among the test data: few test samples are as strange as the typical outlier."""
    known = np.linspace(0, 1, 101)
    strange = np.concatenate([np.full(50, 0.5), np.full(50, 2.0)])
    row = audit_ood({"s": known}, {"set": {"s": strange}}).tables[0]
    found = dict(zip(row.columns, row.rows[0], strict=True))
    assert found[FALSE_ACCEPTED] == 0.5
    assert found[FALSE_REJECTED] == pytest.approx(51 / 101)
    assert found["n ID"] == 101
    assert found["n OOD"] == 100


def test_perfect_detection_keeps_an_interval():
    estimate = mean_auroc(np.zeros(30), [np.ones(20)])
    assert estimate.value == 1
    assert 0.7 < estimate.low < 0.9
    assert 0 < mean_false_acceptance(np.zeros(30), [np.ones(20)]).high < 0.3


def test_constant_score_is_chance():
    assert mean_auroc(np.zeros(50), [np.zeros(70)]).value == 0.5
    assert mean_false_acceptance(np.zeros(50), [np.zeros(70)]).value == 1


@pytest.mark.parametrize(("n", "m", "shift", "sets"), [(200, 100, 1.0, 1), (300, 200, 2.0, 3)])
def test_intervals_cover(n, m, shift, sets):
    rng, runs = np.random.default_rng(0), 300
    area, accepted = stats.norm.cdf(shift / np.sqrt(2)), stats.norm.cdf(stats.norm.ppf(0.95) - shift)
    covered = np.zeros(2)
    for _ in range(runs):
        known, strange = rng.normal(size=n), [rng.normal(shift, 1, m) for _ in range(sets)]
        one, two = mean_auroc(known, strange), mean_false_acceptance(known, strange)
        covered += [one.low <= area <= one.high, two.low <= accepted <= two.high]
    assert (covered / runs >= 0.91).all()


def test_summary_of_one_set_is_its_row():
    rng = np.random.default_rng(3)
    known, strange = rng.normal(size=70).round(1), rng.normal(1, 1, 50).round(1)
    result = audit_ood({"s": known}, {"set": {"s": strange}})
    row = result.tables[0].rows[0]
    assert result.summary[f"{AUROC}, s"][:3] == row[4:7]
    assert result.summary[f"{FALSE_ACCEPTED}, s"][:3] == row[7:10]
    assert mean_auroc(known, [strange]).value == pytest.approx(row[4])
    assert mean_false_acceptance(known, [strange]).value == pytest.approx(row[7])
    assert mean_false_acceptance(-strange, [-known]).value == pytest.approx(row[10])


def test_only_the_order_of_scores_counts():
    rng = np.random.default_rng(1)
    known, strange = rng.normal(size=80), rng.normal(1, 1, 60)
    one = audit_ood({"s": known}, {"set": {"s": strange}})
    other = audit_ood({"s": np.exp(known)}, {"set": {"s": np.exp(strange)}})
    assert one.tables == other.tables


def test_summary_is_the_mean_over_sets():
    rng = np.random.default_rng(2)
    known = {"a": rng.normal(size=50), "b": rng.normal(size=50)}
    sets = {f"set {i}": {"a": rng.normal(i, 1, 40 + i), "b": rng.normal(0, 1, 40 + i)} for i in range(3)}
    result = audit_ood(known, sets)
    for column, name in ((4, AUROC), (7, FALSE_ACCEPTED)):
        for score in ("a", "b"):
            rows = [row[column] for row in result.tables[0].rows if row[1] == score]
            assert result.summary[f"{name}, {score}"].value == pytest.approx(np.mean(rows))
    assert result.higher_is_better[f"{AUROC}, a"]
    assert not result.higher_is_better[f"{FALSE_ACCEPTED}, a"]
    assert [series.name for series in result.figures[0].series] == list(sets)


@pytest.mark.parametrize(
    ("known", "sets", "message"),
    [
        ({}, {"s": {}}, "at least one score"),
        ({"a": np.zeros(3)}, {}, "one set"),
        ({"a": np.zeros(3)}, {"noise": {"b": np.zeros(3)}}, "noise has the scores"),
        ({"a": np.array([0, np.nan])}, {"noise": {"a": np.zeros(3)}}, "test data, a: the score at position 1 is NaN"),
        ({"a": np.zeros(3)}, {"noise": {"a": np.zeros(0)}}, "noise, a: expected scores"),
    ],
)
def test_bad_scores_are_named(known, sets, message):
    with pytest.raises(ValueError, match=message):
        audit_ood(known, sets)


def coloured(size: int = 40) -> Dataset:
    """Two classes: bright top or bright bottom, with pixel noise."""
    images = torch.randint(60, (size, 3, 8, 8), generator=generator(0, "data"), dtype=torch.uint8)
    labels = torch.arange(size) % 2
    images[labels == 0, :, :4] += 150
    images[labels == 1, :, 4:] += 150
    return Dataset.of(images, labels, ("top", "bottom"), name="coloured")


def test_shuffled_pixels_keep_each_images_pixels_but_not_their_places():
    images = coloured().floats(torch.arange(40))
    shuffled = shuffle_pixels(images, generator(0, "shuffle"))
    code = torch.tensor([1.0, 300.0, 90000.0])
    before, after = ((255 * x * code[:, None, None]).sum(1).flatten(1) for x in (images, shuffled))
    assert torch.equal(before.sort(1).values, after.sort(1).values)
    assert not torch.equal(before, after)
    assert not torch.equal(shuffled[0].argsort(), shuffled[1].argsort())


def test_blends_are_means_of_different_classes():
    images = torch.tensor([0, 100, 255], dtype=torch.uint8)[:, None, None, None].expand(3, 1, 2, 2)
    blends = blend_pairs(images, torch.tensor([0, 0, 1]), generator(0, "pairs"))
    assert set(blends.unique().tolist()) <= {127, 177}
    assert not len(blend_pairs(images, torch.zeros(3, dtype=torch.long), generator(0, "pairs")))


def test_synthetic_sets_repeat_and_leave_the_data_alone():
    data = coloured()
    before = data.inputs.fetch(torch.arange(40)).clone()
    one, two, other = (synthetic_ood_sets(data, seed) for seed in (0, 0, 1))
    assert all("synthetic" in name for name in one)
    rows = torch.arange(30)
    for name in one:
        assert one[name].inputs.shape == (3, 8, 8)
        assert torch.equal(one[name].inputs.fetch(rows), two[name].inputs.fetch(rows))
    noise = "uniform noise (synthetic)"
    assert not torch.equal(one[noise].inputs.fetch(rows), other[noise].inputs.fetch(rows))
    assert torch.equal(before, data.inputs.fetch(torch.arange(40)))
    assert {len(d) for d in synthetic_ood_sets(data, 0, most=10).values()} <= set(range(1, 11))


def test_synthetic_tables_keep_the_columns():
    x = torch.randn(30, 4, generator=generator(0, "x")) * torch.tensor([1.0, 10.0, 0.1, 5.0])
    sets = synthetic_ood_sets(Dataset.of(x, torch.arange(30) % 3), 0)
    shuffled = sets["shuffled columns (synthetic)"].inputs.fetch(torch.arange(30))
    assert torch.equal(shuffled.sort(0).values, x.sort(0).values)
    assert not torch.equal(shuffled, x)
    noise = sets["uniform noise (synthetic)"].inputs.fetch(torch.arange(30))
    assert ((noise >= x.amin(0)) & (noise <= x.amax(0))).all()


def test_one_row_makes_no_outliers():
    with pytest.raises(DataError, match="at least 2 rows"):
        synthetic_ood_sets(coloured(1), 0)


class Halves(nn.Module):
    """Features: mean brightness of the upper and the lower half; a linear head on them."""

    def __init__(self):
        super().__init__()
        self.head = nn.Linear(2, 2)
        nn.init.eye_(self.head.weight)
        nn.init.zeros_(self.head.bias)

    def forward_features(self, x):
        return 10 * torch.stack([x[:, :, :4].mean((1, 2, 3)), x[:, :, 4:].mean((1, 2, 3))], 1)

    def forward_head(self, x, pre_logits=False):
        return x if pre_logits else self.head(x)

    def forward(self, x):
        return self.forward_head(self.forward_features(x))

    def get_classifier(self):
        return self.head


def test_a_model_end_to_end():
    pytest.importorskip("weathered.scores.extract", reason="the scores are not there yet")
    from weathered.audit.ood_model import audit_model_ood, build_scores

    data, model = coloured(), Halves().train()
    result = audit_model_ood(model, data, data, 0, score_names=["msp"])
    area = {row[0]: row[4] for row in result.tables[0].rows}
    assert area["shuffled pixels (synthetic)"] == 1
    assert area["means of two images (synthetic)"] == 1
    assert any("synthetic" in note for note in result.notes)
    assert model.training
    assert len(result.per_sample["ood_msp"]) == 40
    same = audit_model_ood(model, data, data, 0, {"the test data": data}, scores=build_scores(["msp"]))
    assert same.summary[f"{AUROC}, msp"].value == pytest.approx(0.5)
    with pytest.raises(SpecError, match="unknown score 'nope'"):
        audit_model_ood(model, data, data, 0, score_names=["nope"])
    small = Dataset.of(torch.zeros(2, 3, 4, 4, dtype=torch.uint8), torch.zeros(2))
    with pytest.raises(Incompatible, match="outliers 'small' have inputs of shape"):
        audit_model_ood(model, data, data, 0, {"small": small}, ["msp"])


def test_importing_the_audits_imports_nothing_heavy():
    code = "import sys, weathered.audit; sys.exit('torch' in sys.modules or 'scipy' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
