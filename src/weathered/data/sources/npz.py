"""`npz:PATH[:PART]`: NumPy arrays, images or features and labels. Pickled objects inside are refused."""

import zipfile
import zlib
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from weathered.core.errors import DataError
from weathered.core.pixels import IGNORE, MASK
from weathered.data.dataset import Dataset
from weathered.data.labels import DEFAULT_COLUMNS, LabelCoder, choose_column
from weathered.data.masks import agreed_names, without_label
from weathered.data.sources.columns import with_groups
from weathered.data.sources.npz_keys import INPUT_NAMES, choose_part, names_of, part_and_name, parts_of, place_and_part
from weathered.data.sources.options import ReadOptions, existing_file
from weathered.data.sources.tables import TOO_LARGE

MASK_NAMES = ("masks", "mask")
"""Arrays that hold the classes of pixels where there are no labels."""


def read_npz(rest: str, options: ReadOptions) -> Dataset:
    """Images (N, H, W), (N, H, W, C) or (N, C, H, W) as uint8, or features (N, D) as numbers; labels (N,).

    Inputs are the array x, images, features or data, also as X; labels y, labels or the one that `label_column`
    names; an array `class_names` of text names the classes. Without labels, masks (N, H, W) in an array of that name
    label the pixels. A last axis of 1 or 3 means channels last, unless the
    second axis is 1 or 3 and the last is not.
    Keys such as x_train and y_test, or train_images and test_labels, name parts: the training part is read, the test
    part for a test set or as PATH:test, a validation part as PATH:val.
    Raises DataError for anything else, for features that are not finite as float32, and for arrays above the memory
    limit.
    """
    place, part = place_and_part(rest)
    path = existing_file(place, "npz")
    arrays, where, asked = _load(path, part, options)
    inputs = next((name for name in INPUT_NAMES if name in arrays), None)
    if inputs is None or {"indptr", "indices"} <= set(arrays):
        if "format" in arrays and "shape" in arrays:
            raise DataError(
                f"{where}: this is a sparse matrix of SciPy; save it dense and with its labels, as in "
                "np.savez(path, x=matrix.toarray(), y=labels)."
            )
        listing = ", ".join(arrays) or "nothing"
        raise DataError(f"{where}: none of the arrays {', '.join(INPUT_NAMES)} is there, only {listing}.")
    if options.mask_column is not None and asked != (None, None):
        raise DataError(f"{where}: masks take the place of labels; leave --label-column and --clean-column out.")
    unlabelled = asked == (None, None) and not any(name in arrays for name in DEFAULT_COLUMNS)
    mask = next((name for name in MASK_NAMES if name in arrays), None) if unlabelled else None
    mask = options.mask_column or mask
    if mask is not None:
        return _masked(arrays, inputs, mask, options, path, where)
    columns = [name for name in arrays if name not in (inputs, "class_names")]
    label = choose_column(columns, asked[0], "label", where)
    used = {label: _column(arrays[label], label, where)}
    clean = None
    if asked[1] is not None:
        clean = choose_column(columns, asked[1], "clean", where)
        used[clean] = _column(arrays[clean], clean, where)
    coded = LabelCoder(where, _class_names(arrays, where), options.class_names).encode(used, clean)
    x = _as_inputs(arrays[inputs], where)
    dataset = Dataset.of(
        x,
        coded.codes[label],
        coded.names,
        name=path.stem,
        clean_labels=None if clean is None else coded.codes[clean],
        extra=_extra(arrays, {inputs, "class_names", *used}, len(x)),
    )
    groups = arrays.get("group")
    if groups is None or groups.dtype.kind != "U" or groups.shape != (len(x),):
        return dataset
    return with_groups(dataset, [str(name) for name in groups.tolist()], options.group_names)


def _masked(
    arrays: dict[str, np.ndarray], inputs: str, mask: str, options: ReadOptions, path: Path, where: str
) -> Dataset:
    """Images with the classes of their pixels (N, H, W), whole numbers in [0, 255]."""
    choose_column([name for name in arrays if name != inputs], mask, "mask", where)
    values = arrays[mask]
    whole = values.dtype.kind in "biu" and values.ndim == 3
    if not whole or (values.size and not 0 <= values.min() <= values.max() <= IGNORE):
        raise DataError(
            f"{where}: '{mask}' must hold masks (N, H, W) of whole numbers in [0, 255], got {values.dtype} of shape "
            f"{values.shape}."
        )
    names = agreed_names(options.class_names, tuple(_class_names(arrays, where) or ()) or None, where)
    masks = without_label(torch.from_numpy(values.astype(np.uint8)), options.ignore_label)
    return Dataset.segmentation(_as_inputs(arrays[inputs], where), masks, names, name=path.stem)


def has_test_part(rest: str) -> bool:
    """Whether the file brings a test part of its own and no part was named; False for a file that cannot be read."""
    place, part = place_and_part(rest)
    if part is not None:
        return False
    path = existing_file(place, "npz")
    try:
        with zipfile.ZipFile(path) as archive:
            keys = [name.removesuffix(".npy") for name in archive.namelist()]
    except (zipfile.BadZipFile, OSError):
        return False
    return any(name in INPUT_NAMES for name in parts_of(keys, path).get("test", {}))


Asked = tuple[str | None, str | None]
"""The label and the clean column that a user names."""


def _load(path: Path, part: str | None, options: ReadOptions) -> tuple[dict[str, np.ndarray], str, Asked]:
    """(name -> array, how messages call them, the names of the label and the clean column that were asked for)."""
    try:
        with zipfile.ZipFile(path) as archive:
            size = sum(item.file_size for item in archive.infolist())
        limit = options.memory_limit_bytes
        if size > limit:
            raise DataError(
                f"{path}: the arrays take {size >> 20} MiB, the limit is {limit >> 20} MiB; store them as "
                "parquet or as image files, which are streamed."
            )
        with np.load(path, allow_pickle=False) as stored:
            keys: list[str] = list(stored.files)
            asked: Asked = (options.label_column, options.clean_column)
            parts, where = parts_of(keys, path), str(path)
            if parts:
                chosen = choose_part(parts, part, options.test, path)
                names, where = parts[chosen], f"{path} ({chosen} part)"
                names |= {"class_names": "class_names"} if "class_names" in keys else {}
                asked = (_without_part(asked[0], keys), _without_part(asked[1], keys))
            elif part is not None:
                raise DataError(f"{path}: its keys name no parts such as {part}: {', '.join(keys)}.")
            else:
                names = names_of(keys, path)
            arrays = {name: stored[key] for name, key in names.items()}
    except zipfile.BadZipFile as error:
        raise DataError(f"{path}: not a whole npz file: {error}.") from error
    except (OSError, ValueError, EOFError, KeyError, MemoryError, NotImplementedError, zlib.error) as error:
        if isinstance(error, DataError):
            raise
        if "pickle" in str(error).lower():
            raise DataError(f"{path}: an array holds Python objects, and a pickle is never opened.") from error
        raise DataError(f"{path}: the arrays cannot be read: {' '.join(str(error).split())}.") from error
    damaged = next((name for name, values in arrays.items() if not isinstance(values, np.ndarray)), None)
    if damaged is not None:
        raise DataError(f"{where}: '{damaged}' is no NumPy array.")
    return arrays, where, asked


def _without_part(name: str | None, keys: list[str]) -> str | None:
    found = part_and_name(name) if name is not None and name in keys else None
    return found[1] if found else name


def _class_names(arrays: dict[str, np.ndarray], where: str) -> list[str] | None:
    names = arrays.get("class_names")
    if names is None:
        return None
    if names.ndim != 1:
        raise DataError(f"{where}: class_names must be one-dimensional, got the shape {names.shape}.")
    return [str(name) for name in names.tolist()]


def _column(values: np.ndarray, name: str, where: str) -> list[int | str | float]:
    if values.ndim == 2 and values.shape[1] == 1:
        values = values[:, 0]
    if values.ndim != 1 or values.dtype.kind not in "biufU":
        raise DataError(
            f"{where}: '{name}' must be one-dimensional numbers or text, got {values.dtype} of shape {values.shape}."
        )
    return values.tolist()


def _as_inputs(x: np.ndarray, where: str) -> Tensor:
    if x.ndim >= 2 and not all(x.shape[1:]):
        raise DataError(f"{where}: inputs of the shape {x.shape} hold no values.")
    if x.ndim == 2:
        return _as_features(x, where)
    if x.ndim not in (3, 4):
        raise DataError(
            f"{where}: inputs must be rows (N, D) or images (N, H, W), (N, H, W, C), (N, C, H, W), got {x.shape}."
        )
    if x.dtype != np.uint8:
        raise DataError(f"{where}: images must be uint8 in 0..255, got {x.dtype}; multiply [0, 1] by 255 and round.")
    if x.ndim == 3:
        x = x[:, None]
    elif x.shape[-1] in (1, 3) and x.shape[1] not in (1, 3):
        x = x.transpose(0, 3, 1, 2)
    if x.shape[1] not in (1, 3):
        raise DataError(f"{where}: images must have 1 or 3 channels, got the shape {x.shape}.")
    return torch.from_numpy(np.ascontiguousarray(x))


def _as_features(x: np.ndarray, where: str) -> Tensor:
    if x.dtype.kind not in "biuf":
        raise DataError(f"{where}: features must be numbers, got {x.dtype}.")
    with np.errstate(over="ignore"):
        rows = np.ascontiguousarray(x, dtype=np.float32)
    wrong = ~np.isfinite(rows)
    if wrong.any():
        row, column = np.argwhere(wrong)[0].tolist()
        if np.isfinite(x[row, column]):
            raise DataError(
                f"{where}: the feature in column {column} holds {x[row, column]:g} in row {row}, {TOO_LARGE}."
            )
        raise DataError(f"{where}: features must be finite, row {row} holds NaN or infinity in column {column}.")
    return torch.from_numpy(rows)


def _extra(arrays: dict[str, np.ndarray], used: set[str], size: int) -> dict[str, Tensor]:
    return {
        name: torch.from_numpy(values.astype(np.int64))
        for name, values in arrays.items()
        if name not in used and name != MASK and values.dtype.kind in "iu" and values.ndim >= 1 and len(values) == size
    }
