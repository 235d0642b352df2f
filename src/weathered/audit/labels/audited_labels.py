"""What a label audit leaves beside its run to be looked at: `labels/labels.parquet`, a line per training sample."""

from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from weathered.core.atomic import write_atomically
from weathered.core.errors import DataError

FOLDER = "labels"
FILE = "labels.parquet"


@dataclass(frozen=True)
class AuditedLabels:
    """Labels with what an audit says of them, aligned with the N training rows of the run.

    source_row (N,) int64: the row's number in the source that the data were read from, before they were split.
    name: what a person calls the row, its file or "row 17". label, suggested (N,) int64: given and most probable
    class. score (N,) float64: lower = more suspicious. rank (N,) int64: 1 = most suspicious. suspected (N,) bool.
    like_label, like_suggested: for suspected rows the training rows of the nearest unsuspected samples of the given
    and of the suggested class, nearest first; empty for other rows, and where the model offers no features.
    """

    source_row: np.ndarray
    name: list[str]
    label: np.ndarray
    suggested: np.ndarray
    score: np.ndarray
    rank: np.ndarray
    suspected: np.ndarray
    like_label: list[list[int]]
    like_suggested: list[list[int]]

    def __len__(self) -> int:
        return len(self.label)


def labels_folder(run_folder: Path) -> Path:
    """Where the label audit of a run keeps its files."""
    return run_folder / FOLDER


def write_audited_labels(run_folder: Path, audited: AuditedLabels) -> Path:
    """Write the audit beside its run, whole or not at all, and return the file."""
    path = labels_folder(run_folder) / FILE
    table = pa.table({field.name: getattr(audited, field.name) for field in fields(audited)}, schema=_SCHEMA)
    write_atomically(path, lambda part: pq.write_table(table, part))
    return path


def read_audited_labels(run_folder: Path) -> AuditedLabels:
    """The label audit of a run. Raises DataError if there is none, or its file is damaged."""
    path = labels_folder(run_folder) / FILE
    if not path.exists():
        raise DataError(
            f"{run_folder} has no label audit yet; make one by 'weathered audit {run_folder} --audits labels'."
        )
    try:
        table = pq.read_table(path)
        if table.schema.names != _SCHEMA.names:
            raise pa.ArrowInvalid(f"its columns are {', '.join(table.schema.names)}")
        columns: dict[str, Any] = {
            name: table[name].to_pylist() if name in _LISTS else table[name].to_numpy() for name in _SCHEMA.names
        }
    except (OSError, pa.ArrowException) as error:
        raise DataError(f"{path} cannot be read: {error}. Make the label audit again.") from error
    return AuditedLabels(**columns)


_SCHEMA = pa.schema(
    {
        "source_row": pa.int64(),
        "name": pa.string(),
        "label": pa.int64(),
        "suggested": pa.int64(),
        "score": pa.float64(),
        "rank": pa.int64(),
        "suspected": pa.bool_(),
        "like_label": pa.list_(pa.int64()),
        "like_suggested": pa.list_(pa.int64()),
    }
)
_LISTS = ("name", "like_label", "like_suggested")
