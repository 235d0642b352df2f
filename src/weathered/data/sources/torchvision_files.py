"""`torchvision:NAME`: the files that torchvision downloads, read from `root` without running any code in them.

Nothing is downloaded, and torchvision itself is not used: its CIFAR classes unpickle files and its MNIST class may
load an old pickled copy. MNIST, FashionMNIST and KMNIST are read from their IDX files, SVHN from its MAT files,
CIFAR10 and CIFAR100 from the binary version that their authors publish beside the pickled one.
"""

import gzip
import math
import zlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from weathered.core.errors import DataError
from weathered.core.spec import near
from weathered.data.dataset import Dataset
from weathered.data.labels import LabelCoder
from weathered.data.sources.options import ReadOptions, refuse_columns, user_path

DIGITS = tuple(str(d) for d in range(10))
CLOTHES = ("T-shirt/top", "Trouser", "Pullover", "Dress", "Coat", "Sandal", "Shirt", "Sneaker", "Bag", "Ankle boot")
KANA = ("o", "ki", "su", "tsu", "na", "ha", "ma", "ya", "re", "wo")


def read_torchvision(rest: str, options: ReadOptions) -> Dataset:
    """The training split of NAME, or its test split for `NAME:test` or a test set, as uint8 images.

    options.root: the folder that was given to torchvision as root. Raises DataError for an unknown name, a missing
    root, missing or damaged files, and for CIFAR where only the pickled version is there.
    """
    name, _, split = rest.partition(":")
    if name not in KNOWN:
        raise DataError(f"torchvision has no readable data set '{name}'.{near(name, KNOWN)} Known: {', '.join(KNOWN)}.")
    if split not in ("", "train", "test"):
        raise DataError(f"the splits of torchvision:{name} are train and test, got '{split}'.")
    if options.root is None:
        raise DataError(f"torchvision:{name} needs --root, the folder that holds its files; nothing is downloaded.")
    refuse_columns(f"torchvision:{name}", options)
    root = user_path(str(options.root))
    if not root.is_dir():
        raise DataError(f"{root}: there is no such folder.")
    test = split == "test" or (options.test and not split)
    images, labels, names = KNOWN[name](root, test)
    if len(images) != len(labels):
        raise DataError(f"torchvision:{name}: {len(images)} images but {len(labels)} labels in {root}.")
    coded = LabelCoder(f"torchvision:{name}", names, options.class_names).encode({"label": labels.tolist()})
    return Dataset.of(images, coded.codes["label"], coded.names, name=name)


def _idx_reader(folder: str, names: tuple[str, ...]) -> Callable[[Path, bool], tuple[Tensor, Tensor, tuple[str, ...]]]:
    def read(root: Path, test: bool) -> tuple[Tensor, Tensor, tuple[str, ...]]:
        part = "t10k" if test else "train"
        raw = root / folder / "raw"
        images = read_idx(raw / f"{part}-images-idx3-ubyte", 3)
        return images[:, None], read_idx(raw / f"{part}-labels-idx1-ubyte", 1), names

    return read


def read_idx(path: Path, dimensions: int) -> Tensor:
    """An IDX file of unsigned bytes, plain or as .gz, as a uint8 tensor. Raises DataError if missing or damaged."""
    packed = path.with_name(path.name + ".gz")
    try:
        if path.is_file():
            data = path.read_bytes()
        elif packed.is_file():
            data = gzip.decompress(packed.read_bytes())
        else:
            raise DataError(f"{path}: there is no such file.")
    except (OSError, EOFError, zlib.error) as error:
        raise DataError(f"{path}: the file cannot be read: {error}.") from error
    head = 4 + 4 * dimensions
    shape = [int.from_bytes(data[4 + 4 * i : 8 + 4 * i], "big") for i in range(dimensions)]
    if data[:4] != bytes([0, 0, 8, dimensions]) or len(data) != head + math.prod(shape):
        raise DataError(f"{path}: not a whole IDX file of {dimensions} dimensions.")
    return torch.frombuffer(bytearray(data), dtype=torch.uint8, offset=head).reshape(shape)


def _read_svhn(root: Path, test: bool) -> tuple[Tensor, Tensor, tuple[str, ...]]:
    from scipy.io import loadmat

    path = root / ("test_32x32.mat" if test else "train_32x32.mat")
    if not path.is_file():
        raise DataError(f"{path}: there is no such file.")
    try:
        content = loadmat(path, variable_names=["X", "y"])
        images = torch.from_numpy(np.ascontiguousarray(content["X"].transpose(3, 2, 0, 1)))
        labels = torch.from_numpy(content["y"].astype(np.int64).ravel())
    except Exception as error:
        # a damaged file surfaces as almost any error of the MAT reader
        raise DataError(f"{path}: not a MAT file that can be read: {' '.join(str(error).split())}.") from error
    return images, labels % 10, DIGITS


def _cifar_reader(
    folder: str, train: list[str], test_file: str, names_file: str, label_bytes: int, pickled: str, parquet: str
) -> Callable[[Path, bool], tuple[Tensor, Tensor, tuple[str, ...]]]:
    def read(root: Path, test: bool) -> tuple[Tensor, Tensor, tuple[str, ...]]:
        if not (root / folder).is_dir():
            seen = f"{root / pickled} holds pickles, which are never opened; " if (root / pickled).is_dir() else ""
            raise DataError(
                f"{root / folder}: there is no such folder; {seen}unpack the binary version of {parquet} there, or use "
                "a parquet file of it."
            )
        try:
            names = tuple((root / folder / names_file).read_text().split())
            parts = [(root / folder / name).read_bytes() for name in ([test_file] if test else train)]
        except (OSError, UnicodeDecodeError) as error:
            raise DataError(f"{root / folder}: the files cannot be read: {error}.") from error
        length = label_bytes + 3 * 32 * 32
        if any(not part or len(part) % length for part in parts):
            raise DataError(f"{root / folder}: a file is damaged, its size is no multiple of {length} bytes.")
        rows = torch.frombuffer(bytearray(b"".join(parts)), dtype=torch.uint8).view(-1, length)
        return rows[:, label_bytes:].reshape(-1, 3, 32, 32), rows[:, label_bytes - 1].long(), names

    return read


KNOWN = {
    "MNIST": _idx_reader("MNIST", DIGITS),
    "FashionMNIST": _idx_reader("FashionMNIST", CLOTHES),
    "KMNIST": _idx_reader("KMNIST", KANA),
    "SVHN": _read_svhn,
    "CIFAR10": _cifar_reader(
        "cifar-10-batches-bin",
        [f"data_batch_{i}.bin" for i in range(1, 6)],
        "test_batch.bin",
        "batches.meta.txt",
        1,
        "cifar-10-batches-py",
        "CIFAR-10",
    ),
    "CIFAR100": _cifar_reader(
        "cifar-100-binary",
        ["train.bin"],
        "test.bin",
        "fine_label_names.txt",
        2,
        "cifar-100-python",
        "CIFAR-100",
    ),
}
"""Name -> reader of (images (N, C, H, W) uint8, labels (N,), class names)."""
