"""The label audit as a whole: what it reports against what is known, and what it leaves out."""

import json

import numpy as np
import pytest
import torch
from label_data import noisy
from sklearn.datasets import load_digits
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import average_precision_score, roc_auc_score

from weathered.audit.labels import audit_labels, out_of_sample_probabilities
from weathered.audit.labels.against_clean import average_precision, precision_recall_chart
from weathered.audit.labels.issues import find_issues
from weathered.core.errors import DataError, SpecError

NAMES = [f"class {k}" for k in range(5)]


def test_report_agrees_with_its_parts_and_can_be_written():
    p, y, true = noisy(1500)
    result = audit_labels(p, y, NAMES, clean=true, score="normalised_margin", resamples=30)
    issues, wrong = find_issues(p, y, score="normalised_margin"), y != true
    assert np.array_equal(result.per_sample["suspected"], issues.mask)
    assert np.array_equal(result.per_sample["score"], issues.score)
    assert np.array_equal(result.per_sample["suggested"], p.argmax(axis=1))
    rank = result.per_sample["rank"]
    assert np.array_equal(np.sort(rank), np.arange(1, 1501))
    assert (np.diff(issues.score[np.argsort(rank)]) >= 0).all()
    values = {name: estimate.value for name, estimate in result.summary.items()}
    assert values["suspected labels"] == issues.mask.mean()
    assert values["true noise rate"] == wrong.mean()
    assert values["average precision"] == pytest.approx(average_precision_score(wrong, -issues.score))
    assert values["AUROC"] == pytest.approx(roc_auc_score(wrong, -issues.score))
    assert values["precision of suspected labels"] == wrong[issues.mask].mean()
    assert values["recall of suspected labels"] == issues.mask[wrong].mean()
    assert all(e.low <= e.value <= e.high for e in result.summary.values())
    assert set(result.higher_is_better) == set(result.summary)
    text = json.dumps(result.to_json(), allow_nan=False)
    assert "out-of-sample" in text


def test_tables_and_charts():
    p, y, true = noisy(1500)
    result = audit_labels(p, y, NAMES, clean=true, resamples=30)
    classes, pairs = result.tables
    columns = {name: [row[k] for row in classes.rows] for k, name in enumerate(classes.columns)}
    assert sum(columns["n"]) == 1500
    assert sum(columns["suspected"]) == result.per_sample["suspected"].sum()
    assert columns["estimated share wrong"] == sorted(columns["estimated share wrong"], reverse=True)
    for low, value, high in zip(columns["low"], columns["estimated share wrong"], columns["high"], strict=True):
        assert low <= value <= high
    assert np.dot(columns["true share wrong"], columns["n"]) == pytest.approx((y != true).sum())
    counts = [row[2] for row in pairs.rows]
    assert counts == sorted(counts, reverse=True)
    assert all(row[0] != row[1] for row in pairs.rows)
    curve, distribution = result.figures
    recall, precision = curve.series[0].x, curve.series[0].y
    assert list(recall) == sorted(recall)
    assert recall[-1] == 1
    last = result.per_sample["rank"][y != true].max()
    assert precision[-1] == pytest.approx((y != true).sum() / last)
    assert [s.name for s in distribution.series] == ["right", "wrong"]
    assert all(sum(s.y) == pytest.approx(1) for s in distribution.series)


def test_real_digits_with_labels_swapped_are_found(tmp_path):
    raw = load_digits()
    pixels = raw.data / 16
    rng = np.random.default_rng(0)
    wrong = rng.random(len(raw.target)) < 0.1
    given = np.where(wrong, (raw.target + rng.integers(1, 10, len(wrong))) % 10, raw.target)

    def fit_predict(train, held):
        model = LogisticRegression(C=0.5, max_iter=300).fit(pixels[train], given[train])
        return model.predict_proba(pixels[held])

    p = out_of_sample_probabilities(fit_predict, given, [str(k) for k in range(10)], folds=3, folder=tmp_path)
    result = audit_labels(tmp_path / "probabilities.npy", given, raw.target_names.astype(str), clean=raw.target)
    assert result.summary["average precision"].value > 0.9
    assert result.summary["AUROC"].value > 0.97
    right = p.argmax(axis=1) == raw.target
    assert (result.per_sample["suggested"] == raw.target)[wrong].mean() == right[wrong].mean() > 0.85
    rate = result.summary["estimated noise rate"]
    assert abs(rate.value - wrong.mean()) < 0.03


def test_repeats_and_blocks_give_the_same_report():
    p, y, _ = noisy(300)
    one = audit_labels(p, y, NAMES, resamples=10)
    other = audit_labels(torch.from_numpy(p), torch.from_numpy(y), NAMES, resamples=10, block_rows=37)
    assert one.to_json() == other.to_json()


def test_without_clean_labels_nothing_is_said_of_precision():
    p, y, _ = noisy(300)
    result = audit_labels(p, y, NAMES, resamples=5)
    assert set(result.summary) == {"estimated noise rate", "suspected labels"}
    assert len(result.figures) == 1
    assert "true share wrong" not in result.tables[0].columns


@pytest.mark.parametrize("all_wrong", [True, False])
def test_clean_labels_with_nothing_to_tell_apart(all_wrong):
    p, y, _ = noisy(100)
    clean = (y + 1) % 5 if all_wrong else y
    result = audit_labels(p, y, NAMES, clean=clean, resamples=5)
    assert result.summary["true noise rate"].value == float(all_wrong)
    assert "average precision" not in result.summary
    assert any("nothing to tell apart" in note for note in result.notes)


def test_a_class_without_samples_is_named_and_last():
    p, y, _ = noisy(200)
    result = audit_labels(p, np.where(y == 3, 0, y), NAMES, resamples=5)
    assert any("'class 3'" in note for note in result.notes)
    assert result.tables[0].rows[-1][:3] == ("class 3", 0, "no samples")
    json.dumps(result.to_json(), allow_nan=False)


def test_average_precision_of_known_rankings():
    wrong = np.array([True, False, True, False])
    assert average_precision(np.array([0.1, 0.2, 0.3, 0.4]), wrong).value == pytest.approx((1 + 2 / 3) / 2)
    best = average_precision(np.array([0.1, 0.9, 0.2, 0.8]), wrong)
    assert best.value == 1
    assert best.low < 1
    assert best.n == 2
    assert average_precision(np.zeros(4), wrong).value == 0.5
    with pytest.raises(ValueError, match="one wrong label"):
        average_precision(np.zeros(2), np.zeros(2, bool))


def test_interval_of_average_precision_covers_that_of_the_population():
    def draw(n, rng):
        wrong = rng.random(n) < 0.2
        return rng.normal(size=n) - 1.5 * wrong, wrong

    truth = average_precision(*draw(400_000, np.random.default_rng(99))).value
    found = [average_precision(*draw(500, np.random.default_rng(seed))) for seed in range(200)]
    assert np.mean([e.low <= truth <= e.high for e in found]) >= 0.9


def test_curve_is_thinned_and_starts_with_the_shortest_list():
    rng = np.random.default_rng(0)
    wrong = rng.random(5000) < 0.3
    chart = precision_recall_chart(rng.random(5000) - wrong * 2.0, wrong)
    assert len(chart.series[0].x) <= 200
    assert chart.series[0].y[0] == 1
    assert "100% of the labels looked at are wrong" in chart.description


def test_bad_input_is_refused():
    p, y, true = noisy(20)
    with pytest.raises(DataError, match="5 columns but there are 4 classes"):
        audit_labels(p, y, NAMES[:4])
    with pytest.raises(DataError, match="one label for each of 20"):
        audit_labels(p, y, NAMES, clean=true[:10])
    with pytest.raises(SpecError, match="score"):
        audit_labels(p, y, NAMES, score="margin")  # pyright: ignore[reportArgumentType]
    with pytest.raises(SpecError, match="method"):
        audit_labels(p, y, NAMES, method="all")  # pyright: ignore[reportArgumentType]
