"""Bad input: every broken, missing or dangerous file is refused in one sentence that names it."""

import os
import zipfile

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from data_files import colour, encode, write_folder, write_idx, write_parquet

from weathered.core.errors import DataError
from weathered.data import load


@pytest.mark.parametrize(
    "way_out", ["../secret.png", "absolute", "link.png", "linked/secret.png", "a/../../secret.png"]
)
def test_csv_paths_that_leave_the_folder_are_refused(tmp_path, way_out):
    secret = tmp_path / "secret.png"
    secret.write_bytes(encode(colour(0)))
    inside = tmp_path / "inside"
    write_folder(inside, ["a", "b"])
    (inside / "link.png").symlink_to(secret)
    (inside / "linked").symlink_to(tmp_path)
    target = str(secret) if way_out == "absolute" else way_out
    (inside / "x.csv").write_text(f"path,label\na/0.png,a\n{target},b\n")
    with pytest.raises(DataError, match="in row 1 leads out of the folder"):
        load(str(inside / "x.csv"))


def test_torchvision_never_opens_a_pickle(tmp_path):
    folder = tmp_path / "cifar-10-batches-py"
    folder.mkdir()
    (folder / "data_batch_1").write_bytes(b"cos\nsystem\n(S'touch opened'\ntR.")
    with pytest.raises(DataError, match=r"holds pickles, which are never opened.*binary version.*parquet"):
        load("torchvision:CIFAR10", root=tmp_path)


def no_pickle(path):
    np.savez(path, x=np.zeros((3, 2)), y=np.array([{"a": 1}, None, 2], dtype=object))


def broken_zip(path):
    np.savez(path, x=np.zeros((300, 2)), y=np.zeros(300))
    path.write_bytes(path.read_bytes()[:400])


def nan_features(path):
    np.savez(path, x=np.array([[0.0], [np.nan], [1.0]]), y=np.array([0, 1, 0]))


def float_images(path):
    np.savez(path, x=np.zeros((3, 2, 2, 3)), y=np.array([0, 1, 0]))


def no_inputs(path):
    np.savez(path, pictures=np.zeros((3, 2)), y=np.array([0, 1, 0]))


def other_length(path):
    np.savez(path, x=np.zeros((3, 2)), y=np.array([0, 1]))


def huge_features(path):
    np.savez(path, x=np.array([[0.0, 1.0], [2.0, 1e39]]), y=np.array([0, 1]))


def no_values(path):
    np.savez(path, x=np.zeros((3, 0)), y=np.array([0, 1, 0]))


def no_array(path):
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("x.npy", b"text")
        archive.writestr("y.npy", b"text")


def nested_names(path):
    np.savez(path, x=np.zeros((2, 2)), y=np.array([0, 1]), class_names=[["a"], ["b"]])


@pytest.mark.parametrize(
    ("write", "message"),
    [
        (no_pickle, "a pickle is never opened"),
        (broken_zip, "not a whole npz file"),
        (nan_features, "row 1 holds NaN or infinity in column 0"),
        (huge_features, r"the feature in column 1 holds 1e\+39 in row 1, beyond the largest float32"),
        (no_values, r"inputs of the shape \(3, 0\) hold no values"),
        (no_array, "'x' is no NumPy array"),
        (nested_names, "class_names must be one-dimensional"),
        (float_images, r"images must be uint8 in 0\.\.255, got float64"),
        (no_inputs, "none of the arrays x, images, features, data is there, only pictures, y"),
        (other_length, "3 inputs but 2 values in 'labels'"),
    ],
)
@pytest.mark.filterwarnings("error")
def test_bad_npz(tmp_path, write, message):
    write(tmp_path / "x.npz")
    with pytest.raises(DataError, match=message):
        load(str(tmp_path / "x.npz"))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "the file is empty"),
        ("\n\n", "the file is empty"),
        ("a,label", "no rows below the header"),
        ("a,label\n", "no rows below the header"),
        ("a,label\n1,x\n2\n", "the header, split at commas, has 2 fields, row 1 has 1"),
        ("a,Label\n1,2\n", r"there is no column 'label'; .* one of: a, Label. Did you mean 'Label'\?"),
        (
            f"{','.join(f'pixel{i}' for i in range(99))},kind\n" + "1," * 99 + "x\n",
            "pixel9, 85 more, .*, pixel98, kind",
        ),
        ("a,b\n1,2\n", "there is no column 'label'; pass --label-column with one of: a, b"),
        ("a,label\n1,x\n2,\n", "label in column 'label' is missing in row 1"),
        ("a,label\n1,x\n,y\n", "feature 'a' is missing, NaN or infinite in row 1"),
        ("a,label\n1,x\ninf,y\n", "feature 'a' is missing, NaN or infinite in row 1"),
        ("a,label\n1,0.5\n2,1\n", "labels must be whole numbers or text, column 'label' holds 0.5 in row 0"),
        ("a,label\n1,-2\n2,1\n", "holds the label -2; if negative marks a missing label"),
        ("a,label\nred,x\nblue,y\n", "feature column 'a' holds string, not numbers"),
        ("a,label\n1e39,x\n2,y\n", r"the feature 'a' holds 1e\+39 in row 0, beyond the largest float32"),
        ("a,label\n1,x\n-1e300,y\n", r"the feature 'a' holds -1e\+300 in row 1"),
        (",a,label\n0,1,x\n1,2,y\n", "the column '' looks like row numbers"),
        ("a,b,label\n1,,x\n2,,y\n", "the feature column 'b' is empty"),
        ('a,label\n1,x\n2,"y\n3,z\n', "the value of 'label' in row 1 runs over several lines"),
        ("a,a,label\n1,2,x\n1,2,y\n", "the column 'a' occurs twice"),
        ("label\nx\ny\n", "no feature columns besides label"),
        ("path,label\na.png,x\n,y\n", "image path in row 1 is missing"),
        ("path,label\na.png,x\nb.png,y\n", "there is no such file"),
    ],
)
@pytest.mark.filterwarnings("error")
def test_bad_csv(tmp_path, text, message):
    (tmp_path / "x.csv").write_text(text)
    with pytest.raises(DataError, match=message) as caught:
        load(str(tmp_path / "x.csv"))
    assert "\n" not in str(caught.value)


def test_bad_parquet(tmp_path):
    images = [encode(colour(i)) for i in range(3)]
    path = write_parquet(tmp_path / "x.parquet", images, {"label": [0, 1, 2]}, {"label": ("cat", "dog")})
    with pytest.raises(DataError, match="label 2 in column 'label', row 2, is none of the 2 classes: cat, dog"):
        load(str(path))
    path = write_parquet(tmp_path / "y.parquet", images, {"label": [0, None, 2]})
    with pytest.raises(DataError, match="missing in row 1"):
        load(str(path))
    with pytest.raises(DataError, match=r"no label column 'labl'. Did you mean 'label'\? The columns are: label"):
        load(str(path), label_column="labl")
    path.write_bytes(path.read_bytes()[:-20])
    with pytest.raises(DataError, match="not a parquet file that can be read"):
        load(str(path))


@pytest.mark.filterwarnings("error")
def test_bad_parquet_tables(tmp_path):
    label = pa.array([0, 1])
    cases = {
        "the feature column 'a' holds list<": pa.table({"a": [[1.0], [2.0]], "label": label}),
        "the feature column 'a' holds struct<": pa.table({"a": [{"u": 1}, {"u": 2}], "label": label}),
        "the feature column 'image' holds struct<bytes: string>": pa.table(
            {"image": [{"bytes": "u"}, {"bytes": "v"}], "label": label}
        ),
        "column 'label' holds dict": pa.table({"a": [1.0, 2.0], "label": [{"u": 1}, {"u": 2}]}),
        r"the feature 'a' holds 1e\+39 in row 1": pa.table({"a": [1.0, 1e39], "label": label}),
        "the column 'a' occurs twice": pa.Table.from_arrays([label, label, label], names=["a", "a", "label"]),
        "the column 'image' occurs twice": pa.Table.from_arrays(
            [pa.array([b"u", b"v"])] * 2 + [label], names=["image", "image", "label"]
        ),
        "'__index_level_0__' looks like row numbers": pa.table({"__index_level_0__": [0, 1], "label": label}),
    }
    for message, table in cases.items():
        pq.write_table(table, tmp_path / "x.parquet")
        with pytest.raises(DataError, match=message):
            load(str(tmp_path / "x.parquet"))


def test_large_whole_numbers_and_decimals_are_features(tmp_path):
    decimals = pa.array([1, 2], type=pa.int64()).cast(pa.decimal128(30, 2))
    pq.write_table(pa.table({"a": [2**60 + 1, 3], "b": decimals, "label": [0, 1]}), tmp_path / "x.parquet")
    (tmp_path / "x.csv").write_text(f"a,b,label\n{2**60 + 1},1,0\n3,2,1\n")
    for name in ("x.parquet", "x.csv"):
        assert load(str(tmp_path / name)).inputs.tensor.tolist() == [[2.0**60, 1.0], [3.0, 2.0]]


@pytest.mark.parametrize(
    ("make", "like"),
    [
        (lambda i: i * 0.37 + 0.1, "column 'label' holds 0.1 in row 0; such a column looks like numbers, not classes"),
        (lambda i: f"{3 * i}.0", "holds 90 different values in 90 rows and looks like numbers, not classes"),
        (lambda i: i // 3 * (i % 3) + i, "looks like numbers, not classes: name another with --label-column"),
        (lambda i: f"person {i}", "looks like names of rows, not classes"),
    ],
)
def test_a_column_to_regress_on_or_of_names_is_no_label(tmp_path, make, like):
    (tmp_path / "x.csv").write_text("a,label\n" + "".join(f"{i},{make(i)}\n" for i in range(90)))
    with pytest.raises(DataError, match=like):
        load(str(tmp_path / "x.csv"))
    (tmp_path / "y.csv").write_text("a,label\n" + "".join(f"{i},{i % 45}\n" for i in range(90)))
    assert load(str(tmp_path / "y.csv")).num_classes == 45


def test_bad_paths_and_names(tmp_path):
    (tmp_path / "empty").mkdir()
    (tmp_path / "thing.txt").write_text("x")
    cases = {
        "digts": r"no data source 'digts'. Did you mean 'digits'\?",
        "parket:x": r"no data source 'parket'. Did you mean 'parquet'\?",
        "digits:5": "'digits' takes nothing after it",
        "parquet:": "'parquet' needs a path",
        f"{tmp_path}/none.csv": "there is no such file",
        f"csv:{tmp_path}": "expected a file",
        f"{tmp_path}/thing.txt": "expected a folder of class folders, or a file",
        f"folder:{tmp_path}/empty": "expected one folder per class, found none",
        f"folder:{tmp_path}": "the class 'empty' is empty",
        f"folder:{tmp_path}/none": "there is no such folder",
        "": "the name of the data is empty",
        "~nobody-of-this-name/x": "the home folder is not known",
        "folder:" + "x" * 5000: "File name too long",
        "x" * 5000 + "/": "File name too long",
        "torchvision:CIFR10": r"no readable data set 'CIFR10'. Did you mean 'CIFAR10'\?",
        "torchvision:MNIST": "needs --root",
        "hf:": "'hf' needs a name",
    }
    for spec, message in cases.items():
        with pytest.raises(DataError, match=message):
            load(spec)
    with pytest.raises(DataError, match="digits has no columns"):
        load("digits", label_column="noisy")
    with pytest.raises(DataError, match=r"MNIST/raw/train-images-idx3-ubyte: there is no such file"):
        load("torchvision:MNIST", root=tmp_path)
    write_idx(tmp_path / "MNIST" / "raw" / "train-images-idx3-ubyte", np.zeros((3, 2, 2)))
    with (tmp_path / "MNIST" / "raw" / "train-images-idx3-ubyte").open("r+b") as stream:
        stream.truncate(20)
    with pytest.raises(DataError, match="not a whole IDX file"):
        load("torchvision:MNIST", root=tmp_path)


@pytest.mark.skipif(os.geteuid() == 0, reason="the superuser may read every file")
def test_a_file_that_may_not_be_read(tmp_path):
    (tmp_path / "x.csv").write_text("a,label\n1,x\n")
    (tmp_path / "x.csv").chmod(0)
    with pytest.raises(DataError, match="cannot be read"):
        load(str(tmp_path / "x.csv"))
