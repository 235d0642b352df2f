"""`npz:PATH`: NumPy arrays, images or features and labels. Pickled objects inside are refused."""

import zipfile
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from weathered.core.errors import DataError
from weathered.data.dataset import Dataset
from weathered.data.labels import LabelCoder, choose_column
from weathered.data.sources.options import ReadOptions, existing_file

INPUT_NAMES = ("x", "images", "features", "data")


def read_npz(rest: str, options: ReadOptions) -> Dataset:
    """Images (N, H, W), (N, H, W, C) or (N, C, H, W) as uint8, or features (N, D) as numbers; labels (N,).

    Inputs are the array x, images, features or data; labels y, labels or the one that `label_column` names; an
    array `class_names` of text names the classes. A last axis of 1 or 3 means channels last, unless the second
    axis is 1 or 3 and the last is not.
    Raises DataError for anything else, for NaN, and for arrays above the memory limit.
    """
    path = existing_file(rest, "npz")
    arrays = _load(path, options.memory_limit_bytes)
    inputs = next((name for name in INPUT_NAMES if name in arrays), None)
    if inputs is None:
        raise DataError(f"{path}: none of the arrays {', '.join(INPUT_NAMES)} is there, only {', '.join(arrays)}.")
    columns = [name for name in arrays if name != inputs]
    label = choose_column(columns, options.label_column, "label", str(path))
    used = {label: _column(arrays[label], label, path)}
    if options.clean_column is not None:
        clean = choose_column(columns, options.clean_column, "clean", str(path))
        used[clean] = _column(arrays[clean], clean, path)
    names = [str(n) for n in arrays["class_names"].tolist()] if "class_names" in arrays else None
    coded = LabelCoder(str(path), names, options.class_names).encode(used, options.clean_column)
    x = _as_inputs(arrays[inputs], path)
    return Dataset.of(
        x,
        coded.codes[label],
        coded.names,
        name=path.stem,
        clean_labels=None if options.clean_column is None else coded.codes[options.clean_column],
        extra=_extra(arrays, {inputs, "class_names", *used}, len(x)),
    )


def _load(path: Path, memory_limit_bytes: int) -> dict[str, np.ndarray]:
    try:
        with zipfile.ZipFile(path) as archive:
            size = sum(item.file_size for item in archive.infolist())
        if size > memory_limit_bytes:
            raise DataError(
                f"{path}: the arrays take {size >> 20} MiB, the limit is {memory_limit_bytes >> 20} MiB; store them as "
                "parquet or as image files, which are streamed."
            )
        with np.load(path, allow_pickle=False) as stored:
            return {name: stored[name] for name in stored.files}
    except zipfile.BadZipFile as error:
        raise DataError(f"{path}: not a whole npz file: {error}.") from error
    except (OSError, ValueError, EOFError, KeyError, MemoryError, NotImplementedError) as error:
        if isinstance(error, DataError):
            raise
        if "pickle" in str(error).lower():
            raise DataError(f"{path}: an array holds Python objects, and a pickle is never opened.") from error
        raise DataError(f"{path}: the arrays cannot be read: {' '.join(str(error).split())}.") from error


def _column(values: np.ndarray, name: str, path: Path) -> list[int | str | float]:
    if values.ndim == 2 and values.shape[1] == 1:
        values = values[:, 0]
    if values.ndim != 1 or values.dtype.kind not in "biufU":
        raise DataError(
            f"{path}: '{name}' must be one-dimensional numbers or text, got {values.dtype} of shape {values.shape}."
        )
    return values.tolist()


def _as_inputs(x: np.ndarray, path: Path) -> Tensor:
    if x.ndim == 2:
        if x.dtype.kind not in "biuf":
            raise DataError(f"{path}: features must be numbers, got {x.dtype}.")
        return torch.from_numpy(np.ascontiguousarray(x, dtype=np.float32))
    if x.ndim not in (3, 4):
        raise DataError(
            f"{path}: inputs must be rows (N, D) or images (N, H, W), (N, H, W, C), (N, C, H, W), got {x.shape}."
        )
    if x.dtype != np.uint8:
        raise DataError(f"{path}: images must be uint8 in 0..255, got {x.dtype}; multiply [0, 1] by 255 and round.")
    if x.ndim == 3:
        x = x[:, None]
    elif x.shape[-1] in (1, 3) and x.shape[1] not in (1, 3):
        x = x.transpose(0, 3, 1, 2)
    if x.shape[1] not in (1, 3):
        raise DataError(f"{path}: images must have 1 or 3 channels, got the shape {x.shape}.")
    return torch.from_numpy(np.ascontiguousarray(x))


def _extra(arrays: dict[str, np.ndarray], used: set[str], size: int) -> dict[str, Tensor]:
    return {
        name: torch.from_numpy(values.astype(np.int64))
        for name, values in arrays.items()
        if name not in used and values.dtype.kind in "iu" and values.ndim >= 1 and len(values) == size
    }
