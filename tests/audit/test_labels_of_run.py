"""The label audit of a finished run, by the command line: folds, what it leaves beside the run, and what it refuses."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from weathered.audit.labels.annotator_audit import annotator_findings, annotator_labels
from weathered.audit.labels.audited_labels import labels_folder, read_audited_labels
from weathered.audit.labels.duplicate_audit import duplicate_findings
from weathered.audit.labels.examples import nearest_examples
from weathered.audit.labels.of_run import LabelOptions, as_label_score, audit_run_labels
from weathered.cli.audit_options import label_options
from weathered.core.errors import DataError, SpecError
from weathered.data.dataset import Dataset
from weathered.data.prepare import prepare
from weathered.loaded_run import load_run
from weathered.recipe import DataOptions, Recipe
from weathered.training import train

RECIPE = Recipe(
    data=DataOptions(make=("symmetric:rate=0.2",), limit=400), model="mlp:width=64"
).with_settings(epochs=12, batch_size=50)  # fmt: skip


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    return load_run(train(RECIPE, tmp_path_factory.mktemp("runs")).path)


@pytest.fixture(scope="module")
def audited(run):
    seen = []
    result = audit_run_labels(run, LabelOptions(folds=3), lambda *step: seen.append(step))
    return result, seen


def test_most_wrong_labels_are_found_by_models_that_never_saw_them(run, audited):
    result, seen = audited
    assert result.summary["average precision"].value > 0.8
    assert 0.1 < result.summary["estimated noise rate"].value < 0.35
    assert result.notes[0] == "Probabilities are those of 3 models, each asked only about rows it was not trained on."
    assert {"training folds", "asking each fold's model", "reading inputs"} <= {what for what, _, _ in seen}
    assert all(0 <= done <= of for _, done, of in seen)
    json.dumps(result.to_json(), allow_nan=False)


def test_what_lies_beside_the_run(run, audited):
    result, _ = audited
    kept, data = read_audited_labels(run.folder.path), run.splits.train
    assert np.array_equal(kept.label, data.labels.numpy())
    assert np.array_equal(kept.source_row, data.source_rows.numpy())
    assert np.array_equal(kept.score, result.per_sample["score"])
    assert np.array_equal(kept.suspected, result.per_sample["suspected"])
    assert kept.name[5] == f"row {int(data.source_rows[5])}"
    for row in range(len(kept)):
        if not kept.suspected[row]:
            assert kept.like_label[row] == kept.like_suggested[row] == []
        for near, code in ((kept.like_label[row], kept.label[row]), (kept.like_suggested[row], kept.suggested[row])):
            assert all(kept.label[other] == code and not kept.suspected[other] for other in near)
    assert all(len(kept.like_label[row]) == 4 for row in np.flatnonzero(kept.suspected))


def test_a_second_audit_trains_nothing_and_says_the_same(run, audited):
    folds = sorted((labels_folder(run.folder.path) / "folds").glob("*/done"))
    before = [path.stat().st_mtime_ns for path in folds]
    again = audit_run_labels(run, LabelOptions(folds=3))
    assert [path.stat().st_mtime_ns for path in folds] == before
    assert again.summary == audited[0].summary
    assert np.array_equal(again.per_sample["score"], audited[0].per_sample["score"])


def test_folds_alone_decide_the_probabilities(run, audited):
    """Put together again from the finished folds, each row by the one model that did not see it."""
    path = labels_folder(run.folder.path) / "probabilities-3.npy"
    first = np.load(path)
    assert np.allclose(first.sum(1), 1, atol=1e-5)
    path.unlink()
    audit_run_labels(run, LabelOptions(folds=3))
    assert np.array_equal(np.load(path), first)


def test_given_probabilities_take_the_place_of_folds(run, audited, tmp_path):
    data = run.splits.train
    good = np.full((len(data), 10), 0.01)
    good[np.arange(len(data)), data.clean_labels] = 0.91
    np.save(tmp_path / "p.npy", good)
    result = audit_run_labels(run, LabelOptions(pred_probs=tmp_path / "p.npy"))
    assert result.summary["average precision"].value == 1.0
    for wrong, message in (
        (good[:-1], "Expected one label for each of 399 rows"),
        (good[:, :-1] / good[:, :-1].sum(1, keepdims=True), "9 columns but there are 10 classes"),
        (good * 2, "row 0 sums to 2"),
    ):
        np.save(tmp_path / "p.npy", wrong)
        with pytest.raises(DataError, match=message):
            audit_run_labels(run, LabelOptions(pred_probs=tmp_path / "p.npy"))
    with pytest.raises(DataError, match="is no .npy file of numbers|cannot be read"):
        audit_run_labels(run, LabelOptions(pred_probs=tmp_path / "none.npy"))


def test_a_run_without_an_audit_and_a_damaged_one(run, tmp_path):
    with pytest.raises(DataError, match="has no label audit yet; make one by 'weathered audit .* --audits labels'"):
        read_audited_labels(tmp_path)
    labels_folder(tmp_path).mkdir()
    (labels_folder(tmp_path) / "labels.parquet").write_bytes(b"nothing")
    with pytest.raises(DataError, match="Make the label audit again"):
        read_audited_labels(tmp_path)


@pytest.mark.parametrize("folds", [0, 1, 1001])
def test_folds_out_of_range(folds):
    with pytest.raises(SpecError, match="folds must be in"):
        LabelOptions(folds=folds)


def test_examples_are_the_most_similar_unsuspected_ones():
    features = torch.tensor([[1.0, 0.0], [0.9, 0.1], [0.5, 0.5], [0.0, 1.0], [1.0, 0.01]])
    labels, suspected = np.array([0, 0, 0, 1, 0]), np.array([False, False, False, False, True])
    found = nearest_examples(features, labels, suspected, labels, count=2)
    assert found == [[], [], [], [], [0, 1]]
    assert nearest_examples(features, labels, suspected, np.ones(5, int), count=2)[4] == [3]
    assert nearest_examples(features, labels, suspected, np.full(5, 2), count=2)[4] == []
    assert nearest_examples(None, labels, suspected, labels) == [[]] * 5


def test_copies_under_other_labels_are_found_in_images_and_tables():
    rng = torch.Generator().manual_seed(0)
    images = torch.randint(0, 256, (40, 1, 20, 20), generator=rng, dtype=torch.uint8)
    images[7], images[9] = images[3], (images[4].float() * 0.9 + 5).to(torch.uint8)
    labels = torch.arange(40) % 2
    labels[9] = labels[4]
    found = duplicate_findings(Dataset.of(images, labels))
    assert found.summary["near duplicates"].value == 4 / 40
    assert found.summary["duplicates under another label"].value == 0
    labels[7] = 1 - labels[3]
    found = duplicate_findings(Dataset.of(images, labels))
    assert found.summary["duplicates under another label"].value == 2 / 40
    assert [row[0] for row in found.tables[0].rows] == [3]
    table = torch.randn(40, 5, generator=rng)
    table[11] = table[2]
    assert duplicate_findings(Dataset.of(table, labels)).summary["near duplicates"].value == 2 / 40


def test_copies_of_one_value_and_of_the_mean_row_are_found():
    rng = torch.Generator().manual_seed(3)
    images = torch.randint(256, (30, 3, 8, 8), generator=rng, dtype=torch.uint8)
    for row, value in ((1, 0), (2, 0), (3, 255), (4, 120), (5, 122)):
        images[row] = value
    labels = torch.arange(30) % 2
    found = duplicate_findings(Dataset.of(images, labels))
    assert found.summary["near duplicates"].value == 4 / 30
    assert found.summary["duplicates under another label"].value == 4 / 30
    table = torch.tensor([[-1.0, 2.0], [1.0, -2.0], [0.0, 0.0], [0.0, 0.0]])
    assert duplicate_findings(Dataset.of(table, torch.tensor([0, 1, 0, 1]))).summary["near duplicates"].value == 2 / 4


def test_annotators_may_leave_rows_out_and_labels_be_text(tmp_path):
    rows = ["a,grade,truth,first,second", "1,low,low,low,", "2,high,high,,high", "3,low,high,low,high", "4,high,high,,"]
    (tmp_path / "t.csv").write_text("\n".join(rows) + "\n")
    data = DataOptions(
        train=str(tmp_path / "t.csv"),
        label_column="grade",
        clean_column="truth",
        not_features=("first", "second"),
        test=str(tmp_path / "t.csv"),
    )
    train = prepare(Recipe(data=data, model="mlp:width=8")).train
    given = annotator_labels(data, train, ("first", "second"))
    assert given.tolist() == [[1, -1], [-1, 0], [1, 0], [-1, -1]]
    found = annotator_findings(given, train, ("first", "second"), seed=0)
    assert found.summary["rows with disagreement"].value == 1 / 3
    assert found.summary["rows with disagreement"].n == 3
    assert [row[-1] for row in found.tables[0].rows] == [0.5, 1.0]
    assert "Rows without a label of any annotator, left out: 1." in found.notes
    with pytest.raises(DataError, match="no training row has a label in the columns first, second"):
        annotator_findings(torch.full((4, 2), -1), train, ("first", "second"), seed=0)


def test_annotators_are_measured_from_their_columns(tmp_path):
    rng = np.random.default_rng(0)
    truth = rng.integers(0, 2, 400)
    columns = {
        name: np.where(rng.random(400) < rate, 1 - truth, truth) for name, rate in (("a", 0.05), ("b", 0.1), ("c", 0.4))
    }
    lines = ["x,label,a,b,c"] + [f"{i},{truth[i]}," + ",".join(str(columns[n][i]) for n in "abc") for i in range(400)]
    (tmp_path / "t.csv").write_text("\n".join(lines) + "\n")
    data = Dataset.of(torch.arange(400)[:, None].float(), torch.from_numpy(truth), ("0", "1"))
    options = DataOptions(train=f"csv:{tmp_path / 't.csv'}", label_column="label")
    rows = torch.randperm(400, generator=torch.Generator().manual_seed(1))[:300]
    data = data.replace(source_rows=torch.arange(400), clean_labels=torch.from_numpy(truth)).select(rows)
    found = annotator_findings(annotator_labels(options, data, ("a", "b", "c")), data, ("a", "b", "c"), seed=0)
    by_name = {row[0]: row for row in found.tables[0].rows}
    for name in "abc":
        assert by_name[name][1] == 300
        assert by_name[name][-1] == (columns[name] == truth)[rows.numpy()].mean()
    assert by_name["c"][5] < by_name["b"][5] - 0.2
    assert by_name["c"][5] < by_name["a"][5] - 0.2
    with pytest.raises(SpecError, match="two different columns or more"):
        annotator_labels(options, data, ("a",))
    with pytest.raises(DataError, match="there is no label column 'z'"):
        annotator_labels(options, data, ("a", "z"))
    leaky = Recipe(data=options, model="mlp:width=8").with_settings(epochs=1)
    with pytest.raises(DataError, match="read a, b as features, .* with --not-features a --not-features b."):
        annotator_labels(options, prepare(leaky).train, ("a", "b"))
    told = replace(options, not_features=("a", "b", "c"))
    train = prepare(replace(leaky, data=told)).train
    assert annotator_labels(told, train, ("a", "b")).shape == (len(train), 2)


def test_neighbours_rank_the_same_suspects_by_features(run, audited):
    result = audit_run_labels(run, LabelOptions(folds=3, score="neighbour_agreement"))
    assert np.array_equal(result.per_sample["suspected"], audited[0].per_sample["suspected"])
    assert set(np.unique(result.per_sample["score"] * 10).round(6)) <= set(range(11))
    assert result.summary["average precision"].value > 0.5
    assert "neighbour agreement" in " ".join(result.notes)


def test_two_networks_share_the_folds_and_differ_in_their_draws(run, audited):
    result = audit_run_labels(run, LabelOptions(folds=3, score="two_networks"))
    folder = labels_folder(run.folder.path)
    first, second = (np.load(folder / f"probabilities-3{which}.npy") for which in ("", "-second"))
    rows, labels = np.arange(len(first)), run.splits.train.labels.numpy()
    assert not np.array_equal(first, second)
    assert (first.argmax(axis=1) == second.argmax(axis=1)).mean() > 0.7
    assert result.per_sample["score"] == pytest.approx((first[rows, labels] + second[rows, labels]) / 2, abs=1e-6)
    assert result.summary["average precision"].value > 0.8


def test_names_of_scores():
    assert as_label_score(" two-networks ") == "two_networks"
    assert as_label_score("corrected-confidence") == "corrected_confidence"
    with pytest.raises(SpecError, match="got 'self-confidance'. Did you mean"):
        as_label_score("self-confidance")
    with pytest.raises(SpecError, match="leave out --pred-probs"):
        LabelOptions(score="two_networks", pred_probs=Path("p.npy"))


def test_options_of_the_label_audit_never_do_nothing():
    given = label_options(["labels"], 3, None, "self-confidence", " a ,b", 2)
    assert given == LabelOptions(3, None, "self_confidence", annotators=("a", "b"), workers=2)
    assert label_options(["labels"], None, None, None, None, None) == LabelOptions()
    assert label_options(None, None, None, None, None, None) == LabelOptions()
    with pytest.raises(SpecError, match="--folds, --annotators would do nothing without the label audit"):
        label_options(["accuracy"], 3, None, None, "a,b", None)
    with pytest.raises(SpecError, match="--pred-probs would do nothing without the label audit; add --audits labels"):
        label_options(None, None, Path("p.npy"), None, None, None)
    with pytest.raises(SpecError, match="--pred-probs takes the place of folds, so --folds would do nothing"):
        label_options(["labels"], 3, Path("p.npy"), None, None, None)


def test_a_table_with_a_label_column_of_its_own_and_annotators_that_are_not_there(tmp_path):
    rng = np.random.default_rng(0)
    values = rng.normal(size=(60, 2))
    rows = [f"{a:.3f},{b:.3f},{'high' if a > 0 else 'low'}" for a, b in values]
    (tmp_path / "t.csv").write_text("\n".join(["a,b,grade", *rows]) + "\n")
    data = DataOptions(train=str(tmp_path / "t.csv"), label_column="grade")
    recipe = Recipe(data=data, model="mlp:width=8").with_settings(epochs=2)
    table = load_run(train(recipe, tmp_path / "runs").path)
    with pytest.raises(DataError, match="no label column 'first'"):
        audit_run_labels(table, LabelOptions(folds=2, annotators=("first", "second")))
    assert not labels_folder(table.folder.path).exists()
    audit_run_labels(table, LabelOptions(folds=2))
    assert all(name.startswith("row ") for name in read_audited_labels(table.folder.path).name)


def test_a_file_whose_header_lies_is_one_sentence(run, tmp_path):
    np.save(tmp_path / "p.npy", np.full((400, 10), 0.1, np.float32))
    content = (tmp_path / "p.npy").read_bytes().replace(b"(400, 10), ", b"(-400, 10),")
    (tmp_path / "p.npy").write_bytes(content)
    with pytest.raises(DataError, match=r"p\.npy is no \.npy file of numbers, or a damaged one\.$"):
        audit_run_labels(run, LabelOptions(pred_probs=tmp_path / "p.npy"))
