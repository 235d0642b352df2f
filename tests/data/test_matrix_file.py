"""Matrices from files: both kinds are read alike, and what is no matrix is named."""

import numpy as np
import pytest
import torch

from weathered.core.errors import DataError
from weathered.data import matrix_file
from weathered.data.matrix_file import read_matrix


@pytest.mark.parametrize("dtype", [np.float64, np.float32, np.int64, np.uint8])
def test_npy_and_csv_hold_the_same_numbers(tmp_path, dtype):
    array = np.arange(6).reshape(2, 3).astype(dtype)
    np.save(tmp_path / "m.npy", array)
    np.savetxt(tmp_path / "m.CSV", array, delimiter=",")
    for name in ("m.npy", "m.CSV"):
        found = read_matrix(str(tmp_path / name))
        assert found.dtype == torch.float64
        assert torch.equal(found, torch.arange(6).reshape(2, 3).double())


def test_column_order_of_the_file_does_not_matter_and_one_line_is_a_row(tmp_path):
    array = np.arange(6.0).reshape(2, 3)
    np.save(tmp_path / "m.npy", np.asfortranarray(array))
    assert torch.equal(read_matrix(str(tmp_path / "m.npy")), torch.from_numpy(array))
    (tmp_path / "m.csv").write_text("1,2,3\n")
    assert read_matrix(str(tmp_path / "m.csv")).shape == (1, 3)


def test_what_was_read_does_not_depend_on_the_file_any_more(tmp_path):
    np.save(tmp_path / "m.npy", np.ones((2, 2)))
    found = read_matrix(str(tmp_path / "m.npy"))
    found[0, 0] = 5
    assert np.load(tmp_path / "m.npy")[0, 0] == 1


class Planted:
    """An object that leaves a trace where it is unpickled."""

    loaded = False

    def __setstate__(self, state):
        Planted.loaded = True

    def __getstate__(self):
        return {"x": 1}


def test_pickled_objects_are_refused_unread(tmp_path):
    objects = np.empty((2, 2), dtype=object)
    objects[:] = Planted()
    np.save(tmp_path / "m.npy", objects, allow_pickle=True)
    with pytest.raises(DataError, match="m.npy: cannot be read as a matrix"):
        read_matrix(str(tmp_path / "m.npy"))
    objects.dump(tmp_path / "n.npy")
    with pytest.raises(DataError, match="n.npy: cannot be read as a matrix"):
        read_matrix(str(tmp_path / "n.npy"))
    assert not Planted.loaded


def write(folder, name, content):
    path = folder / name
    if isinstance(content, bytes):
        path.write_bytes(content)
    else:
        np.save(path, content)
    return str(path)


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("m.txt", b"1,2", "ends in .npy or .csv"),
        ("m.csv", b"1,2\n3\n", "cannot be read as a matrix"),
        ("m.csv", b"a,b\n1,2\n", "cannot be read as a matrix"),
        ("m.csv", b"\xff\xfe\x00", "cannot be read as a matrix"),
        ("m.npy", b"not numpy", "cannot be read as a matrix"),
        ("m.npy", b"", "the file is empty"),
        ("m.npy", np.zeros(3), "expected a matrix of real numbers, got shape \\(3,\\)"),
        ("m.npy", np.zeros((2, 2, 2)), "expected a matrix"),
        ("m.npy", np.zeros((2, 2), complex), "complex128"),
        ("m.npy", np.zeros((2, 2), "U3"), "expected a matrix of real numbers"),
    ],
)
def test_what_is_no_matrix_is_named(tmp_path, name, content, message):
    with pytest.raises(DataError, match=message) as error:
        read_matrix(write(tmp_path, name, content))
    assert str(error.value).startswith(str(tmp_path / name))


def test_damaged_empty_missing_and_large_files(tmp_path, monkeypatch):
    whole = write(tmp_path, "m.npy", np.ones((20, 20)))
    data = (tmp_path / "m.npy").read_bytes()
    (tmp_path / "cut.npy").write_bytes(data[:-8])
    (tmp_path / "empty.csv").write_text("")
    with pytest.raises(DataError, match="cannot be read as a matrix"):
        read_matrix(str(tmp_path / "cut.npy"))
    with pytest.raises(DataError, match=r"empty.csv: the file is empty"):
        read_matrix(str(tmp_path / "empty.csv"))
    with pytest.raises(DataError, match="there is no such file"):
        read_matrix(str(tmp_path / "absent.npy"))
    with pytest.raises(DataError, match="expected a file"):
        read_matrix(str(tmp_path))
    monkeypatch.setattr(matrix_file, "LARGEST", 1000)
    with pytest.raises(DataError, match="more than the 0 MiB"):
        read_matrix(whole)
