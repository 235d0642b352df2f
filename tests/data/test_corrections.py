"""Corrected labels: put where they belong, refused where they do not fit, and compared with the given ones."""

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

from weathered.core.errors import DataError
from weathered.core.rng import generator
from weathered.data.dataset import Dataset
from weathered.data.makers import Corrections
from weathered.data.prepare import prepare
from weathered.recipe import DataOptions, Recipe

NAMES = ("ant", "bee", "07", "true")


def insects(size=8):
    return Dataset.of(torch.arange(size)[:, None].float(), torch.arange(size) % 4, NAMES)


def corrected(path, dataset):
    return Corrections(path)(dataset, generator(0, "maker"))


def write(path, lines, header="row,old,new"):
    path.write_text("\n".join([header, *lines]) + "\n")
    return path


def test_labels_are_replaced_and_everything_else_stays(tmp_path):
    data = insects().replace(clean_labels=torch.zeros(8, dtype=torch.int64))
    path = write(tmp_path / "c.csv", ["0,ant,bee", "6,07,true", "3,true,true"])
    out = corrected(path, data)
    assert out.labels.tolist() == [1, 1, 2, 3, 0, 1, 3, 3]
    assert torch.equal(out.clean_labels, data.clean_labels)
    assert data.labels.tolist() == [0, 1, 2, 3] * 2
    assert out.notes == ("2 of 8 labels were corrected by c.csv.",)


def test_quoted_names_that_look_like_nothing_are_names(tmp_path):
    data = Dataset.of(torch.zeros(2, 1), torch.tensor([0, 1]), ("NA", "null"))
    assert corrected(write(tmp_path / "c.csv", ['0,"NA","null"']), data).labels.tolist() == [1, 1]


def test_parquet_and_more_columns(tmp_path):
    path = tmp_path / "c.parquet"
    pq.write_table(pa.table({"row": [2], "new": ["ant"], "old": ["07"], "reviewer": ["Ada"]}), path)
    assert corrected(path, insects()).labels.tolist() == [0, 1, 0, 3, 0, 1, 2, 3]


def test_rows_are_those_of_the_source(tmp_path):
    data = insects().replace(source_rows=torch.arange(8)).select(torch.tensor([5, 1, 7]))
    out = corrected(write(tmp_path / "c.csv", ["7,true,ant", "2,07,ant"]), data)
    assert out.labels.tolist() == [1, 1, 0]
    assert out.notes[-1] == "1 of 3 labels were corrected by c.csv. 1 of its rows are not among the training rows."


@pytest.mark.parametrize(
    ("lines", "message"),
    [
        (["1,ant,bee"], "row 1 has the label 'bee' in data, not 'ant'; the corrections were made for other data"),
        (["1,bee,wasp"], "'new' of correction 1 is 'wasp', which is no class"),
        (["1,bee,beee"], "Did you mean 'bee'"),
        (["1,bee,"], "'new' of correction 1 is None"),
        (["one,bee,ant"], "the row number of correction 1 must be a whole number from 0 on, got 'one'"),
        (["-1,bee,ant"], "must be a whole number from 0 on, got '-1'"),
        (["99999999999999999999,bee,ant"], "must be a whole number"),
        (["1,bee,ant", "1,bee,07"], "row 1 is corrected twice"),
        (["100,bee,ant"], "none of its 1 rows is among the training rows"),
        ([], "no rows below the header"),
    ],
)
def test_what_does_not_fit_is_one_sentence(tmp_path, lines, message):
    with pytest.raises(DataError, match=message) as caught:
        corrected(write(tmp_path / "c.csv", lines), insects())
    assert "\n" not in str(caught.value)


def test_bad_files(tmp_path):
    with pytest.raises(DataError, match="need the columns row, old, new; 'old' is missing"):
        corrected(write(tmp_path / "c.csv", ["1,2"], "row,new"), insects())
    with pytest.raises(DataError, match="there is no such file"):
        Corrections(tmp_path / "none.csv")
    with pytest.raises(DataError, match=r"ends in .csv or .parquet"):
        Corrections(write(tmp_path / "c.pkl", ["1,2,3"]))
    (tmp_path / "c.parquet").write_bytes(b"PAR1 nothing")
    with pytest.raises(DataError, match="not a table that can be read"):
        corrected(tmp_path / "c.parquet", insects())


def test_a_recipe_corrects_after_its_noise_and_leaves_the_test_set_alone(tmp_path):
    noisy = prepare(Recipe(data=DataOptions(make=("symmetric:rate=0.3",), limit=600)))
    train = noisy.train
    wrong = (train.labels != train.clean_labels).nonzero()[:, 0]
    lines = [f"{int(train.source_rows[i])},{int(train.labels[i])},{int(train.clean_labels[i])}" for i in wrong]
    path = write(tmp_path / "c.csv", lines)
    fixed = prepare(Recipe(data=DataOptions(make=("symmetric:rate=0.3", f"corrections:file={path}"), limit=600)))
    assert torch.equal(fixed.train.labels, train.clean_labels)
    assert torch.equal(fixed.test.source_rows, noisy.test.source_rows)
    assert torch.equal(fixed.test.labels, noisy.test.labels)
    clean = prepare(Recipe(data=DataOptions(limit=600)))
    with pytest.raises(DataError, match="made for other data or other labels"):
        prepare(Recipe(data=DataOptions(make=(f"corrections:file={path}",), limit=600)))
    assert torch.equal(clean.train.source_rows, train.source_rows)
