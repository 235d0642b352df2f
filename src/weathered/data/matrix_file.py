"""A matrix of numbers from a file of its own: .npy, or .csv without a heading."""

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from weathered.core.errors import DataError
from weathered.data.sources.options import existing_file

LARGEST = 256 << 20
"""Bytes of the largest file that is read: a matrix of 5,792 by 5,792 in float64."""


def read_matrix(place: str) -> Float[Tensor, "R C"]:
    """The matrix in a file, float64. place: path that ends in .npy or .csv; `~` is the home folder.

    A csv file holds one row per line, numbers separated by commas. Objects that numpy would have to unpickle are
    refused. Raises DataError for anything missing, too large, damaged, or not a matrix of real numbers.
    """
    path = existing_file(place, "matrix")
    kind = path.suffix.lower()
    if kind not in (".npy", ".csv"):
        raise DataError(f"{path}: a matrix is read from a file that ends in .npy or .csv.")
    if (size := path.stat().st_size) == 0:
        raise DataError(f"{path}: the file is empty.")
    if size > LARGEST:
        raise DataError(f"{path}: {size >> 20} MiB are more than the {LARGEST >> 20} MiB that a matrix may take.")
    try:
        if kind == ".npy":
            # mapped first: the header is checked before anything is allocated, and objects are refused
            array = np.lib.format.open_memmap(path, mode="r")
        else:
            array = np.loadtxt(path, delimiter=",", ndmin=2, dtype=np.float64)
    except (ValueError, OSError, SyntaxError, OverflowError) as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise DataError(f"{path}: cannot be read as a matrix: {reason.rstrip('.')}.") from error
    if array.ndim != 2 or not array.size or array.dtype.kind not in "fiu":
        raise DataError(f"{path}: expected a matrix of real numbers, got shape {array.shape} of {array.dtype}.")
    return torch.from_numpy(np.array(array, dtype=np.float64))
