"""Rows of numbers with the names of their columns, so that a test table can be brought into the same order."""

import numpy as np
import torch
from torch import Tensor

from weathered.core.errors import DataError
from weathered.data.dataset import Dataset, MemoryInputs

TOO_LARGE = "beyond the largest float32, 3.4e38; scale the column down"


def first_too_large(values: np.ndarray) -> int | None:
    """The first position in a column (N,) whose finite number becomes infinite as float32, or None."""
    with np.errstate(over="ignore"):
        huge = np.isfinite(values) & np.isinf(values.astype(np.float32))
    return int(huge.argmax()) if huge.any() else None


class TableInputs(MemoryInputs):
    """Rows of numbers as they were read. columns: name of each feature, in order."""

    def __init__(self, tensor: Tensor, columns: tuple[str, ...]):
        super().__init__(tensor)
        self.columns = columns

    def select(self, index: Tensor) -> "TableInputs":
        return TableInputs(self.tensor[index], self.columns)


def same_columns(test: Dataset, train: Dataset) -> Dataset:
    """The test table with its features in the order of the training table; other kinds of data unchanged.

    Raises DataError naming a feature that only one of them has.
    """
    here, there = test.inputs, train.inputs
    if not isinstance(here, TableInputs) or not isinstance(there, TableInputs) or here.columns == there.columns:
        return test
    for columns, others, where in ((there, here, "training"), (here, there, "test")):
        only = next((c for c in columns.columns if c not in others.columns), None)
        if only is not None:
            raise DataError(f"{test.name}: only the {where} set has the feature '{only}'; both need the same columns.")
    order = torch.tensor([here.columns.index(c) for c in there.columns])
    return test.replace(inputs=TableInputs(here.tensor[:, order], there.columns))
