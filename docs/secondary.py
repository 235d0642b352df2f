"""What a claim measured beside its metric, as markdown: a table for each, or one for all points of a curve."""

import re
from collections.abc import Callable, Sequence
from itertools import groupby
from typing import Any

from docstrings import literal
from rendering import table

Cells = Callable[[str, Sequence[float]], tuple[str, str]]
LEVEL = re.compile(r"\d+%")


def secondary(record: dict[str, Any], cells: Cells) -> list[str]:
    """Blocks for the secondary metrics of a ledger record; cells: mean and interval of a metric's values.

    Neighbours whose names differ by a percentage alone are points of one curve: a row for each, a column for each arm.
    """
    seeds, blocks = len(record["seeds"]), []
    for name, group in groupby(record.get("also", []), key=lambda found: LEVEL.sub("N%", found["metric"], count=1)):
        points = list(group)
        if len(points) == 1:
            found = points[0]
            rows = [(arm, *cells(found["metric"], values)) for arm, values in found["values"].items()]
            blocks.append(f"Measured beside it, without a verdict: {literal(found['metric'])}.")
            blocks.append(table(("arm", f"mean of {seeds} seeds", "95 % interval"), rows))
            continue
        arms = list(points[0]["values"])
        rows = [
            (_level(point["metric"]), *(cells(point["metric"], point["values"][arm])[0] for arm in arms))
            for point in points
        ]
        blocks.append(f"Measured beside it, without a verdict: {literal(name)}; means of {seeds} seeds.")
        blocks.append(table(("N", *arms), rows))
    return blocks


def _level(metric: str) -> str:
    found = LEVEL.search(metric)
    return found[0].replace("%", " %") if found else metric
