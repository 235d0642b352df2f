"""Sources: every kind of file reaches the same shape with the right pixels, labels and names, or one sentence."""

import gzip
import sys

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from data_files import SHARED, colour, encode, grey, write_folder, write_idx, write_parquet
from sklearn.datasets import load_digits

from weathered.core.errors import DataError
from weathered.data import load, load_pair
from weathered.data.sources.rows import label_columns, row_names
from weathered.data.splits import random_subset


def pixels_of(dataset):
    return dataset.inputs.fetch(torch.arange(len(dataset)))


def channels_first(arrays):
    return torch.from_numpy(np.stack(arrays).transpose(0, 3, 1, 2).copy())


def test_digits_are_the_original_grey_levels():
    data = load("digits")
    levels, labels = load_digits(return_X_y=True)
    assert data.inputs.shape == (1, 8, 8)
    assert data.inputs.dtype == torch.uint8
    assert np.array_equal(pixels_of(data).flatten(1).numpy(), np.rint(levels * 255 / 16))
    assert np.array_equal(data.labels.numpy(), labels)
    assert data.class_names == tuple("0123456789")


def test_folder_has_sorted_names_and_the_files_pixels(tmp_path):
    pixels = write_folder(tmp_path / "pictures", ["zebra", "ant"])
    (tmp_path / "pictures" / "ant" / "notes.txt").write_text("not an image")
    (tmp_path / "pictures" / ".hidden").mkdir()
    for spec in (f"folder:{tmp_path / 'pictures'}", str(tmp_path / "pictures")):
        data = load(spec)
        assert data.class_names == ("ant", "zebra")
        assert data.labels.tolist() == [0] * 4 + [1] * 4
        expected = channels_first([pixels[name, i] for name in ("ant", "zebra") for i in range(4)])
        assert torch.equal(pixels_of(data), expected)


def test_grey_images_keep_one_channel_unless_one_has_colour(tmp_path):
    write_folder(tmp_path / "grey", ["a", "b"], make=grey)
    assert load(str(tmp_path / "grey")).inputs.shape == (1, 6, 6)
    last = tmp_path / "grey" / "b" / "9.png"
    last.write_bytes(encode(colour(1)))
    data = load(str(tmp_path / "grey"))
    assert data.inputs.shape == (3, 6, 6)
    assert torch.equal(pixels_of(data)[-1], channels_first([colour(1)])[0])


def test_a_late_colour_image_turns_all_to_colour(tmp_path):
    # 200 images: the sample of 64 that decides at first does not see position 101
    arrays = [grey(i) for i in range(200)]
    images = [encode(a) for a in arrays]
    images[101] = encode(colour(7))
    path = write_parquet(tmp_path / "x.parquet", images, {"label": [i % 2 for i in range(200)]})
    data = load(str(path))
    assert data.inputs.shape == (3, 6, 6)
    assert torch.equal(pixels_of(data)[101], channels_first([colour(7)])[0])
    assert torch.equal(pixels_of(data)[5], torch.from_numpy(arrays[5]).expand(3, 6, 6))


def test_parquet_with_names_in_the_metadata(tmp_path):
    arrays = [colour(i) for i in range(7)]
    path = write_parquet(
        tmp_path / "x.parquet",
        [encode(a) for a in arrays],
        {
            "label": [2, 1, 0, 1, 2, 0, 1],
            "noisy": [2, 2, 0, 1, 2, 0, 1],
            "votes": [[i, 2 * i] for i in range(7)],
            "uneven": [[0] * i for i in range(7)],
            "writer": list(range(7)),
            "remark": list("abcdefg"),
        },
        {"label": ("cat", "dog", "cow"), "noisy": ("cat", "dog", "cow")},
        group=3,
    )
    data = load(f"parquet:{path}", label_column="noisy", clean_column="label")
    assert data.class_names == ("cat", "dog", "cow")
    assert data.labels.tolist() == [2, 2, 0, 1, 2, 0, 1]
    assert data.clean_labels.tolist() == [2, 1, 0, 1, 2, 0, 1]
    assert torch.equal(pixels_of(data), channels_first(arrays))
    assert set(data.extra) == {"votes", "writer"}
    assert data.extra["votes"].tolist() == [[i, 2 * i] for i in range(7)]
    assert data.extra["writer"].tolist() == list(range(7))


@pytest.mark.parametrize(
    ("labels", "names", "codes"),
    [
        (["b", "a", "b"], ("a", "b"), [1, 0, 1]),
        ([5, 3, 12], ("3", "5", "12"), [1, 0, 2]),
        ([1.0, 0.0, 1.0], ("0", "1"), [1, 0, 1]),
        ([True, False, True], ("False", "True"), [1, 0, 1]),
        ([-1, 1, -1], ("-1", "1"), [0, 1, 0]),
    ],
)
def test_labels_without_names_are_sorted_values(tmp_path, labels, names, codes):
    path = write_parquet(tmp_path / "x.parquet", [encode(colour(i)) for i in range(3)], {"label": labels})
    data = load(str(path))
    assert data.class_names == names
    assert data.labels.tolist() == codes


def test_npz_of_each_layout(tmp_path):
    rng = np.random.default_rng(0)
    images, labels = rng.integers(0, 256, (5, 6, 7, 3), dtype=np.uint8), np.array([0, 1, 0, 1, 2])
    expected = torch.from_numpy(images.transpose(0, 3, 1, 2).copy())
    for name, array in {"last": images, "first": images.transpose(0, 3, 1, 2)}.items():
        np.savez_compressed(tmp_path / f"{name}.npz", images=array, labels=labels[:, None])
        data = load(str(tmp_path / f"{name}.npz"))
        assert torch.equal(pixels_of(data), expected)
        assert data.labels.tolist() == labels.tolist()
    np.savez(tmp_path / "grey.npz", x=images[..., 0], y=labels, truth=labels[::-1], class_names=["a", "b", "c"])
    data = load(f"npz:{tmp_path / 'grey.npz'}", clean_column="truth")
    assert torch.equal(pixels_of(data), expected[:, :1])
    assert data.class_names == ("a", "b", "c")
    assert data.clean_labels.tolist() == [2, 1, 0, 1, 0]
    np.savez(tmp_path / "rows.npz", features=rng.normal(size=(5, 4)), y=np.array(list("uvuvw")))
    data = load(str(tmp_path / "rows.npz"))
    assert data.inputs.shape == (4,)
    assert data.inputs.dtype == torch.float32
    assert not data.is_image
    assert data.class_names == ("u", "v", "w")


def test_csv_of_features(tmp_path):
    path = tmp_path / "x.csv"
    path.write_text("height,label,truth,width\n1.5,b,b,2\n-3,a,b,4\n0.25,b,b,6\n")
    data = load(str(path), clean_column="truth")
    assert pixels_of(data).tolist() == [[1.5, 2], [-3, 4], [0.25, 6]]
    assert data.labels.tolist() == [1, 0, 1]
    assert data.clean_labels.tolist() == [1, 1, 1]
    assert data.class_names == ("a", "b")


def test_columns_that_are_no_features(tmp_path):
    train, test = tmp_path / "x.csv", tmp_path / "y.csv"
    train.write_text("id,height,label,by ann,width\nr1,1,a,a,2\nr2,3,b,b,4\nr3,5,a,b,6\nr4,7,b,b,8\n")
    test.write_text("width,height,label\n2,1,a\n4,3,b\n")
    with pytest.raises(DataError, match="column 'id' holds string, not numbers; encode .* it out by --not-features id"):
        load_pair(str(train))
    whole, held = load_pair(str(train), str(test), not_features=("id", "by ann"))
    assert pixels_of(whole).tolist() == [[1, 2], [3, 4], [5, 6], [7, 8]]
    assert pixels_of(held).tolist() == [[1, 2], [3, 4]]
    assert whole.inputs.columns == whole.select(torch.tensor([2])).inputs.columns == ("height", "width")
    assert row_names(str(train), [1], not_features=("id", "by ann")) == ["row 1"]
    with pytest.raises(DataError, match="'label' is read as label, so it is no feature anyway"):
        load_pair(str(train), not_features=("id", "label", "by ann"))
    given = label_columns(str(train), ["label", "by ann"], ("a", "b"))
    assert given.tolist() == [[0, 0], [1, 1], [0, 1], [1, 1]]
    with pytest.raises(DataError, match="there is no feature column 'idd'. Did you mean 'id'"):
        load_pair(str(train), not_features=("idd", "by ann"))
    with pytest.raises(DataError, match="no feature columns besides width, height, label"):
        load_pair(str(test), not_features=("width", "height"))
    with pytest.raises(DataError, match="digits: is no table with named columns"):
        load_pair("digits", not_features=("id",))


def test_csv_of_image_paths(tmp_path):
    pixels = write_folder(tmp_path, ["a", "b"], each=2)
    path = tmp_path / "x.csv"
    path.write_text("file,kind,writer\nb/1.png,late,4\na/0.png,early,5\n./a/../a/1.png,late,6\n")
    data = load(f"csv:{path}", label_column="kind")
    assert torch.equal(pixels_of(data), channels_first([pixels["b", 1], pixels["a", 0], pixels["a", 1]]))
    assert data.class_names == ("early", "late")
    assert data.labels.tolist() == [1, 0, 1]
    assert data.extra["writer"].tolist() == [4, 5, 6]


def test_torchvision_mnist_with_its_own_test_split(tmp_path):
    rng = np.random.default_rng(0)
    splits = {"train": rng.integers(0, 256, (20, 5, 5)), "t10k": rng.integers(0, 256, (10, 5, 5))}
    for part, images in splits.items():
        write_idx(tmp_path / "MNIST" / "raw" / f"{part}-images-idx3-ubyte", images)
        write_idx(tmp_path / "MNIST" / "raw" / f"{part}-labels-idx1-ubyte", np.arange(len(images)) % 10)
    labels = tmp_path / "MNIST" / "raw" / "t10k-labels-idx1-ubyte"
    labels.with_name(labels.name + ".gz").write_bytes(gzip.compress(labels.read_bytes()))
    labels.unlink()
    train, test = load_pair("torchvision:MNIST", root=tmp_path)
    assert np.array_equal(pixels_of(train)[:, 0].numpy(), splits["train"])
    assert np.array_equal(pixels_of(test)[:, 0].numpy(), splits["t10k"])
    assert test.labels.tolist() == list(range(10))
    assert torch.equal(pixels_of(load("torchvision:MNIST:test", root=tmp_path)), pixels_of(test))


def test_torchvision_cifar10_binary_and_svhn(tmp_path):
    scipy_io = pytest.importorskip("scipy.io")
    rng = np.random.default_rng(0)
    folder = tmp_path / "cifar-10-batches-bin"
    folder.mkdir()
    names = ["airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck"]
    (folder / "batches.meta.txt").write_text("\n".join(names) + "\n\n")
    images = rng.integers(0, 256, (6, 2, 3072), dtype=np.uint8)
    for i, file in enumerate([*(f"data_batch_{k}.bin" for k in range(1, 6)), "test_batch.bin"]):
        (folder / file).write_bytes(b"".join(bytes([i, *row]) for row in images[i]))
    data = load("torchvision:CIFAR10", root=tmp_path)
    assert data.class_names == tuple(names)
    assert data.labels.tolist() == [0, 0, 1, 1, 2, 2, 3, 3, 4, 4]
    assert np.array_equal(pixels_of(data).flatten(1).numpy(), images[:5].reshape(10, 3072))

    street = rng.integers(0, 256, (32, 32, 3, 4), dtype=np.uint8)
    scipy_io.savemat(tmp_path / "train_32x32.mat", {"X": street, "y": np.array([[10], [1], [9], [2]])})
    data = load("torchvision:SVHN", root=tmp_path)
    assert data.labels.tolist() == [0, 1, 9, 2]
    assert np.array_equal(pixels_of(data)[2].numpy(), street[..., 2].transpose(2, 0, 1))


def test_hugging_face_says_what_to_install_when_absent(monkeypatch):
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(DataError, match=r"pip install 'weathered\[hf\]'"):
        load("hf:cifar10")


def test_hugging_face_images_with_names(tmp_path):
    pytest.importorskip("datasets")
    for part, size in (("train", 6), ("test", 4)):
        (tmp_path / "set" / "data").mkdir(parents=True, exist_ok=True)
        write_parquet(
            tmp_path / "set" / "data" / f"{part}-00000-of-00001.parquet",
            [encode(colour(i)) for i in range(size)],
            {"label": [i % 2 for i in range(size)]},
            {"label": ("cat", "dog")},
        )
    train, test = load_pair(f"hf:{tmp_path / 'set'}")
    assert train.class_names == test.class_names == ("cat", "dog")
    assert torch.equal(pixels_of(train), channels_first([colour(i) for i in range(6)]))
    assert test.labels.tolist() == [0, 1, 0, 1]


def test_limit_is_a_uniform_subset_in_order_of_its_own_generator(tmp_path):
    full = load("digits")
    part, again, other = (load("digits", limit=100, seed=s) for s in (0, 0, 1))
    assert len(part) == 100
    assert torch.equal(pixels_of(part), pixels_of(again))
    assert not torch.equal(pixels_of(part), pixels_of(other))
    rows = torch.tensor([(pixels_of(full) == x).flatten(1).all(1).nonzero()[0] for x in pixels_of(part)])
    assert (rows[1:] > rows[:-1]).all()
    assert torch.equal(full.labels[rows], part.labels)
    assert "100 of 1797 rows were drawn at random" in part.notes[0]
    assert len(load("digits", limit=5000)) == 1797
    with pytest.raises(DataError, match="limit must be at least 1"):
        load("digits", limit=0)


def test_a_small_limit_reads_only_the_chosen_rows(tmp_path):
    """All images but the chosen ones are broken, so decoding any other would fail."""
    chosen = random_subset(1000, 20, seed=3).tolist()
    images = [b"broken"] * 1000
    for row in chosen:
        images[row] = encode(colour(row))
    path = write_parquet(tmp_path / "x.parquet", images, {"label": [i % 2 for i in range(1000)]}, group=100)
    with pytest.raises(DataError, match="row"):
        load(str(path))
    # the layout is probed over all rows, broken ones are passed over
    data = load(str(path), limit=20, seed=3)
    assert torch.equal(pixels_of(data), channels_first([colour(row) for row in chosen]))
    assert data.labels.tolist() == [row % 2 for row in chosen]


@pytest.mark.skipif(not SHARED.is_dir(), reason="the shared data sets are not there")
def test_real_files_have_the_documented_contents():
    train = load(
        f"parquet:{SHARED / 'cifar10-train.parquet'}", label_column="label_worst", clean_column="label", limit=500
    )
    assert train.inputs.shape == (3, 32, 32)
    assert train.class_names[3] == "cat"
    assert 0.3 < (train.labels != train.clean_labels).float().mean() < 0.5
    test = load(str(SHARED / "cifar10-test.parquet"), limit=200)
    assert test.extra["human_counts"].shape == (200, 10)
    assert (test.extra["human_counts"].argmax(1) == test.labels).float().mean() > 0.9
    assert load(str(SHARED / "mnist-test.parquet"), limit=50).inputs.shape == (1, 28, 28)
    assert len(load(str(SHARED / "textures.parquet"), limit=50).class_names) == 10
    with pytest.raises(DataError, match="no column 'label'"):
        load(str(SHARED / "camvid.parquet"))


def test_arrow_types_of_labels_and_image_columns(tmp_path):
    images = pa.array([encode(colour(i)) for i in range(4)], type=pa.binary())
    table = pa.table({"picture": images, "label": pa.array(["u", "v", "u", "v"]).dictionary_encode()})
    pq.write_table(table, tmp_path / "x.parquet")
    data = load(str(tmp_path / "x.parquet"))
    assert data.class_names == ("u", "v")
    assert torch.equal(pixels_of(data), channels_first([colour(i) for i in range(4)]))
