"""The table in a csv file: its separator found from the header, its text checked to be UTF-8."""

import codecs
import csv
import io
from collections.abc import Sequence
from pathlib import Path

import pyarrow as pa
from pyarrow import csv as arrow_csv

from weathered.core.errors import DataError

SEPARATORS = {",": "commas", ";": "semicolons", "\t": "tabs"}
HEAD_BYTES = 1 << 20
"""The header must lie within this many bytes."""


def read_table(path: Path, as_text: Sequence[str] = ()) -> pa.Table:
    """The rows below the header, separated by commas, semicolons or tabs, in UTF-8 with or without its mark.

    The separator is the one that splits the header; where several do, the one under which every row has as many
    fields as the header. as_text: columns whose values stay as they are written, `07` and `true` included. Rows in
    messages count from 0 after the header, lines from 1.
    Raises DataError for a file that is not UTF-8, rows of other lengths, a repeated column, or no rows.
    """
    header = headers(path)
    table = _only_fitting(path, header, as_text) if len(header) > 1 else _parse(path, next(iter(header), ","), as_text)
    if any(pa.types.is_binary(field.type) for field in table.schema):
        raise _not_utf8(path)
    names = table.column_names
    twice = next((name for name in names if names.count(name) > 1), None)
    if twice is not None:
        raise DataError(f"{path}: the column '{twice}' occurs twice.")
    if not len(table):
        raise DataError(f"{path}: there are no rows below the header.")
    return table


def is_text(table: pa.Table, column: str) -> bool:
    """Whether a column holds text."""
    kind = table[column].type
    return pa.types.is_string(kind) or pa.types.is_large_string(kind)


def refuse_broken_lines(table: pa.Table, columns: Sequence[str], path: Path) -> None:
    """Raise DataError if a value of these text columns runs over several lines: a quote that was never closed
    swallows the rows below it.
    """
    for column in columns:
        if is_text(table, column):
            values = table[column].to_pylist()
            broken = next((row for row, text in enumerate(values) if text and ("\n" in text or "\r" in text)), None)
            if broken is not None:
                raise DataError(
                    f"{path}: the value of '{column}' in row {broken} runs over several lines, perhaps a quotation "
                    "mark is not closed."
                )


def headers(path: Path) -> dict[str, list[str]]:
    """Separator -> names of the columns, for the separators that give more than one. Raises DataError."""
    with path.open("rb") as stream:
        head = stream.read(HEAD_BYTES)
    try:
        # a character that is cut at the end of the head is no error
        text = codecs.getincrementaldecoder("utf-8-sig")().decode(head)
    except UnicodeDecodeError as error:
        raise _not_utf8(path) from error
    if "\0" in text:
        raise DataError(f"{path}: holds zero bytes and is no text in UTF-8; save it as a csv file in UTF-8.")
    if not text.strip():
        raise DataError(f"{path}: the file is empty; a csv file needs a header that names its columns, and rows.")
    headers = {separator: _first_record(text, separator) for separator in SEPARATORS}
    return {separator: names for separator, names in headers.items() if len(names) > 1}


def _first_record(text: str, separator: str) -> list[str]:
    try:
        return next((record for record in csv.reader(io.StringIO(text, newline=""), delimiter=separator) if record), [])
    except csv.Error:
        return []


def _only_fitting(path: Path, headers: dict[str, list[str]], as_text: Sequence[str]) -> pa.Table:
    tables: dict[str, pa.Table] = {}
    errors: list[DataError] = []
    for separator in headers:
        try:
            tables[separator] = _parse(path, separator, as_text)
        except DataError as error:
            errors.append(error)
    if not tables:
        raise errors[0]
    if len(tables) > 1:
        ways = " or ".join(f"{SEPARATORS[s]} ({len(headers[s])} columns)" for s in tables)
        raise DataError(
            f"{path}: the columns may be separated by {ways}, every row fits each; put names and values that hold one "
            "of these characters in quotation marks."
        )
    return next(iter(tables.values()))


def _parse(path: Path, separator: str, as_text: Sequence[str]) -> pa.Table:
    broken: list[arrow_csv.InvalidRow] = []

    def remember(row: arrow_csv.InvalidRow) -> str:
        broken.append(row)
        return "error"

    def read(threads: bool) -> pa.Table:
        return arrow_csv.read_csv(
            path,
            read_options=arrow_csv.ReadOptions(use_threads=threads),
            parse_options=arrow_csv.ParseOptions(delimiter=separator, invalid_row_handler=remember),
            convert_options=arrow_csv.ConvertOptions(
                strings_can_be_null=True,
                # in text a quoted NA is a name
                quoted_strings_can_be_null=not as_text,
                column_types=dict.fromkeys(as_text, pa.string()),
            ),
        )

    try:
        try:
            return read(threads=True)
        except pa.ArrowInvalid:
            if not broken:
                raise
            # one thread counts the rows
            broken.clear()
            return read(threads=False)
    except (pa.ArrowException, OSError, UnicodeDecodeError) as error:
        if broken:
            row = broken[0]
            raise DataError(
                f"{path}: the header, split at {SEPARATORS[separator]}, has {row.expected_columns} "
                f"field{'s' * (row.expected_columns != 1)}, row {(row.number or 2) - 2} has {row.actual_columns}."
            ) from error
        text = " ".join(str(error).split()).rstrip(".")
        if "cannot infer number of columns" in text:
            raise DataError(f"{path}: there are no rows below the header.") from error
        raise DataError(f"{path}: not a table that can be read: {text}.") from error


def _not_utf8(path: Path) -> DataError:
    data = path.read_bytes()
    try:
        data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        # the start of the line that is broken counts as a line
        line = len((data[: error.start] + b"?").splitlines())
        return DataError(
            f"{path}: not UTF-8 text, line {line} holds the byte 0x{data[error.start]:02x}; save it as UTF-8."
        )
    return DataError(f"{path}: a column holds bytes that are no text; save it as UTF-8.")
