"""`csv:PATH`: a column of image paths, or columns of numbers, with a column of labels."""

import os
from collections.abc import Sequence
from pathlib import Path

import pyarrow as pa
from pyarrow import csv

from weathered.core.errors import DataError
from weathered.data.dataset import Dataset
from weathered.data.encoded import FileImages
from weathered.data.sources.arrow import read_extra, read_labels, table_dataset
from weathered.data.sources.options import ReadOptions, existing_file
from weathered.data.stream import StreamInputs

PATH_COLUMNS = ("path", "image", "file")


def read_csv(rest: str, options: ReadOptions) -> Dataset:
    """Images where a text column path, image or file is there, otherwise a table: all other columns are features.

    The first row names the columns. Image paths are relative to the file's folder; absolute ones and ones that lead
    out of it, also by a link, are refused. Rows in messages count from 0 after the header.
    Raises DataError for a file that is no table, a missing label, a feature that is no number or missing.
    """
    path = existing_file(rest, "csv")
    table = _read_table(path)
    columns = table.column_names
    labelling = {options.label_column, options.clean_column}
    image = next((c for c in PATH_COLUMNS if c in columns and c not in labelling and _is_text(table, c)), None)
    if image is None:
        return table_dataset(table, {}, options, path.stem)
    labels = read_labels(table, [c for c in columns if c != image], {}, options, path.stem)
    files = FileImages(path.parent, inside(path.parent, table[image].to_pylist(), str(path)))
    return Dataset(
        StreamInputs(files, image_size=options.image_size),
        labels.labels,
        labels.names,
        name=path.stem,
        clean_labels=labels.clean,
        extra=read_extra(table, [c for c in columns if c != image and c not in labels.used]),
    )


def _read_table(path: Path) -> pa.Table:
    try:
        table = csv.read_csv(path, convert_options=csv.ConvertOptions(strings_can_be_null=True))
    except (pa.ArrowException, OSError, UnicodeDecodeError) as error:
        text = " ".join(str(error).split()).rstrip(".")
        raise DataError(f"{path}: not a table that can be read: {text}.") from error
    names = table.column_names
    twice = next((name for name in names if names.count(name) > 1), None)
    if twice is not None:
        raise DataError(f"{path}: the column '{twice}' occurs twice.")
    if not len(table):
        raise DataError(f"{path}: there are no rows below the header.")
    return table


def _is_text(table: pa.Table, column: str) -> bool:
    kind = table[column].type
    return pa.types.is_string(kind) or pa.types.is_large_string(kind)


def inside(folder: Path, paths: Sequence[str | None], name: str) -> list[str]:
    """The paths, once each is known to be relative and to stay in `folder` with all links followed.

    Raises DataError naming the row of the first that does not.
    """
    base = os.path.realpath(folder)
    checked = []
    for row, path in enumerate(paths):
        if not path or "\0" in path:
            raise DataError(f"{name}: the image path in row {row} is missing.")
        if os.path.isabs(path) or not _below(os.path.realpath(os.path.join(base, path)), base):
            raise DataError(f"{name}: the image path '{path}' in row {row} leads out of the folder of the table.")
        checked.append(path)
    return checked


def _below(path: str, base: str) -> bool:
    return path.startswith(base.rstrip(os.sep) + os.sep)
