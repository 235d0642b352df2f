"""Folds of a training set as recipes: each row is held out once, whatever the recipe does to the data before."""

import pytest
import torch
from PIL import Image

from weathered.core.errors import DataError, SpecError
from weathered.data.dataset import Dataset
from weathered.data.prepare import prepare
from weathered.data.sources.load import load
from weathered.data.sources.rows import label_columns, row_names
from weathered.data.splits import fold_split
from weathered.recipe import DataOptions, Recipe


def test_each_row_is_held_out_once_and_never_trained_on():
    options = {"make": ("symmetric:rate=0.4",), "limit": 500, "validation": 0.1, "seed": 3}
    whole = prepare(Recipe(data=DataOptions(**options)))
    parts = [prepare(Recipe(data=DataOptions(**options, fold=f"{k}/4"))) for k in range(1, 5)]
    held = torch.cat([part.test.source_rows for part in parts])
    assert torch.equal(held.sort().values, whole.train.source_rows.sort().values)
    label_of = dict(zip(whole.train.source_rows.tolist(), whole.train.labels.tolist(), strict=True))
    for part in parts:
        rows, others = part.train.source_rows.tolist(), part.test.source_rows.tolist()
        assert not set(rows) & set(others)
        assert set(rows) | set(others) == set(label_of)
        # the labels with their noise, not fresh ones
        assert [label_of[row] for row in rows] == part.train.labels.tolist()
        assert [label_of[row] for row in others] == part.test.labels.tolist()
        assert not set(part.validation.source_rows.tolist()) & set(label_of)
    assert "Fold 1 of 4, " in parts[0].train.notes[-1]


@pytest.mark.parametrize("fold", ["0/5", "6/5", "1/1", "5", "a/b", "1/", "-1/5", "1/99999"])
def test_a_fold_out_of_range_is_refused(fold):
    with pytest.raises(SpecError, match=r"fold must be given as in 2/5"):
        DataOptions(fold=fold)


def test_too_few_samples_are_named():
    data = Dataset.of(torch.randn(5, 2), torch.tensor([0, 0, 0, 0, 1]), ("many", "one"))
    with pytest.raises(DataError, match="Class 'one' has 1 sample, but each class needs at least 2"):
        fold_split(data, 0, 2, seed=0)
    data = Dataset.of(torch.randn(4, 2), torch.tensor([0, 0, 1, 1]))
    with pytest.raises(DataError, match="4 rows cannot be parted into 5 folds"):
        fold_split(data, 0, 5, seed=0)


def test_names_of_rows_and_columns_of_labels(tmp_path):
    for kind in ("cat", "dog"):
        (tmp_path / kind).mkdir()
        for number in range(2):
            Image.new("RGB", (4, 4), (number, 9, 0)).save(tmp_path / kind / f"{number}.png")
    assert row_names(f"folder:{tmp_path}", [3, 0]) == ["dog/1.png", "cat/0.png"]
    assert row_names("digits", [17, 2]) == ["row 17", "row 2"]
    table = tmp_path / "t.csv"
    table.write_text("x,label,ada,bob\n1,0,0,1\n2,1,1,1\n3,1,0,0\n")
    assert label_columns(f"csv:{table}", ("ada", "bob"), ("0", "1")).tolist() == [[0, 1], [1, 1], [0, 0]]
    assert load(f"csv:{table}").rows_in_source.tolist() == [0, 1, 2]
