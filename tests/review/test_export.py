"""Corrections: which rows are exported, what the lines say, and that training takes them up."""

import csv
import io

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from sample_reviews import digits_of, review_of

from weathered.core.errors import DataError, SpecError
from weathered.core.rng import generator
from weathered.data.makers.corrections import Corrections as CorrectionsMaker
from weathered.review.export import Correction, corrections, encoded, write_corrections
from weathered.review.review import Selection

ODD_NAMES = ("=1+1", "+a", "-b", "@c", "d,e", 'f"g', "007", "true", "ä ö", "<script>")


@pytest.fixture
def review(tmp_path):
    made = review_of(digits_of(names=ODD_NAMES), tmp_path)
    yield made
    made.store.close()


def exported(review, keep=False):
    with review.standing() as standing:
        return corrections(review.audited, review.class_names, standing, keep)


def test_only_changed_labels_are_corrections_and_every_line_says_who_and_when(review):
    one, two, three, four, five = review.suspects[:5].tolist()
    accepted = review.decide(one, int(review.audited.suggested[one]), "ann", "key-000001")
    review.decide(two, int(review.audited.label[two]), "ann", "key-000002")
    third = next(c for c in range(10) if c not in (review.audited.label[three], review.audited.suggested[three]))
    review.decide(three, third, "bob", "key-000003")
    review.decide(four, None, "bob", "key-000004")
    review.decide(five, int(review.audited.suggested[five]), "bob", "key-000005")
    review.store.undo("bob", "key-000006")
    found = exported(review)
    assert found.disputed == 0
    assert {line.row: line.action for line in found.lines} == {3 * one: "accept", 3 * three: "relabel"}
    line = next(line for line in found.lines if line.row == 3 * one)
    assert (line.old, line.new) == (ODD_NAMES[review.audited.label[one]], ODD_NAMES[review.audited.suggested[one]])
    assert (line.reviewer, line.time, line.agreed, line.of) == ("ann", accepted.time, 1, 1)
    assert line.time.endswith("+00:00")
    assert {line.row: line.action for line in exported(review, keep=True).lines} == {
        3 * one: "accept",
        3 * two: "keep",
        3 * three: "relabel",
    }


def test_disagreement_is_left_out_until_more_than_half_agree(review):
    row = int(review.suspects[0])
    given, suggested = int(review.audited.label[row]), int(review.audited.suggested[row])
    review.decide(row, suggested, "ann", "key-000001")
    review.decide(row, given, "bob", "key-000002")
    assert exported(review) == ([], 1)
    last = review.decide(row, suggested, "eve", "key-000003")
    (line,) = exported(review).lines
    assert (line.reviewer, line.agreed, line.of, line.time) == ("ann, eve", 2, 3, last.time)
    review.decide(row, given, "ann", "key-000004")
    assert exported(review) == ([], 0)
    assert exported(review, keep=True).lines[0].action == "keep"


@pytest.mark.parametrize("kind", ["csv", "parquet"])
def test_training_takes_up_what_was_exported(review, tmp_path, kind):
    """Class names that look like formulas, numbers or several columns come back as they are."""
    expected = review.dataset.labels.clone()
    for number, row in enumerate(review.suspects.tolist()):
        label = int(review.audited.suggested[row])
        review.decide(row, label, "ann", f"key-{number:06}")
        expected[row] = label
    path = tmp_path / f"corrections.{kind}"
    write_corrections(path, exported(review).lines)
    source_rows = torch.from_numpy(review.audited.source_row)
    dataset = review.dataset.replace(source_rows=source_rows)
    corrected = CorrectionsMaker(path)(dataset, generator(0, "test"))
    assert torch.equal(corrected.labels, expected)
    assert (corrected.labels != dataset.labels).sum() == len(review.suspects)
    # a file for other labels is refused by its old labels
    with pytest.raises(DataError, match="made for other data or other labels"):
        CorrectionsMaker(path)(corrected, generator(0, "test"))


def line_named(name: str, old: str = "=old") -> Correction:
    return Correction(7, name, old, "-new", "accept", "ann", "2026-01-01T00:00:00.000+00:00", 1, 1)


@pytest.mark.parametrize("name", ["=cmd", "+1", "-1", "@sum", "a\n=b", "plain.png", "\tx"])
def test_only_names_are_made_harmless_for_spreadsheets(name):
    text = encoded("csv", [line_named(name)]).decode()
    (row,) = csv.DictReader(io.StringIO(text))
    assert not row["name"].startswith(("=", "+", "-", "@", "\t"))
    assert "\n" not in row["name"]
    assert row["name"].lstrip("'").split()[0] in name
    assert (row["old"], row["new"]) == ("=old", "-new")


def test_parquet_keeps_names_and_types(tmp_path):
    write_corrections(tmp_path / "c.parquet", [line_named("=cmd"), line_named("\udcff.png")])
    table = pq.read_table(tmp_path / "c.parquet")
    assert table["name"].to_pylist() == ["=cmd", "\\udcff.png"]
    assert table["row"].to_pylist() == [7, 7]
    assert table.schema.names == list(Correction._fields)
    write_corrections(tmp_path / "empty.parquet", [])
    assert pq.read_table(tmp_path / "empty.parquet").schema == table.schema


def test_a_file_is_whole_or_not_there(tmp_path):
    path = tmp_path / "c.csv"
    write_corrections(path, [line_named("a")])
    before = path.read_bytes()
    with pytest.raises(DataError, match="runs over several lines; export to parquet"):
        write_corrections(path, [line_named("a", old="two\nlines")])
    assert path.read_bytes() == before
    with pytest.raises(SpecError, match="csv or parquet, got 'txt'"):
        write_corrections(tmp_path / "c.txt", [])
    (tmp_path / "folder.csv").mkdir()
    with pytest.raises(DataError, match="is a folder"):
        write_corrections(tmp_path / "folder.csv", [])
    assert sorted(path.name for path in tmp_path.iterdir() if path.is_file()) == ["c.csv"]


def test_what_is_left_is_the_noise_rate_less_what_was_found(review):
    with review.standing() as standing:
        before = review.progress(standing)
    assert before.left == pytest.approx((20, 12, 28, 200))
    for number, row in enumerate(review.suspects[:15].tolist()):
        review.decide(row, int(review.audited.suggested[row]), "ann", f"key-{number:06}")
    review.decide(int(review.suspects[20]), int(review.audited.label[review.suspects[20]]), "ann", "key-kept-1")
    with review.standing() as standing:
        after = review.progress(standing)
        left = review.select(Selection(), "ann", standing)
    assert after.left == pytest.approx((5, 0, 13, 200))
    assert (after.decided, after.corrections, after.suspects) == (16, 15, 60)
    assert len(left) == 44
    assert np.all(np.diff(review.audited.rank[left]) > 0)
