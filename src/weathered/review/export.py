"""Corrections: the labels that reviewers changed, as csv or parquet, each with who, when, old and new."""

import csv
import io
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

import pyarrow as pa
import pyarrow.parquet as pq

from weathered.audit.labels.audited_labels import AuditedLabels
from weathered.core.atomic import write_atomically
from weathered.core.errors import DataError, SpecError
from weathered.review.standing import Standing, resolve

FORMULA_STARTS = ("=", "+", "-", "@", "\t", "\r")
"""What makes a spreadsheet take a text for a formula."""


class Correction(NamedTuple):
    """One label that reviewers gave.

    row: its number in the source. old, new: class names. action: accept, keep or relabel. reviewer: those who gave
    `new`, separated by commas. time: when the last of them did, UTC. agreed, of: how many reviewers gave `new`, and
    how many gave any label.
    """

    row: int
    name: str
    old: str
    new: str
    action: str
    reviewer: str
    time: str
    agreed: int
    of: int


class Corrections(NamedTuple):
    """lines: in the order of the source. disputed: rows left out because no label has a majority of the reviewers."""

    lines: list[Correction]
    disputed: int


def corrections(
    audited: AuditedLabels, class_names: Sequence[str], standing: Standing, keep: bool = False
) -> Corrections:
    """The labels on which reviewers agree, or more than half of them do, where they differ from the given ones.

    keep: also those where the given label was confirmed.
    """
    lines, disputed = [], 0
    for row in standing.touched():
        current = standing.current(row)
        resolution = resolve(current.values())
        if resolution.label is None:
            disputed += resolution.of > 0
            continue
        given = int(audited.label[row])
        if resolution.label == given and not keep:
            continue
        giving = sorted((d for d in current.values() if d.label == resolution.label), key=lambda decision: decision.id)
        lines.append(
            Correction(
                row=int(audited.source_row[row]),
                name=audited.name[row],
                old=class_names[given],
                new=class_names[resolution.label],
                action=giving[-1].action,
                reviewer=", ".join(sorted(decision.reviewer for decision in giving)),
                time=giving[-1].time,
                agreed=resolution.agreed,
                of=resolution.of,
            )
        )
    return Corrections(sorted(lines), disputed)


def write_corrections(path: Path, lines: Sequence[Correction]) -> None:
    """Write corrections as the ending of `path` says, .csv or .parquet, whole or not at all.

    Raises SpecError for another ending, DataError if a class name cannot stand in a csv file.
    """
    content = encoded(path.suffix.lower().removeprefix("."), lines)
    if path.is_dir():
        raise DataError(f"{path} is a folder; name a file for the corrections.")
    write_atomically(path, lambda part: part.write_bytes(content))


def encoded(kind: str, lines: Sequence[Correction]) -> bytes:
    """Corrections as the bytes of a csv or parquet file; raises as `write_corrections` does."""
    if kind not in ENCODERS:
        raise SpecError(f"corrections are written as csv or parquet, got '{kind}'; end the file in .csv or .parquet.")
    return ENCODERS[kind](lines)


def as_csv(lines: Sequence[Correction]) -> bytes:
    """UTF-8, all texts quoted; a name that a spreadsheet would take for a formula gets an apostrophe in front."""
    for line in lines:
        for name in (line.old, line.new):
            if "\n" in name or "\r" in name:
                raise DataError(f"the class name {name!r} runs over several lines; export to parquet instead.")
    stream = io.StringIO(newline="")
    writer = csv.writer(stream, quoting=csv.QUOTE_NONNUMERIC, lineterminator="\n")
    writer.writerow(Correction._fields)
    writer.writerows(line._replace(name=_harmless(line.name)) for line in lines)
    # file names may hold bytes that are no text
    return stream.getvalue().encode("utf-8", "backslashreplace")


def as_parquet(lines: Sequence[Correction]) -> bytes:
    """The same columns, names as they are."""
    counts = ("row", "agreed", "of")
    schema = pa.schema([(name, pa.int64() if name in counts else pa.string()) for name in Correction._fields])
    texts = [line._replace(name=line.name.encode("utf-8", "backslashreplace").decode()) for line in lines]
    stream = io.BytesIO()
    pq.write_table(pa.Table.from_pylist([line._asdict() for line in texts], schema=schema), stream)
    return stream.getvalue()


ENCODERS: dict[str, Callable[[Sequence[Correction]], bytes]] = {"csv": as_csv, "parquet": as_parquet}


def _harmless(name: str) -> str:
    """A name on one line that no spreadsheet evaluates."""
    line = " ".join(name.splitlines())
    return f"'{line}" if line.startswith(FORMULA_STARTS) else line
