"""`torchvision:NAME`: the files that torchvision downloads, read from `root` without running any code in them.

Nothing is downloaded, and torchvision itself is not used: its CIFAR classes unpickle files and its MNIST class may
load an old pickled copy. MNIST, FashionMNIST and KMNIST are read from their IDX files, SVHN from its MAT files,
CIFAR10 and CIFAR100 from the binary version that their authors publish beside the pickled one.
"""

import gzip
import math
import os
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from weathered.core.errors import DataError
from weathered.core.spec import near
from weathered.data.dataset import Dataset
from weathered.data.labels import LabelCoder
from weathered.data.sources.options import ReadOptions, check_memory, refuse_columns, user_path

DIGITS = tuple(str(d) for d in range(10))
CLOTHES = ("T-shirt/top", "Trouser", "Pullover", "Dress", "Coat", "Sandal", "Shirt", "Sneaker", "Bag", "Ankle boot")
KANA = ("o", "ki", "su", "tsu", "na", "ha", "ma", "ya", "re", "wo")
LABEL_BYTES = 8
"""What a label takes once it is read."""
REMEDY = "store the images in parquet or as files, which are streamed"


def read_torchvision(rest: str, options: ReadOptions) -> Dataset:
    """The training split of NAME, or its test split for `NAME:test` or a test set, as uint8 images.

    options.root: the folder that was given to torchvision as root. Raises DataError for an unknown name, a missing
    root, missing or damaged files, for arrays above the memory limit, and for CIFAR where only the pickled version is
    there.
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
    images, labels, names = KNOWN[name].read(root, test, options.memory_limit_bytes)
    if len(images) != len(labels):
        raise DataError(f"torchvision:{name}: {len(images)} images but {len(labels)} labels in {root}.")
    coded = LabelCoder(f"torchvision:{name}", names, options.class_names).encode({"label": labels.tolist()})
    return Dataset.of(images, coded.codes["label"], coded.names, name=name)


class Known(NamedTuple):
    """files(root, test): what a split is read from. read(root, test, limit): images (N, C, H, W) uint8, labels (N,)
    and class names; raises DataError if the arrays take more than `limit` bytes.
    """

    files: Callable[[Path, bool], list[Path]]
    read: Callable[[Path, bool, int], tuple[Tensor, Tensor, tuple[str, ...]]]


def torchvision_files(rest: str, root: Path) -> list[Path]:
    """The files behind `torchvision:REST`: of the split it names, else of both; none for an unknown name.

    A file that is not there is listed all the same.
    """
    name, _, split = rest.partition(":")
    if name not in KNOWN:
        return []
    return [path for test in ((split == "test",) if split else (False, True)) for path in KNOWN[name].files(root, test)]


def _idx(folder: str, names: tuple[str, ...]) -> Known:
    def files(root: Path, test: bool) -> list[Path]:
        part = "t10k" if test else "train"
        return [_stored(root / folder / "raw" / f"{part}-{kind}-ubyte") for kind in ("images-idx3", "labels-idx1")]

    def read(root: Path, test: bool, limit: int) -> tuple[Tensor, Tensor, tuple[str, ...]]:
        images, labels = files(root, test)
        return read_idx(images, 3, limit)[:, None], read_idx(labels, 1, limit, LABEL_BYTES), names

    return Known(files, read)


def _stored(path: Path) -> Path:
    packed = path.with_name(path.name + ".gz")
    return packed if os.path.isfile(packed) and not os.path.isfile(path) else path


def read_idx(path: Path, dimensions: int, limit: int, width: int = 1) -> Tensor:
    """An IDX file of unsigned bytes, packed if it ends in .gz, as a uint8 tensor.

    width: bytes that each takes in the end. Raises DataError if the file is missing, damaged, or what it holds takes
    more than `limit` bytes; no more is unpacked.
    """
    try:
        if not path.is_file():
            raise DataError(f"{path}: there is no such file.")
        with gzip.open(path) if path.suffix == ".gz" else path.open("rb") as stream:
            head = stream.read(4 + 4 * dimensions)
            shape = [int.from_bytes(head[4 + 4 * i : 8 + 4 * i], "big") for i in range(dimensions)]
            sound = len(head) == 4 + 4 * dimensions and head[:4] == bytes([0, 0, 8, dimensions])
            if sound:
                check_memory(path, width * math.prod(shape), limit, REMEDY)
            # one byte more, to see that the file ends there
            data = stream.read(math.prod(shape) + 1) if sound else b""
    except (OSError, EOFError, zlib.error) as error:
        raise DataError(f"{path}: the file cannot be read: {error}.") from error
    if not sound or len(data) != math.prod(shape):
        raise DataError(f"{path}: not a whole IDX file of {dimensions} dimensions.")
    return torch.from_numpy(np.frombuffer(bytearray(data), dtype=np.uint8)).reshape(shape)


def _svhn_files(root: Path, test: bool) -> list[Path]:
    return [root / ("test_32x32.mat" if test else "train_32x32.mat")]


def _read_svhn(root: Path, test: bool, limit: int) -> tuple[Tensor, Tensor, tuple[str, ...]]:
    from scipy.io import loadmat, whosmat

    (path,) = _svhn_files(root, test)
    if not path.is_file():
        raise DataError(f"{path}: there is no such file.")
    try:
        arrays = [array for array in whosmat(path) if array[0] in ("X", "y")]
        odd = next((array for array in arrays if array[2] not in MAT_NUMBERS), None)
        if odd is not None:
            raise DataError(f"{path}: '{odd[0]}' is a {odd[2]}, expected an array of numbers.")
        widths = {"X": 1, "y": LABEL_BYTES}
        sizes = [math.prod(shape) * max(MAT_NUMBERS[kind], widths[name]) for name, shape, kind in arrays]
        check_memory(path, sum(sizes), limit, REMEDY)
        content = loadmat(path, variable_names=["X", "y"])
        images = torch.from_numpy(np.ascontiguousarray(content["X"].transpose(3, 2, 0, 1)))
        labels = torch.from_numpy(content["y"].astype(np.int64).ravel())
    except DataError:
        raise
    except Exception as error:
        # a damaged file surfaces as almost any error of the MAT reader
        raise DataError(f"{path}: not a MAT file that can be read: {' '.join(str(error).split())}.") from error
    return images, labels % 10, DIGITS


MAT_NUMBERS = {"double": 8, "single": 4, **{f"{sign}int{n}": n // 8 for sign in ("", "u") for n in (8, 16, 32, 64)}}
"""Kinds of arrays in a MAT file -> bytes of a number."""


def _cifar(
    folder: str, train: list[str], test_file: str, names_file: str, label_bytes: int, pickled: str, parquet: str
) -> Known:
    def files(root: Path, test: bool) -> list[Path]:
        return [root / folder / name for name in (names_file, *([test_file] if test else train))]

    def read(root: Path, test: bool, limit: int) -> tuple[Tensor, Tensor, tuple[str, ...]]:
        if not (root / folder).is_dir():
            seen = f"{root / pickled} holds pickles, which are never opened; " if (root / pickled).is_dir() else ""
            raise DataError(
                f"{root / folder}: there is no such folder; {seen}unpack the binary version of {parquet} there, or use "
                "a parquet file of it."
            )
        described, *packed = files(root, test)
        try:
            size = sum(path.stat().st_size for path in (described, *packed))
            check_memory(root / folder, size, limit, REMEDY)
            names = tuple(described.read_text().split())
            parts = [path.read_bytes() for path in packed]
        except (OSError, UnicodeDecodeError) as error:
            raise DataError(f"{root / folder}: the files cannot be read: {error}.") from error
        length = label_bytes + 3 * 32 * 32
        if any(not part or len(part) % length for part in parts):
            raise DataError(f"{root / folder}: a file is damaged, its size is no multiple of {length} bytes.")
        rows = torch.frombuffer(bytearray(b"".join(parts)), dtype=torch.uint8).view(-1, length)
        return rows[:, label_bytes:].reshape(-1, 3, 32, 32), rows[:, label_bytes - 1].long(), names

    return Known(files, read)


KNOWN = {
    "MNIST": _idx("MNIST", DIGITS),
    "FashionMNIST": _idx("FashionMNIST", CLOTHES),
    "KMNIST": _idx("KMNIST", KANA),
    "SVHN": Known(_svhn_files, _read_svhn),
    "CIFAR10": _cifar(
        "cifar-10-batches-bin",
        [f"data_batch_{i}.bin" for i in range(1, 6)],
        "test_batch.bin",
        "batches.meta.txt",
        1,
        "cifar-10-batches-py",
        "CIFAR-10",
    ),
    "CIFAR100": _cifar(
        "cifar-100-binary",
        ["train.bin"],
        "test.bin",
        "fine_label_names.txt",
        2,
        "cifar-100-python",
        "CIFAR-100",
    ),
}
