"""Arrow columns to what a data set holds: labels, further columns, rows of numbers."""

import json
import re
from collections.abc import Mapping, Sequence
from shlex import quote
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import torch
from jaxtyping import Int
from torch import Tensor

from weathered.core.errors import DataError
from weathered.core.pixels import MASK
from weathered.data.dataset import Dataset
from weathered.data.labels import LabelCoder, MissingColumn, choose_column
from weathered.data.sources.options import ReadOptions, of_chosen
from weathered.data.sources.tables import TOO_LARGE, TableInputs, first_too_large

ROW_NUMBERS = ("", "Unnamed: 0", "__index_level_0__")
"""Names under which pandas writes the numbers of rows."""


def declared_features(schema: pa.Schema) -> dict[str, Any]:
    """The `huggingface` metadata of a schema: column -> type; empty if there is none that can be read."""
    try:
        text = (schema.metadata or {}).get(b"huggingface", b"{}")
        features = json.loads(text)["info"]["features"]
    except (ValueError, KeyError, TypeError):
        return {}
    return {k: v for k, v in features.items() if isinstance(v, dict)} if isinstance(features, dict) else {}


def declared_names(features: Mapping[str, Any], column: str) -> list[str] | None:
    """Class names of a ClassLabel column, or None."""
    names = features.get(column, {}).get("names")
    return [str(n) for n in names] if isinstance(names, list) and names else None


class Labels:
    """labels, clean: (N,) int64 codes, clean may be None. names: the classes. used: columns that were read."""

    def __init__(self, labels: Tensor, clean: Tensor | None, names: tuple[str, ...], used: set[str]):
        self.labels, self.clean, self.names, self.used = labels, clean, names, used


def read_labels(
    table: pa.Table, columns: Sequence[str], features: Mapping[str, Any], options: ReadOptions, name: str
) -> Labels:
    """The label and clean columns of a table as codes; zeros where the table may be without labels and has none."""
    try:
        label = choose_column(columns, options.label_column, "label", name)
    except MissingColumn:
        if not options.unlabelled or options.class_names is None:
            raise
        return Labels(torch.zeros(len(table), dtype=torch.int64), None, options.class_names, set())
    chosen = [label]
    if options.clean_column is not None:
        chosen.append(choose_column(columns, options.clean_column, "clean", name))
    values = {column: of_chosen(table[column].to_pylist(), options) for column in chosen}
    names = next((n for column in chosen if (n := declared_names(features, column))), None)
    coded = LabelCoder(name, names, options.class_names).encode(values, options.clean_column)
    clean = None if options.clean_column is None else coded.codes[options.clean_column]
    return Labels(coded.codes[label], clean, coded.names, set(chosen))


def coded_columns(
    table: pa.Table, columns: Sequence[str], features: Mapping[str, Any], class_names: tuple[str, ...], name: str
) -> Int[Tensor, "N M"]:
    """The codes of several label columns under given class names, (N, M) int64; -1 where a value is missing.

    name: how messages call the table. Raises DataError for a column that is not there or another label.
    """
    codes = []
    for column in (choose_column(table.column_names, column, "label", name) for column in columns):
        values = table[column].to_pylist()
        gaps = torch.tensor([value is None or value == "" or value != value for value in values])
        coder = LabelCoder(name, declared_names(features, column), class_names)
        # a gap is given some class, so that messages name rows as they are
        filled = [class_names[0] if gap else value for gap, value in zip(gaps.tolist(), values, strict=True)]
        codes.append(coder.encode({column: filled}).codes[column].masked_fill(gaps, -1))
    return torch.stack(codes, 1)


def is_extra(kind: pa.DataType) -> bool:
    """Whether a column of this type is kept beside the labels: whole numbers, or lists of numbers."""
    if pa.types.is_list(kind) or pa.types.is_large_list(kind) or pa.types.is_fixed_size_list(kind):
        inner = kind.value_type
        return pa.types.is_integer(inner) or pa.types.is_floating(inner)
    return pa.types.is_integer(kind)


def read_extra(table: pa.Table, columns: Sequence[str]) -> dict[str, Tensor]:
    """Whole-number columns as (N,) int64 and lists of one length as (N, K); columns with gaps, and those with numbers
    beyond int64 or float32, are left out.
    """
    extra = {}
    for name in columns:
        column = table[name]
        if not is_extra(column.type) or column.null_count or name == MASK:
            continue
        if pa.types.is_integer(column.type):
            values = column.to_numpy()
            if not _overflows(values):
                extra[name] = torch.from_numpy(values.astype(np.int64))
            continue
        chunks = column.chunks
        lengths = {length for chunk in chunks for length in chunk.value_lengths().unique().to_pylist()}
        flat = pa.chunked_array([chunk.flatten() for chunk in chunks], type=column.type.value_type)
        if len(lengths) == 1 and not flat.null_count:
            values = flat.to_numpy().reshape(len(column), *lengths)
            kind = np.int64 if values.dtype.kind in "iu" else np.float32
            if not _overflows(values):
                extra[name] = torch.from_numpy(values.astype(kind))
    return extra


def _overflows(values: np.ndarray) -> bool:
    if values.dtype.kind in "iu":
        return bool((values > np.iinfo(np.int64).max).any())
    return first_too_large(values.ravel()) is not None


def table_dataset(table: pa.Table, features: Mapping[str, Any], options: ReadOptions, where: str, name: str) -> Dataset:
    """Rows of numbers: every column besides the labels is a feature, in order, as float32.

    where: how messages call the table. name: of the data set. Raises DataError for a feature that is not a number,
    is missing, NaN, infinite or too large for float32, naming row and column.
    """
    columns = table.column_names
    labels = read_labels(table, columns, features, options, where)
    for column in () if options.test else options.left_out:
        if choose_column(columns, column, "feature", where) in labels.used:
            raise DataError(f"{where}: '{column}' is read as label, so it is no feature anyway; leave it out of these.")
    aside = {*labels.used, *options.not_features, *options.left_out, *options.aside}
    inputs = [c for c in columns if c not in aside]
    if not inputs:
        raise DataError(f"{where}: there are no feature columns besides {', '.join(c for c in columns if c in aside)}.")
    unused = next((c for c in inputs if c in ("label", "labels", "target", "class")), None)
    if unused is not None:
        raise DataError(
            f"{where}: the column '{unused}' would become a feature and give the answer away; name it as "
            f"--clean-column, or leave it out by --not-features {quote(unused)}."
        )
    numbering = next((c for c in inputs if c in ROW_NUMBERS), None)
    if numbering is not None:
        raise DataError(
            f"{where}: the column '{numbering}' looks like row numbers, as pandas writes them with index=True, and may "
            "give the answer away; leave it out by --not-features, or give it a name of its own."
        )
    x = np.empty((len(table), len(inputs)), dtype=np.float32)
    for i, column in enumerate(inputs):
        x[:, i] = _feature(table[column], column, where)
    rows = TableInputs(torch.from_numpy(x), tuple(inputs))
    return Dataset(rows, labels.labels, labels.names, name=name, clean_labels=labels.clean)


def _feature(values: pa.ChunkedArray, column: str, where: str) -> np.ndarray:
    kind = values.type
    if pa.types.is_null(kind):
        raise DataError(f"{where}: the feature column '{column}' is empty; fill it in or drop it.")
    numeric = pa.types.is_integer(kind) or pa.types.is_floating(kind) or pa.types.is_decimal(kind)
    if not (numeric or pa.types.is_boolean(kind)):
        raise DataError(
            f"{where}: the feature column '{column}' holds {kind}{_example(values)}, not numbers; encode it as numbers "
            f"or leave it out by --not-features {quote(column)}."
        )
    # not safe: whole numbers beyond 2**53 are rounded, as float32 rounds them anyway
    numbers = pc.fill_null(values.cast(pa.float64(), safe=False), float("nan")).to_numpy()
    wrong = ~np.isfinite(numbers)
    if wrong.any():
        raise DataError(
            f"{where}: the feature '{column}' is missing, NaN or infinite in row {int(wrong.argmax())}; fill it in "
            "or drop the row."
        )
    huge = first_too_large(numbers)
    if huge is not None:
        raise DataError(f"{where}: the feature '{column}' holds {numbers[huge]:g} in row {huge}, {TOO_LARGE}.")
    return numbers.astype(np.float32)


def _example(values: pa.ChunkedArray) -> str:
    """The first number that is written with a decimal comma, for messages; empty if there is none."""
    if not (pa.types.is_string(values.type) or pa.types.is_large_string(values.type)):
        return ""
    numbers = re.compile(r"\s*[-+]?\d+,\d+\s*")
    found = next(((row, text) for row, text in enumerate(values.to_pylist()) if text and numbers.fullmatch(text)), None)
    return "" if found is None else f" such as '{found[1]}' in row {found[0]} (a decimal comma; write a point)"
