"""What a class of outliers rejects: the figures by hand, the threshold, and audits of runs with and without one."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from weathered.audit.options import AuditOptions
from weathered.audit.rejection import (
    ACCEPTED,
    ACCURACY,
    OVER_ALL,
    REJECTED,
    THRESHOLDS,
    WITH_REJECTION,
    audit_rejection,
)
from weathered.audit.run_audits import AUDITS, default_audits
from weathered.core.errors import Incompatible
from weathered.core.rng import generator
from weathered.loaded_run import load_run
from weathered.recipe import DataOptions, Recipe
from weathered.training import train


def values(result) -> dict[str, float]:
    return {name: estimate.value for name, estimate in result.summary.items()}


def test_figures_by_hand():
    """Right and accepted, wrong and accepted, right and rejected, right with an outlier that is the largest but not
    more probable than both classes together."""
    logits = torch.tensor([[3.0, 0.0], [0.0, 3.0], [3.0, 0.0], [1.0, 1.0 - 1e-4]])
    outlier = torch.tensor([-5.0, -5.0, 6.0, 1.1])
    found = audit_rejection(logits, outlier, torch.tensor([0, 0, 0, 0]))
    assert values(found) == {
        ACCURACY: 0.75,
        WITH_REJECTION: 0.5,
        OVER_ALL: 0.25,
        REJECTED: 0.25,
        ACCEPTED: pytest.approx(2 / 3),
    }
    assert found.per_sample["accepted"].tolist() == [True, True, False, True]
    assert found.summary[ACCEPTED].n == 3
    assert found.higher_is_better[REJECTED] is False
    assert found.higher_is_better[WITH_REJECTION]


@given(st.integers(0, 1000), st.floats(0.01, 1.0))
def test_an_input_is_accepted_exactly_where_its_probability_is_below_the_threshold(seed, threshold):
    z = 3 * torch.randn(50, 5, generator=generator(seed, "z"), dtype=torch.float64)
    labels = torch.arange(50) % 4
    found = audit_rejection(z[:, :-1], z[:, -1], labels, threshold)
    p = z.softmax(1)[:, -1].numpy()
    close = np.abs(p - threshold) < 1e-9
    assert np.array_equal(found.per_sample["accepted"][~close], (p < threshold)[~close])
    figures = values(found)
    assert figures[WITH_REJECTION] <= figures[ACCURACY]
    assert figures[ACCURACY] - figures[WITH_REJECTION] <= figures[REJECTED] + 1e-12
    kept = found.per_sample["accepted"].sum()
    assert figures[REJECTED] == pytest.approx(1 - kept / 50)
    # over all outputs is the largest of K + 1 logits
    assert figures[OVER_ALL] == pytest.approx(float((z.argmax(1) == labels).double().mean()))
    rows = found.tables[0].rows
    assert [row[0] for row in rows] == list(THRESHOLDS)
    counts = [row[1] for row in rows]
    assert counts == [int((p < t).sum()) for t in THRESHOLDS]


def test_without_outliers_both_accuracies_are_equal_and_with_all_rejected_none_is_right():
    z, labels = torch.randn(30, 4, generator=generator(0, "z")), torch.arange(30) % 4
    figures = values(audit_rejection(z, torch.full((30,), -60.0), labels))
    assert figures[REJECTED] == 0
    assert figures[ACCURACY] == figures[WITH_REJECTION] == figures[OVER_ALL] == figures[ACCEPTED]
    figures = values(audit_rejection(z, torch.full((30,), 60.0), labels))
    assert figures[REJECTED] == 1
    assert figures[WITH_REJECTION] == figures[OVER_ALL] == 0
    assert ACCEPTED not in figures


def test_at_a_threshold_of_one_nothing_is_rejected_however_sure():
    """Log-odds of 50 and more are probabilities that round to 1."""
    z, labels = torch.zeros(4, 3), torch.zeros(4).long()
    found = audit_rejection(z, torch.tensor([-5.0, 1.0, 50.0, 1e4]), labels, 1.0)
    assert found.per_sample["accepted"].tolist() == [True] * 4
    assert values(found)[REJECTED] == 0
    assert values(found)[ACCURACY] == values(found)[WITH_REJECTION] == 1


def test_arguments_that_do_not_fit_are_refused():
    z, outlier, labels = torch.randn(4, 3), torch.zeros(4), torch.tensor([0, 1, 2, 0])
    for threshold in (0.0, 1.1, math.nan):
        with pytest.raises(ValueError, match=r"threshold must be in \(0, 1\]"):
            audit_rejection(z, outlier, labels, threshold)
    with pytest.raises(ValueError, match=r"labels must be in \[0, 2\]"):
        audit_rejection(z, outlier, labels + 1)
    with pytest.raises(ValueError, match="one outlier logit"):
        audit_rejection(z, outlier[:3], labels)


def finished(folder, *use, seed=0):
    recipe = Recipe(data=DataOptions(limit=240), model="cnn_small:width=8", use=use)
    return load_run(train(recipe.with_settings(epochs=2, batch_size=40, seed=seed), folder).path)


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """A run with a class of outliers and one without."""
    folder = tmp_path_factory.mktemp("runs")
    return finished(folder, "cnc-ood"), finished(folder)


def test_the_score_is_offered_where_the_run_has_a_class_of_outliers(runs):
    cnc, plain = runs
    own = AUDITS["ood"]([cnc], AuditOptions())
    assert "AUROC, outlier-class" in own.summary
    assert not any("outlier-class" in name for name in AUDITS["ood"]([plain], AuditOptions()).summary)
    with pytest.raises(Incompatible, match=r"OutlierClass needs 'outlier_logits'.*cnc-ood"):
        AUDITS["ood"]([plain], AuditOptions(scores=("outlier-class",)))
    alone = AUDITS["ood"]([cnc], AuditOptions(scores=("outlier-class",)))
    assert alone.summary["AUROC, outlier-class"] == own.summary["AUROC, outlier-class"]
    scores = AUDITS["rejection"]([cnc], AuditOptions()).per_sample["outlier_score"]
    np.testing.assert_allclose(alone.per_sample["ood_outlier-class"], scores, atol=1e-6)


def test_a_run_that_is_read_back_scores_as_it_did_and_reports_both_accuracies(runs, tmp_path):
    cnc, plain = runs
    again = load_run(cnc.folder.path)
    x = cnc.splits.test.floats(torch.arange(20))
    with torch.no_grad():
        assert torch.equal(again.model.eval().outlier_score(x), cnc.model.eval().outlier_score(x))
    results = cnc.folder.read_json("run.json")["results"]
    assert results[ACCURACY]["value"] == results["accuracy"]["value"]
    assert results[WITH_REJECTION]["value"] <= results[ACCURACY]["value"]
    assert "rejection" in cnc.folder.read_json("audit.json")
    assert "rejection" not in plain.folder.read_json("audit.json")


def test_the_other_audits_work_on_such_a_run_and_rejection_is_refused_without(runs):
    cnc, plain = runs
    assert "rejection" in default_audits(cnc)
    assert "rejection" not in default_audits(plain)
    for name in ("accuracy", "calibration", "selective", "corruption", "sets"):
        assert AUDITS[name]([cnc], AuditOptions(limit=40)).summary
    with pytest.raises(Incompatible, match="this network has no class of outliers"):
        AUDITS["rejection"]([plain], AuditOptions())
