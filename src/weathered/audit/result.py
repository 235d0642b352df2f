"""What an audit returns: numbers with intervals, tables, charts as data, values per sample, and plain notes."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np

from weathered.stats import Estimate


@dataclass(frozen=True)
class Series:
    """One line or one group of bars: y over x, with intervals where they are known."""

    name: str
    x: Sequence[float | str]
    y: Sequence[float]
    low: Sequence[float] | None = None
    high: Sequence[float] | None = None


@dataclass(frozen=True)
class Chart:
    """A chart as data, drawn by the report. description: the text alternative, one or two sentences."""

    title: str
    kind: Literal["line", "bar"]
    x_label: str
    y_label: str
    series: tuple[Series, ...]
    description: str
    diagonal: bool = False


@dataclass(frozen=True)
class Table:
    """Column names and rows; numbers stay numbers, so that the report can sort them."""

    title: str
    columns: tuple[str, ...]
    rows: tuple[tuple[str | float | int, ...], ...]


@dataclass(frozen=True)
class AuditResult:
    """One audit of one model on one data set.

    audit: its slug. summary: name -> estimate, the most important first. higher_is_better: name -> direction.
    per_sample: name -> (N,) array, aligned with the rows of the test data. figures: charts. notes: sentences that
    say what the numbers mean and do not mean.
    """

    audit: str
    summary: Mapping[str, Estimate]
    higher_is_better: Mapping[str, bool]
    tables: tuple[Table, ...] = ()
    figures: tuple[Chart, ...] = ()
    per_sample: Mapping[str, np.ndarray] = field(default_factory=dict)
    notes: tuple[str, ...] = ()

    def to_json(self) -> dict[str, Any]:
        """Everything except `per_sample`, with infinities as None, ready for json.dumps."""
        tree = {
            "audit": self.audit,
            "summary": {
                name: {**estimate._asdict(), "higher_is_better": self.higher_is_better[name]}
                for name, estimate in self.summary.items()
            },
            "tables": [{"title": t.title, "columns": t.columns, "rows": t.rows} for t in self.tables],
            "figures": [{**vars(c), "series": [vars(s) for s in c.series]} for c in self.figures],
            "notes": self.notes,
        }
        return plain(tree)


def quoted(names: Sequence[str], most: int = 5) -> str:
    """Names for a sentence: 'a', 'b', ... with dots where there are more than `most`."""
    return ", ".join(f"'{name}'" for name in names[:most]) + (", ..." if len(names) > most else "")


def plain(value: Any) -> Any:
    """A tree of numbers, text, tuples and arrays as JSON can hold it; NaN and infinity become None."""
    if isinstance(value, Mapping):
        return {str(k): plain(v) for k, v in value.items()}
    if isinstance(value, (list, tuple)):
        return [plain(v) for v in value]
    if isinstance(value, np.ndarray):
        return plain(value.tolist())
    if isinstance(value, (np.floating, np.integer)):
        value = value.item()
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value
