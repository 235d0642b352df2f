"""Arrow columns to what a data set holds: labels, further columns, rows of numbers."""

import json
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import torch
from torch import Tensor

from weathered.core.errors import DataError
from weathered.data.dataset import Dataset
from weathered.data.labels import LabelCoder, choose_column
from weathered.data.sources.options import ReadOptions
from weathered.data.sources.tables import TableInputs


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
    """The label and clean columns of a table as codes."""
    label = choose_column(columns, options.label_column, "label", name)
    chosen = [label]
    if options.clean_column is not None:
        chosen.append(choose_column(columns, options.clean_column, "clean", name))
    values = {column: table[column].to_pylist() for column in chosen}
    names = next((n for column in chosen if (n := declared_names(features, column))), None)
    coded = LabelCoder(name, names, options.class_names).encode(values, options.clean_column)
    clean = None if options.clean_column is None else coded.codes[options.clean_column]
    return Labels(coded.codes[label], clean, coded.names, set(chosen))


def is_extra(kind: pa.DataType) -> bool:
    """Whether a column of this type is kept beside the labels: whole numbers, or lists of numbers."""
    if pa.types.is_list(kind) or pa.types.is_large_list(kind) or pa.types.is_fixed_size_list(kind):
        inner = kind.value_type
        return pa.types.is_integer(inner) or pa.types.is_floating(inner)
    return pa.types.is_integer(kind)


def read_extra(table: pa.Table, columns: Sequence[str]) -> dict[str, Tensor]:
    """Whole-number columns as (N,) int64 and lists of one length as (N, K); columns with gaps are left out."""
    extra = {}
    for name in columns:
        column = table[name]
        if not is_extra(column.type) or column.null_count:
            continue
        if pa.types.is_integer(column.type):
            extra[name] = torch.from_numpy(column.to_numpy().astype(np.int64))
            continue
        chunks = column.chunks
        lengths = {length for chunk in chunks for length in chunk.value_lengths().unique().to_pylist()}
        flat = pa.chunked_array([chunk.flatten() for chunk in chunks], type=column.type.value_type)
        if len(lengths) == 1 and not flat.null_count:
            values = flat.to_numpy().reshape(len(column), *lengths)
            kind = np.int64 if values.dtype.kind in "iu" else np.float32
            extra[name] = torch.from_numpy(values.astype(kind))
    return extra


def table_dataset(table: pa.Table, features: Mapping[str, Any], options: ReadOptions, name: str) -> Dataset:
    """Rows of numbers: every column besides the labels is a feature, in order, as float32.

    Raises DataError for a feature that is not a number, is missing, NaN or infinite, naming row and column.
    """
    columns = table.column_names
    labels = read_labels(table, columns, features, options, name)
    inputs = [c for c in columns if c not in labels.used and c not in options.not_features]
    if not inputs:
        raise DataError(f"{name}: there are no feature columns besides {', '.join(sorted(labels.used))}.")
    unused = next((c for c in inputs if c in ("label", "labels", "target", "class")), None)
    if unused is not None:
        raise DataError(
            f"{name}: the column '{unused}' would become a feature and give the answer away; name it as --clean-column "
            "or drop it."
        )
    x = np.empty((len(table), len(inputs)), dtype=np.float32)
    for i, column in enumerate(inputs):
        values = table[column]
        kind = values.type
        if not (pa.types.is_integer(kind) or pa.types.is_floating(kind) or pa.types.is_boolean(kind)):
            raise DataError(
                f"{name}: the feature column '{column}' holds {kind}, not numbers; encode it as numbers or drop it."
            )
        x[:, i] = pc.fill_null(values.cast(pa.float64()), float("nan")).to_numpy()
        wrong = ~np.isfinite(x[:, i])
        if wrong.any():
            raise DataError(
                f"{name}: the feature '{column}' is missing, NaN or infinite in row {int(wrong.argmax())}; fill it in "
                "or drop the row."
            )
    rows = TableInputs(torch.from_numpy(x), tuple(inputs))
    return Dataset(rows, labels.labels, labels.names, name=name, clean_labels=labels.clean)
