"""What is read of the rows of a source besides the data set: what people call them, and further label columns."""

import importlib
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Int

from weathered.core.errors import DataError
from weathered.data.encoded import FileImages
from weathered.data.sources.columns import aside
from weathered.data.sources.load import parse_source, read_source
from weathered.data.sources.options import ReadOptions
from weathered.data.stream import StreamInputs

COLUMN_READERS = {"csv": "csv_file:read_label_columns", "parquet": "parquet:read_label_columns"}


def row_names(
    spec: str,
    rows: Sequence[int] | np.ndarray,
    root: Path | None = None,
    label_column: str | None = None,
    clean_column: str | None = None,
    not_features: tuple[str, ...] = (),
    group_column: str | None = None,
    chosen: str | None = None,
) -> list[str]:
    """What a person calls these rows of a source: the file of an image, relative to its folder, else "row 17".

    label_column, clean_column, not_features, group_column: as the source was read with. chosen: its `rows`.
    """
    options = ReadOptions(
        root=root, label_column=label_column, clean_column=clean_column, left_out=not_features,
        group_column=group_column, rows=chosen,
    )  # fmt: skip
    # every row has a name, also those that were not chosen
    options = replace(options, aside=aside(options), group_column=None, rows=None)
    inputs = read_source(spec, options).inputs
    files = (
        inputs.encoded.paths if isinstance(inputs, StreamInputs) and isinstance(inputs.encoded, FileImages) else None
    )
    return [f"row {row}" if files is None else files[row] for row in np.asarray(rows).tolist()]


def label_columns(spec: str, columns: Sequence[str], class_names: tuple[str, ...]) -> Int[torch.Tensor, "N M"]:
    """The codes of several label columns of a csv or parquet file, (N, M), -1 where one is empty; all else is not read.

    Raises DataError for another source, a column that is not there, or a label in it that is none of the classes.
    """
    name, rest = parse_source(spec)
    if name not in COLUMN_READERS:
        raise DataError(f"{spec}: label columns are read from {' and '.join(COLUMN_READERS)} files only.")
    module, _, function = COLUMN_READERS[name].partition(":")
    read = getattr(importlib.import_module(f"weathered.data.sources.{module}"), function)
    return read(rest, columns, class_names)
