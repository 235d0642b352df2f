"""npz files whose keys name parts, as Keras and MedMNIST write them."""

import numpy as np
import pytest
import torch
from data_files import colour

from weathered.core.errors import DataError
from weathered.data import load, load_pair

RNG = np.random.default_rng(0)
TRAIN, TEST, VAL = (RNG.integers(0, 256, (n, 5, 6), dtype=np.uint8) for n in (8, 4, 6))
LABELS = {"train": np.arange(8) % 2, "test": np.array([1, 1, 0, 1]), "val": np.array([0, 1, 1, 0, 0, 0])}
LAYOUTS = {
    "keras": ("x_{}", "y_{}"),
    "upper": ("X_{}", "y_{}"),
    "medmnist": ("{}_images", "{}_labels"),
    "front": ("{}_x", "{}_y"),
    "data": ("{}_data", "{}_target"),
}


def write(path, layout, parts=("train", "test", "val"), **more):
    inputs, labels = LAYOUTS[layout]
    arrays = {inputs.format(part): {"train": TRAIN, "test": TEST, "val": VAL}[part] for part in parts}
    arrays |= {labels.format(part): LABELS[part][:, None] if layout == "medmnist" else LABELS[part] for part in parts}
    np.savez(path, **arrays, **more)
    return path


def is_part(dataset, images, labels):
    pixels = dataset.inputs.fetch(torch.arange(len(dataset)))
    return np.array_equal(pixels[:, 0].numpy(), images) and np.array_equal(dataset.labels.numpy(), labels)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_training_and_test_parts(tmp_path, layout):
    path = write(tmp_path / "x.npz", layout)
    train, test = load_pair(str(path))
    assert is_part(train, TRAIN, LABELS["train"])
    assert is_part(test, TEST, LABELS["test"])
    assert is_part(load(str(path)), TRAIN, LABELS["train"])
    assert is_part(load(f"npz:{path}:test"), TEST, LABELS["test"])
    assert is_part(load(f"npz:{path}:val"), VAL, LABELS["val"])


def test_a_given_test_set_takes_precedence(tmp_path):
    path = write(tmp_path / "x.npz", "keras")
    assert is_part(load_pair(str(path), f"npz:{path}:val")[1], VAL, LABELS["val"])
    np.savez(tmp_path / "plain.npz", x=VAL, y=LABELS["val"])
    assert is_part(load_pair(str(path), str(tmp_path / "plain.npz"))[1], VAL, LABELS["val"])
    # a file with parts that is given as the test set gives its test part
    assert is_part(load_pair(str(tmp_path / "plain.npz"), str(path))[1], TEST, LABELS["test"])


def test_without_a_test_part_or_with_a_named_part_a_quarter_is_held_out(tmp_path):
    path = write(tmp_path / "x.npz", "keras", parts=("train",))
    train, test = load_pair(str(path))
    assert (len(train), len(test)) == (6, 2)
    path = write(tmp_path / "y.npz", "keras")
    train, test = load_pair(f"npz:{path}:train")
    assert (len(train), len(test)) == (6, 2)
    with pytest.raises(
        DataError, match=r"no inputs of the test part, such as x_test, only x_train; .*x\.npz:train reads"
    ):
        load_pair(str(path), str(tmp_path / "x.npz"))


def test_columns_are_named_without_the_part(tmp_path):
    noisy = {"noisy_train": 1 - LABELS["train"], "noisy_test": 1 - LABELS["test"]}
    path = write(tmp_path / "x.npz", "keras", **noisy, class_names=["cat", "dog"], version=np.array(3))
    for column in ("noisy", "noisy_train"):
        train, test = load_pair(str(path), label_column=column, clean_column="y")
        assert train.labels.tolist() == (1 - LABELS["train"]).tolist()
        assert train.clean_labels.tolist() == LABELS["train"].tolist()
        assert test.labels.tolist() == LABELS["test"].tolist()
        assert train.class_names == test.class_names == ("cat", "dog")
    assert load(str(path)).extra["noisy"].tolist() == (1 - LABELS["train"]).tolist()


def test_a_test_part_is_never_trained_on_alone(tmp_path):
    path = write(tmp_path / "x.npz", "keras", parts=("test",))
    with pytest.raises(DataError, match="no inputs of the train part, such as x_train, only x_test"):
        load(str(path))


@pytest.mark.parametrize(
    ("arrays", "message"),
    [
        ({"x": TEST, "x_train": TRAIN, "y": LABELS["test"]}, "holds both x and x_train"),
        ({"images": TEST, "train_images": TRAIN, "train_labels": LABELS["train"]}, "both images and train_images"),
        ({"x_train": TRAIN, "X_train": TRAIN, "y_train": LABELS["train"]}, "both x_train and X_train, which stand for"),
        (
            {"x_train": TRAIN, "train_images": TRAIN, "y_train": LABELS["train"]},
            "both x_train and train_images as inputs",
        ),
        ({"x_train": TRAIN, "x_test": TEST, "y_test": LABELS["test"]}, r"\(train part\): there is no label column"),
        ({"x_train": TRAIN, "y_train": LABELS["test"]}, "8 inputs but 4 values"),
        ({"x_train": TRAIN, "y_train": np.array([{}] * 8)}, "a pickle is never opened"),
    ],
)
def test_what_is_not_clear_is_refused(tmp_path, arrays, message):
    np.savez(tmp_path / "x.npz", **arrays)
    with pytest.raises(DataError, match=message):
        load(str(tmp_path / "x.npz"))


def test_a_part_asked_of_a_plain_file(tmp_path):
    np.savez(tmp_path / "x.npz", X=TRAIN, y=LABELS["train"])
    assert is_part(load(str(tmp_path / "x.npz")), TRAIN, LABELS["train"])
    with pytest.raises(DataError, match="its keys name no parts such as test: X, y"):
        load(f"npz:{tmp_path / 'x.npz'}:test")


def test_a_file_name_with_a_colon(tmp_path):
    np.savez(tmp_path / "x", x=TRAIN, y=LABELS["train"])
    (tmp_path / "x.npz").rename(tmp_path / "x:test")
    assert is_part(load(f"npz:{tmp_path / 'x:test'}"), TRAIN, LABELS["train"])


def test_classes_of_the_test_part_are_those_of_the_training_part(tmp_path):
    np.savez(tmp_path / "x.npz", x_train=TRAIN, y_train=LABELS["train"], x_test=TEST, y_test=[0, 1, 2, 0])
    with pytest.raises(DataError, match=r"\(test part\): the label 2 .* is none of the 2 classes"):
        load_pair(str(tmp_path / "x.npz"))
    colourful = np.stack([colour(i, 5, 6) for i in range(4)])
    np.savez(tmp_path / "x.npz", x_train=TRAIN, y_train=LABELS["train"], x_test=colourful, y_test=LABELS["test"])
    train, test = load_pair(str(tmp_path / "x.npz"))
    assert train.inputs.shape == test.inputs.shape == (3, 5, 6)
