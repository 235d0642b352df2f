"""Rows of a test set that another run was trained on, as a teacher may have been."""

import torch
from jaxtyping import Int
from torch import Tensor

from weathered.data.dataset import Dataset
from weathered.data.fingerprint import data_fingerprint
from weathered.data.sources.load import has_own_test
from weathered.recipe import DataOptions


def source_of_tests(data: DataOptions) -> str | None:
    """The source that test rows are taken from; None for the test part that a training source brings with it."""
    if data.fold is not None or (data.test_rows is not None and data.test is None):
        return data.train
    if data.test is not None:
        return data.test
    return None if has_own_test(data.train) else data.train


def trained_on(test: Dataset, data: DataOptions, rows: Int[Tensor, "N"], of: DataOptions) -> int:
    """How many rows of `test`, the test set of `data`, are among `rows` of the training source of `of`.

    Rows are told apart by their place in the source, so rows of different files count as different.
    """
    source = source_of_tests(data)
    if source is None or _prints(source, data.root) != _prints(of.train, of.root):
        return 0
    return int(torch.isin(test.rows_in_source, rows).sum())


def _prints(source: str, root: str | None) -> str:
    return data_fingerprint(DataOptions(source, root=root))
