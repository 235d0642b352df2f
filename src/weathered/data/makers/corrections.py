"""Corrections: labels that people have checked take the place of the given ones.

The file is what `weathered review` exports, or any table with the columns row, old and new: the number of the row in
the source that the data were read from, the class it is given as, and the right one. A file made for other data or
other labels is refused, because its old labels differ from those that are there.
"""

from pathlib import Path

import torch
from torch import Tensor

from weathered.core.errors import DataError
from weathered.core.spec import near
from weathered.data.dataset import Dataset
from weathered.data.labels import MissingColumn
from weathered.data.sources.options import existing_file

COLUMNS = ("row", "old", "new")
LARGEST = 256 << 20
"""Bytes of the largest file that is read."""


class Corrections:
    """Give rows the labels of a corrections file; rows that it does not name keep theirs, and so does the truth.

    file: .csv or .parquet with the columns row, old and new; others are ignored. Rows of the file that are not among
    the training rows, such as those held out for the test, are counted in a note. Draws nothing.
    Raises DataError if the file is missing or damaged, names a class or row twice or that is not there, or its old
    labels are not those of the data.
    """

    def __init__(self, file: str | Path):
        self.file = existing_file(str(file), "corrections")
        if self.file.suffix.lower() not in (".csv", ".parquet"):
            raise DataError(f"{self.file}: corrections are read from a file that ends in .csv or .parquet.")
        if (size := self.file.stat().st_size) > LARGEST:
            raise DataError(
                f"{self.file}: {size >> 20} MiB are more than the {LARGEST >> 20} MiB of corrections allowed."
            )

    def __call__(self, dataset: Dataset, rng: torch.Generator) -> Dataset:
        columns = _read(self.file)
        rows = _numbers(columns["row"], self.file)
        old, new = (_codes(columns[name], name, dataset.class_names, self.file) for name in ("old", "new"))
        ordered, order = dataset.rows_in_source.sort()
        if len(ordered) > 1 and bool((ordered[1:] == ordered[:-1]).any()):
            raise DataError(f"{dataset.name}: corrections need rows that occur once, but a row occurs twice.")
        place = torch.searchsorted(ordered, rows).clamp_max(len(ordered) - 1)
        here = ordered[place] == rows
        if not here.any():
            raise DataError(f"{self.file}: none of its {len(rows)} rows is among the training rows of {dataset.name}.")
        position = order[place[here]]
        if (differs := dataset.labels[position] != old[here]).any():
            first = int(differs.nonzero()[0])
            given = dataset.class_names[int(dataset.labels[position[first]])]
            named = dataset.class_names[int(old[here][first])]
            raise DataError(
                f"{self.file}: row {int(rows[here][first])} has the label '{given}' in {dataset.name}, not '{named}'; "
                "the corrections were made for other data or other labels."
            )
        labels = dataset.labels.clone()
        labels[position] = new[here]
        changed, absent = int((labels != dataset.labels).sum()), int((~here).sum())
        note = f"{changed} of {len(labels)} labels were corrected by {self.file.name}."
        if absent:
            note += f" {absent} of its rows are not among the training rows."
        return dataset.replace(labels=labels, notes=(*dataset.notes, note))


def _read(path: Path) -> dict[str, list[str | None]]:
    """The three columns as text, one value a row. Raises DataError."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    from weathered.data.sources.csv_table import read_table

    try:
        table = read_table(path, as_text=COLUMNS) if path.suffix.lower() == ".csv" else pq.read_table(path)
    except (OSError, pa.ArrowException) as error:
        raise DataError(f"{path}: not a table that can be read: {str(error).splitlines()[0].rstrip('.')}.") from error
    for column in COLUMNS:
        if column not in table.column_names:
            raise MissingColumn(
                f"{path}: corrections need the columns {', '.join(COLUMNS)}; '{column}' is missing."
                f"{near(column, table.column_names)}"
            )
    found = {column: [None if v is None else str(v) for v in table[column].to_pylist()] for column in COLUMNS}
    if not found["row"]:
        raise DataError(f"{path}: there are no corrections in it.")
    return found


def _numbers(values: list[str | None], path: Path) -> Tensor:
    for line, value in enumerate(values):
        # eighteen digits fit an int64
        if value is None or not (value.isascii() and value.isdigit() and len(value) <= 18):
            raise DataError(
                f"{path}: the row number of correction {line + 1} must be a whole number from 0 on, got {value!r}."
            )
    rows = torch.tensor([int(value) for value in values if value is not None])
    ordered = rows.sort().values
    if (twice := ordered[1:] == ordered[:-1]).any():
        raise DataError(f"{path}: row {int(ordered[1:][twice][0])} is corrected twice.")
    return rows


def _codes(values: list[str | None], column: str, names: tuple[str, ...], path: Path) -> Tensor:
    position = {name: code for code, name in enumerate(names)}
    unknown = next((line for line, value in enumerate(values) if value not in position), None)
    if unknown is not None:
        value = values[unknown]
        raise DataError(
            f"{path}: '{column}' of correction {unknown + 1} is {value!r}, which is no class of the data."
            f"{near(value or '', names)}"
        )
    return torch.tensor([position[value] for value in values if value is not None])
