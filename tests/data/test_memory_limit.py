"""The memory limit holds for what a small file becomes, not for the file: nothing much larger is ever unpacked."""

import gzip
import os
import tracemalloc
from contextlib import contextmanager

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from data_files import write_idx

from weathered.core.errors import DataError
from weathered.data.sources import load

MIB = 1 << 20


@contextmanager
def allocating_at_most(size):
    """The block may not allocate more than `size` bytes at a time in Python and NumPy."""
    tracemalloc.start()
    try:
        yield
        assert tracemalloc.get_traced_memory()[1] < size
    finally:
        tracemalloc.stop()


def write_packed(path, shape, content):
    path.parent.mkdir(parents=True, exist_ok=True)
    head = bytes([0, 0, 8, len(shape)]) + b"".join(n.to_bytes(4, "big") for n in shape)
    path.write_bytes(gzip.compress(head + content, 1))


@pytest.mark.parametrize(
    ("shape", "content", "message"),
    [
        ((10, 28, 28), 40 * MIB, "not a whole IDX file of 3 dimensions"),
        ((52_429, 28, 28), 40 * MIB, "the arrays take 40 MiB, the limit is 8 MiB; store the images in parquet"),
        ((10, 28, 28), 7839, "not a whole IDX file"),
    ],
    ids=["more than it says", "as much as it says", "less than it says"],
)
def test_a_packed_idx_file_is_unpacked_no_further_than_the_limit(tmp_path, shape, content, message):
    raw = tmp_path / "MNIST" / "raw"
    write_packed(raw / "train-images-idx3-ubyte.gz", shape, bytes(content))
    write_idx(raw / "train-labels-idx1-ubyte", np.zeros(shape[0]))
    with allocating_at_most(4 * MIB), pytest.raises(DataError, match=message):
        load("torchvision:MNIST", root=tmp_path, memory_limit_bytes=8 * MIB)


def test_labels_count_as_the_whole_numbers_they_become(tmp_path):
    raw = tmp_path / "MNIST" / "raw"
    for kind, shape in (("images-idx3", (3 * MIB, 1, 1)), ("labels-idx1", (3 * MIB,))):
        write_packed(raw / f"train-{kind}-ubyte.gz", shape, bytes(3 * MIB))
    with (
        allocating_at_most(10 * MIB),
        pytest.raises(DataError, match=r"train-labels.* take 24 MiB, the limit is 8 MiB"),
    ):
        load("torchvision:MNIST", root=tmp_path, memory_limit_bytes=8 * MIB)


def test_a_damaged_end_of_a_packed_file_is_found(tmp_path):
    raw = tmp_path / "MNIST" / "raw"
    write_packed(raw / "train-images-idx3-ubyte.gz", (2, 4, 4), bytes(range(32)))
    write_packed(raw / "train-labels-idx1-ubyte.gz", (2,), bytes([0, 1]))
    path = raw / "train-images-idx3-ubyte.gz"
    data = path.read_bytes()
    assert len(load("torchvision:MNIST", root=tmp_path)) == 2
    for damaged in (data[:-1], data[:-8] + bytes([data[-8] ^ 1]) + data[-7:]):
        path.write_bytes(damaged)
        with pytest.raises(DataError, match=r"train-images.*: the file cannot be read"):
            load("torchvision:MNIST", root=tmp_path)


@pytest.mark.parametrize(
    ("arrays", "message"),
    [
        ({"X": np.zeros((32, 32, 3, 7000), np.uint8), "y": np.ones(7000, np.uint8)}, "take 21 MiB, the limit is 8 MiB"),
        ({"X": np.zeros((1, 1, 3, 2), np.uint8), "y": np.ones(2_000_000, np.uint8)}, "take 16 MiB, the limit is 8"),
        ({"X": np.array([[np.zeros(3), "x"]], dtype=object), "y": np.ones(2)}, "'X' is a cell, expected an array"),
    ],
    ids=["images", "labels", "cells"],
)
def test_mat_files_beyond_the_limit_are_refused(tmp_path, arrays, message):
    scipy_io = pytest.importorskip("scipy.io")
    scipy_io.savemat(tmp_path / "train_32x32.mat", arrays, do_compression=True)
    with pytest.raises(DataError, match=message):
        load("torchvision:SVHN", root=tmp_path, memory_limit_bytes=8 * MIB)


def test_large_cifar_files_are_not_read(tmp_path):
    folder = tmp_path / "cifar-100-binary"
    folder.mkdir()
    (folder / "fine_label_names.txt").write_text("a b")
    (folder / "train.bin").write_bytes(b"")
    os.truncate(folder / "train.bin", 3074 * 10_000)
    with allocating_at_most(4 * MIB), pytest.raises(DataError, match="take 30 MiB, the limit is 8 MiB"):
        load("torchvision:CIFAR100", root=tmp_path, memory_limit_bytes=8 * MIB)


def repeated(text, rows):
    """Rows of one text, held once here and in the file."""
    return pa.DictionaryArray.from_arrays(pa.array(np.zeros(rows, np.int32)), [text])


@pytest.mark.parametrize(
    ("column", "rows"),
    [
        (lambda rows: np.zeros(rows), 4_000_000),
        (lambda rows: pa.array([np.zeros(MIB)] * rows), 4),
        (lambda rows: repeated("q" * MIB, rows), 300),
    ],
    ids=["numbers", "lists", "texts"],
)
def test_a_parquet_table_is_not_unpacked_beyond_the_limit(tmp_path, column, rows):
    path = tmp_path / "x.parquet"
    table = pa.table({"a": column(rows), "label": np.arange(rows) % 2})
    pq.write_table(table, path, compression="zstd", store_schema=False)
    del table
    assert path.stat().st_size < MIB
    pool = pa.default_memory_pool()
    before, peak = pool.bytes_allocated(), pool.max_memory()
    with pytest.raises(DataError, match=r"x.parquet: the arrays take \d+ MiB, the limit is 8 MiB; keep fewer rows"):
        load(str(path), memory_limit_bytes=8 * MIB)
    assert pool.max_memory() <= max(peak, before + 64 * MIB)


def test_a_table_up_to_the_limit_is_read_as_it_is(tmp_path):
    rng = np.random.default_rng(0)
    columns = {"a": rng.normal(size=20_000), "b": rng.integers(0, 9, 20_000)}
    text = [f"class {i % 3}" for i in range(20_000)]
    path = tmp_path / "x.parquet"
    pq.write_table(pa.table({**columns, "label": text}), path, row_group_size=7000)
    # 2 columns and the labels as float32
    data = load(str(path), memory_limit_bytes=3 * 4 * 20_000)
    assert np.array_equal(
        data.floats(torch.arange(20_000)).numpy(), np.stack(list(columns.values()), 1).astype(np.float32)
    )
    assert [data.class_names[label] for label in data.labels.tolist()] == text
    with pytest.raises(DataError, match="keep fewer rows or columns"):
        load(str(path), memory_limit_bytes=3 * 4 * 20_000 - 1)
