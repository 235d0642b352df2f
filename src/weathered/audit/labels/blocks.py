"""Rows of a large matrix in blocks: memory is bounded by a block, whether the matrix is in memory or in a file.

What is computed of a row depends on that row alone, and each block is widened to float64 in row-major order first, so
the size of the blocks changes no result.
"""

import os
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from torch import Tensor

from weathered.core.errors import DataError
from weathered.core.watch import Progress

Matrix = np.ndarray | Tensor | str | os.PathLike[str]
"""A matrix (N, C) of floating point numbers: an array, a memory map, a tensor, or the path of a .npy file."""

BLOCK_VALUES = 2**18
"""Values of a block: 2 MiB in float64, which caches hold; larger blocks are slower."""

SUM_TOLERANCE = 1e-3
"""How far a row of probabilities may sum from 1."""


def open_matrix(values: Matrix, name: str) -> np.ndarray | Tensor:
    """The matrix behind `values`; the file of a path is mapped into memory, read-only and without pickle.

    name: what the matrix is, for messages. Raises DataError if it is no (N, C) matrix of floating point numbers with
    N, C >= 1, or the file cannot be read.
    """
    if isinstance(values, (str, os.PathLike)):
        try:
            values = np.load(Path(values), mmap_mode="r", allow_pickle=False)
        except OSError as error:
            raise DataError(f"{name}: {os.fspath(values)} cannot be read: {error.strerror or error}.") from None
        except (ValueError, EOFError, OverflowError):
            # what numpy says of such files is advice to load them unsafely
            raise DataError(f"{name}: {os.fspath(values)} is no .npy file of numbers, or a damaged one.") from None
        if not isinstance(values, np.ndarray):
            raise DataError(f"{name}: expected a .npy file with one array, got an archive of several.")
    floating = values.is_floating_point() if isinstance(values, Tensor) else values.dtype.kind == "f"
    if not floating or values.ndim != 2 or 0 in values.shape:
        raise DataError(
            f"{name} must be a matrix of floating point numbers with at least one row and one column, got shape "
            f"{tuple(values.shape)} of {values.dtype}."
        )
    return values


def as_array(values: np.ndarray | Tensor) -> np.ndarray:
    """A float64 array in row-major order; not a copy where it is one already, so do not write to it."""
    if isinstance(values, Tensor):
        values = values.detach().cpu().double().numpy()
    return np.ascontiguousarray(values, dtype=np.float64)


def row_blocks(
    matrix: np.ndarray | Tensor, what: str, block_rows: int | None = None, progress: Progress | None = None
) -> Iterator[tuple[int, np.ndarray]]:
    """The first row and the float64 values (B, C) of each block, in order; blocks are not to be written to.

    what: name of the pass, for `progress`. block_rows: rows of a block, as many as `BLOCK_VALUES` allow by default.
    Raises ValueError if block_rows < 1.
    """
    if block_rows is not None and block_rows < 1:
        raise ValueError(f"block_rows must be at least 1, got {block_rows}")
    rows, step = len(matrix), block_rows or max(1, BLOCK_VALUES // matrix.shape[1])
    for start in range(0, rows, step):
        block = as_array(matrix[start : start + step])
        yield start, block
        if progress is not None:
            progress(what, start + len(block), rows)


def check_labels(labels: np.ndarray | Tensor, rows: int, num_classes: int) -> np.ndarray:
    """Labels as int64 (N,). Raises DataError unless there is one integer in [0, num_classes) for each row."""
    array = labels.detach().cpu().numpy() if isinstance(labels, Tensor) else np.asarray(labels)
    if array.shape != (rows,):
        raise DataError(f"Expected one label for each of {rows} rows of probabilities, got shape {array.shape}.")
    if array.dtype.kind not in "iu":
        raise DataError(f"Labels must be integers, got {array.dtype}.")
    outside = (array < 0) | (array >= num_classes)
    if outside.any():
        row = int(outside.argmax())
        raise DataError(
            f"Labels must be in [0, {num_classes - 1}] for {num_classes} columns of probabilities, got {array[row]} in "
            f"row {row}. If it marks a missing label, leave those rows out."
        )
    return array.astype(np.int64)


def check_probabilities(block: np.ndarray, start: int) -> None:
    """Raise DataError unless each row (B, C) is a distribution; the message names the first row that is not one."""
    sums, least = block.sum(axis=1), block.min(axis=1)
    # a value that is not finite leaves no finite sum, and so fails the comparison
    good = (np.abs(sums - 1) <= SUM_TOLERANCE) & (least >= 0)
    if good.all():
        return
    row = int((~good).argmax())
    if not np.isfinite(block[row]).all():
        why = "holds a value that is not finite"
    elif least[row] < 0:
        why = f"holds the negative value {least[row]:.6g}"
    else:
        why = f"sums to {sums[row]:.6g}"
    raise DataError(
        f"Probabilities must be finite, at least 0, and sum to 1 in each row (within {SUM_TOLERANCE}), but row "
        f"{start + row} {why}. Logits become probabilities by softmax."
    )
