"""`csv:PATH`: a column of image paths, or columns of numbers, with a column of labels."""

import os
from collections.abc import Sequence
from pathlib import Path

import pyarrow as pa
import torch
from jaxtyping import Int
from torch import Tensor

from weathered.core.errors import DataError
from weathered.data.dataset import Dataset
from weathered.data.encoded import FileImages
from weathered.data.labels import DEFAULT_COLUMNS, MissingColumn, choose_column
from weathered.data.sources.arrow import Labels, coded_columns, read_extra, read_labels, table_dataset
from weathered.data.sources.columns import as_texts
from weathered.data.sources.csv_table import headers, is_text, read_table, refuse_broken_lines
from weathered.data.sources.options import ReadOptions, existing_file, lies_below
from weathered.data.stream import StreamInputs

PATH_COLUMNS = ("path", "image", "file")


def read_csv(rest: str, options: ReadOptions) -> Dataset:
    """Images where a text column path, image or file is there, otherwise a table: all other columns are features.

    The first row names the columns; they are separated by commas, semicolons or tabs, the text is UTF-8. Image paths
    are relative to the file's folder; absolute ones and ones that lead out of it, also by a link, are refused. Rows
    in messages count from 0 after the header. Images with captions need no labels.
    Raises DataError for a file that is no table, a missing label, a feature that is no number or missing.
    """
    path = existing_file(rest, "csv")
    table = read_table(path)
    columns = table.column_names
    if options.mask_column is not None:
        raise DataError(f"{path}: masks are read from parquet, npz and segmentation:FOLDER, not from csv.")
    labelling = {options.label_column, options.clean_column}
    image = next((c for c in PATH_COLUMNS if c in columns and c not in labelling and is_text(table, c)), None)
    if image is None:
        refuse_broken_lines(table, columns, path)
        if len(columns) == 1 and columns[0] not in (*DEFAULT_COLUMNS, *labelling):
            raise DataError(
                f"{path}: the header gives one column, '{columns[0]}'; columns are separated by commas, semicolons or "
                "tabs."
            )
        return table_dataset(table, {}, options, str(path), path.stem)
    labels = _labels_or_none(table, [c for c in columns if c not in (image, options.caption_column)], options, path)
    refuse_broken_lines(table, [image, *sorted(labels.used)], path)
    files = FileImages(path.parent, inside(path.parent, table[image].to_pylist(), str(path)))
    return Dataset(
        StreamInputs(files, image_size=options.image_size),
        labels.labels,
        labels.names,
        name=path.stem,
        clean_labels=labels.clean,
        extra=read_extra(table, [c for c in columns if c != image and c not in labels.used]),
    )


def _labels_or_none(table: pa.Table, columns: Sequence[str], options: ReadOptions, path: Path) -> Labels:
    """The labels; where images have captions and no label column is named or found, all are of the class 'image'."""
    try:
        return read_labels(table, columns, {}, options, str(path))
    except MissingColumn:
        if options.caption_column is None or options.label_column or options.clean_column:
            raise
        return Labels(torch.zeros(table.num_rows, dtype=torch.int64), None, ("image",), set())


def read_label_columns(rest: str, columns: Sequence[str], class_names: tuple[str, ...]) -> Int[Tensor, "N M"]:
    """See `label_columns`."""
    path = existing_file(rest, "csv")
    table = read_table(path)
    refuse_broken_lines(table, [column for column in columns if column in table.column_names], path)
    return coded_columns(table, columns, {}, class_names, str(path))


def read_text_column(rest: str, column: str) -> list[str]:
    """One column as text, '' where it is missing. Raises DataError if it is not there or holds something else."""
    path = existing_file(rest, "csv")
    # as text, so that 01 is the same in every file
    table = read_table(path, as_text=[column])
    refuse_broken_lines(table, [choose_column(table.column_names, column, "such", str(path))], path)
    return as_texts(table[column].to_pylist(), column, path)


def image_files(path: Path) -> list[str]:
    """The image paths that a csv file names, as they stand in it; empty for a table of numbers. Raises DataError."""
    if not any(column in names for names in headers(path).values() for column in PATH_COLUMNS):
        return []
    table = read_table(path)
    column = next((c for c in PATH_COLUMNS if c in table.column_names and is_text(table, c)), None)
    return [] if column is None else [name for name in table[column].to_pylist() if name]


def inside(folder: Path, paths: Sequence[str | None], name: str) -> list[str]:
    """The paths, once each is known to be relative and to stay in `folder` with all links followed.

    Raises DataError naming the row of the first that does not.
    """
    base = os.path.realpath(folder)
    checked = []
    for row, path in enumerate(paths):
        if not path or "\0" in path:
            raise DataError(f"{name}: the image path in row {row} is missing.")
        if os.path.isabs(path) or not lies_below(os.path.realpath(os.path.join(base, path)), base):
            raise DataError(f"{name}: the image path '{path}' in row {row} leads out of the folder of the table.")
        checked.append(path)
    return checked
