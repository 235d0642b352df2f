"""The columns that say something of rows: groups, and which rows are taken."""

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

from weathered.core.errors import DataError
from weathered.data.sources import load, load_pair


def write(path, groups, extra=None, size=12):
    columns = {
        "x": np.arange(size, dtype=float),
        "z": np.arange(size, dtype=float)[::-1],
        "site": groups,
        "label": [0, 1] * (size // 2),
        **(extra or {}),
    }
    if path.suffix == ".parquet":
        pq.write_table(pa.table(columns), path)
    else:
        names = list(columns)
        lines = [",".join(names)]
        lines += [",".join("" if columns[n][i] is None else str(columns[n][i]) for n in names) for i in range(size)]
        path.write_text("\n".join(lines) + "\n")
    return str(path)


@pytest.fixture(params=[".csv", ".parquet"])
def path(tmp_path, request):
    return tmp_path / f"table{request.param}"


def test_groups_are_numbered_by_name_and_are_no_features(path):
    data = load(write(path, ["b", "a", "c"] * 4), group_column="site")
    assert data.group_names == ("a", "b", "c")
    assert data.extra["group"].tolist() == [1, 0, 2] * 4
    assert data.inputs.shape == (2,)
    assert "group" in data.facts


def test_numbers_come_in_their_order(path):
    data = load(write(path, [10, 9, 2] * 4), group_column="site")
    assert data.group_names == ("2", "9", "10")


def test_both_parts_of_a_split_have_all_names(path):
    train, test = load_pair(write(path, ["a", "b"] * 6), group_column="site")
    assert train.group_names == test.group_names == ("a", "b")


def test_groups_of_a_test_file_keep_the_numbers_of_training(tmp_path):
    first = write(tmp_path / "a.csv", ["m", "z"] * 6)
    second = write(tmp_path / "b.csv", ["a", "m"] * 6)
    train, test = load_pair(first, second, group_column="site")
    assert train.group_names == test.group_names == ("m", "z", "a")
    assert test.extra["group"].tolist() == [2, 0] * 6


def test_rows_of_one_file_are_parted_by_a_column(path):
    where = write(path, ["a", "b"] * 6, {"part": ["train"] * 8 + ["test"] * 4})
    train, test = load_pair(where, rows="part=train", test_rows="part=test", not_features=("site",))
    assert (len(train), len(test)) == (8, 4)
    assert train.inputs.columns == test.inputs.columns == ("x", "z")


def test_rows_that_are_not_chosen_may_lack_labels_and_groups_and_bring_no_classes(path):
    parts = {"part": ["train"] * 6 + ["open"] * 6, "truth": ["a", "b"] * 3 + ["c", None] * 3}
    where = write(path, ["n", "s"] * 3 + [None, "w"] * 3, parts)
    chosen = {"label_column": "truth", "group_column": "site", "rows": "part=train", "not_features": ("label",)}
    train, test = load_pair(where, **chosen)
    assert train.class_names == test.class_names == ("a", "b")
    assert train.group_names == ("n", "s")
    assert len(train) + len(test) == 6
    with pytest.raises(DataError, match="label in column 'truth' is missing in row 7"):
        load_pair(where, **{**chosen, "rows": "part=open"})


def test_a_group_column_that_is_not_there_is_named_before_anything_else(path, tmp_path):
    where = write(path, ["a", "b"] * 6)
    with pytest.raises(DataError, match="no such column 'sitee'. Did you mean 'site'"):
        load(where, group_column="sitee")
    other = write(tmp_path / f"other{path.suffix}", ["a", "b"] * 6)
    with pytest.raises(DataError, match="no such column 'region'"):
        load_pair(
            write(path, ["a", "b"] * 6, {"region": ["x", "y"] * 6}),
            other,
            group_column="region",
            not_features=("site",),
        )


def test_what_is_missing_is_named(path):
    with pytest.raises(DataError, match="missing in row 3"):
        load(write(path, ["a", "b", "a", None] * 3), group_column="site")
    with pytest.raises(DataError, match="no such column 'place'"):
        load(write(path, [1, 2, 1] * 4), group_column="place")
    if path.suffix == ".parquet":
        with pytest.raises(DataError, match="must hold text or whole numbers"):
            load(write(path, [0.5] * 12), group_column="site")


def test_sources_without_columns_are_refused():
    with pytest.raises(DataError, match="have no columns to choose rows, groups or captions by"):
        load("digits", group_column="site")


def test_a_group_array_of_an_npz_file_needs_no_name(tmp_path):
    np.savez(tmp_path / "a.npz", x=np.zeros((4, 2)), y=np.array([0, 1, 0, 1]), group=np.array([0, 1, 1, 0]))
    assert torch.equal(load(str(tmp_path / "a.npz")).extra["group"], torch.tensor([0, 1, 1, 0]))


def test_test_rows_of_the_same_file_are_never_trained_on(path):
    where = write(path, ["a", "b"] * 6, {"part": ["train"] * 8 + ["test"] * 4})
    with pytest.raises(DataError, match="need --rows as well"):
        load_pair(where, test_rows="part=test", not_features=("site",))
    with pytest.raises(DataError, match="4 rows have part=train and site=a; no row may be in both"):
        load_pair(where, rows="part=train", test_rows="site=a", not_features=("site",))


def test_group_names_keep_their_spelling(tmp_path):
    where = write(tmp_path / "a.csv", ["01", "1", "x"] * 4)
    assert set(load(where, group_column="site").group_names) == {"01", "1", "x"}


def test_a_group_array_of_text_gives_its_names(tmp_path):
    x, y, group = np.zeros((6, 2)), np.array([0, 1] * 3), np.array(["south", "north", "south"] * 2)
    np.savez(tmp_path / "a.npz", x_train=x, y_train=y, group_train=group, x_test=x, y_test=y, group_test=group[::-1])
    train, test = load_pair(str(tmp_path / "a.npz"))
    assert train.group_names == test.group_names == ("north", "south")
    assert train.extra["group"].tolist() == [1, 0, 1, 1, 0, 1]
    assert test.extra["group"].tolist() == [1, 0, 1, 1, 0, 1][::-1]


def test_groups_that_only_the_test_set_has_are_noted(tmp_path):
    x, y, group = np.zeros((6, 2)), np.array([0, 1] * 3), np.array(["a", "b"] * 3)
    new = np.array(["a", "b", "c"] * 2)
    np.savez(tmp_path / "a.npz", x_train=x, y_train=y, group_train=group, x_test=x, y_test=y, group_test=new)
    train, _ = load_pair(str(tmp_path / "a.npz"))
    assert [note for note in train.notes if "nothing was learnt of them" in note] == [
        "Groups that only the test set has, so that nothing was learnt of them: 'c'."
    ]


def test_a_sparse_matrix_is_explained(tmp_path):
    scipy_sparse = pytest.importorskip("scipy.sparse")
    scipy_sparse.save_npz(tmp_path / "a.npz", scipy_sparse.eye(4, format="csr"))
    with pytest.raises(DataError, match=r"sparse matrix of SciPy; save it dense .* x=matrix\.toarray\(\)"):
        load(str(tmp_path / "a.npz"))


def test_whole_numbers_that_came_as_groups_are_numbered_anew(tmp_path):
    np.savez(tmp_path / "a.npz", x=np.zeros((8, 2)), y=np.array([0, 1] * 4), group=np.array([-1, 10**13] * 4))
    data = load(str(tmp_path / "a.npz"))
    assert data.group_names == ("-1", "10000000000000")
    assert data.extra["group"].tolist() == [0, 1] * 4
    np.savez(tmp_path / "b.npz", x=np.zeros((8, 2)), y=np.array([0, 1] * 4), group=np.arange(8))
    assert "group" not in load(str(tmp_path / "b.npz")).extra


def test_names_that_are_no_numbers_come_last(tmp_path):
    where = write(tmp_path / "a.parquet", ["nan", "b", "3", "1"] * 3)
    assert load(where, group_column="site").group_names == ("1", "3", "b", "nan")
