"""Labels of any source (whole numbers, text, names in metadata) to int64 codes and class names."""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from weathered.core.errors import DataError
from weathered.core.spec import near

DEFAULT_COLUMNS = ("label", "labels", "target", "class", "y")


class MissingColumn(DataError):
    """The source has no column of this name."""


def choose_column(columns: Sequence[str], asked: str | None, what: str, name: str) -> str:
    """The column to use: the one asked for, or for labels the first of label, labels, target, class, y.

    Raises MissingColumn with the columns there are.
    """
    candidates = DEFAULT_COLUMNS if asked is None else (asked,)
    for column in candidates:
        if column in columns:
            return column
    if not columns:
        raise MissingColumn(f"{name}: there is no {what} column, and no other that could be one.")
    if asked is None:
        raise MissingColumn(
            f"{name}: there is no column 'label'; pass --label-column with one of: {_columns(columns)}."
            f"{near('label', columns)} Where images have captions in place of labels, pass --caption-column."
        )
    raise MissingColumn(
        f"{name}: there is no {what} column '{asked}'.{near(asked, columns)} The columns are: {_columns(columns)}."
    )


def as_class_value(value: Any, row: int, column: str, name: str) -> int | str:
    """One label as a whole number or text. Raises DataError for a missing or fractional one."""
    if value is None or value == "" or (isinstance(value, float) and value != value):
        raise DataError(f"{name}: the label in column '{column}' is missing in row {row}; fill it in or drop the row.")
    if isinstance(value, (bool, str)):
        return str(value)
    if isinstance(value, float):
        if not value.is_integer():
            raise DataError(
                f"{name}: labels must be whole numbers or text, column '{column}' holds {value} in row {row}; "
                "such a column looks like numbers, not classes: name another with --label-column or group the values."
            )
        return int(value)
    if isinstance(value, int):
        return value
    raise DataError(f"{name}: labels must be whole numbers or text, column '{column}' holds {type(value).__name__}.")


MANY = 50
"""Up to this many values may be classes, however few rows each has."""


def refuse_too_many(values: Sequence[int | str], name: str, column: str) -> None:
    """Raise DataError if more than half of the rows of a label column hold a value of their own."""
    count = len(set(values))
    if count > MANY and 2 * count > len(values):
        like = "numbers" if all(isinstance(v, int) for v in values) else "names of rows"
        raise DataError(
            f"{name}: column '{column}' holds {count} different values in {len(values)} rows and looks like {like}, "
            "not classes: name another with --label-column or group the values."
        )


def infer_names(values: Sequence[int | str], name: str, column: str) -> tuple[str, ...]:
    """Class names when nothing declares them: the distinct values, sorted as numbers or as text.

    Raises DataError for negative numbers, unless the classes are -1 and 1, or a mixture of numbers and text.
    """
    distinct = set(values)
    numbers = {v for v in distinct if isinstance(v, int)}
    if numbers and len(numbers) < len(distinct):
        text = next(v for v in distinct if isinstance(v, str))
        raise DataError(f"{name}: column '{column}' mixes numbers and text, such as {min(numbers)} and '{text}'.")
    if numbers and min(numbers) < 0 and numbers != {-1, 1}:
        raise DataError(
            f"{name}: column '{column}' holds the label {min(numbers)}; if negative marks a missing label, drop those "
            "rows first."
        )
    return tuple(str(v) for v in sorted(distinct))  # pyright: ignore[reportArgumentType]


class LabelCoder:
    """Turns the label columns of one source into codes under one list of class names.

    declared: names that metadata or folders give, whole numbers then being positions in them. given: names of the
    training set, which this source must share. Raises DataError naming the classes that differ.
    """

    def __init__(self, name: str, declared: Sequence[str] | None = None, given: Sequence[str] | None = None):
        self.name = name
        self.declared = None if declared is None else tuple(declared)
        self.given = None if given is None else tuple(given)
        if self.declared is not None and len(set(self.declared)) != len(self.declared):
            twice = next(c for c in self.declared if self.declared.count(c) > 1)
            raise DataError(f"{name}: the class name '{twice}' occurs twice.")
        if self.declared is not None and self.given is not None and set(self.declared) != set(self.given):
            raise DataError(_difference(name, self.declared, self.given))

    def encode(self, columns: Mapping[str, Sequence[Any]], may_be_unknown: str | None = None) -> "Coded":
        """Codes of each column, (N,) int64, and the class names.

        columns: name -> one value per row. may_be_unknown: the column in which -1 says that no class is right.
        """
        values = {
            column: [as_class_value(v, row, column, self.name) for row, v in enumerate(given)]
            for column, given in columns.items()
        }
        codes = {}
        names = self.given or self.declared
        if names is None:
            refuse_too_many(next(iter(values.values())), self.name, next(iter(values)))
            known = [v for c, vs in values.items() for v in vs if not (c == may_be_unknown and v == -1)]
            names = infer_names(known, self.name, next(iter(columns)))
        for column, rows in values.items():
            lookup = self._lookup(rows, names)
            if column == may_be_unknown:
                lookup[-1] = -1
            missing = next((v for v in rows if v not in lookup), None)
            if missing is not None:
                raise DataError(
                    f"{self.name}: the label {missing!r} in column '{column}', row {rows.index(missing)}, is none of "
                    f"the {len(names)} classes: {_listing(names)}."
                )
            codes[column] = torch.tensor([lookup[v] for v in rows], dtype=torch.int64)
        return Coded(codes, names)

    def _lookup(self, values: Sequence[int | str], names: tuple[str, ...]) -> dict[Any, int]:
        position = {n: i for i, n in enumerate(names)}
        lookup: dict[Any, int] = {**position}
        if self.declared is not None:
            return lookup | {i: position[n] for i, n in enumerate(self.declared)}
        numeric = all(n.lstrip("-").isdigit() for n in names)
        return lookup | ({int(n): i for n, i in position.items()} if numeric else dict(enumerate(range(len(names)))))


class Coded:
    """codes: column -> (N,) int64. names: the classes."""

    def __init__(self, codes: dict[str, Tensor], names: tuple[str, ...]):
        self.codes, self.names = codes, names


def _difference(name: str, here: Sequence[str], there: Sequence[str]) -> str:
    extra = [c for c in here if c not in set(there)]
    missing = [c for c in there if c not in set(here)]
    parts = []
    if extra:
        parts.append(f"only here: {_listing(extra)}")
    if missing:
        parts.append(f"only in the training set: {_listing(missing)}")
    return f"{name}: the classes differ from those of the training set ({'; '.join(parts)})."


def _listing(names: Sequence[str]) -> str:
    return ", ".join(names[:8]) + (f" and {len(names) - 8} more" if len(names) > 8 else "")


def _columns(names: Sequence[str]) -> str:
    """All names, or the first and the last ones: labels are often the last column of many."""
    if len(names) <= 20:
        return ", ".join(names)
    return f"{', '.join(names[:10])}, {len(names) - 15} more, {', '.join(names[-5:])}"
