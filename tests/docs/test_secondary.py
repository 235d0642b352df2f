"""Secondary metrics of claims: one table for each, one for all points of a curve."""

import importlib
import sys

import pytest
from pages import ROOT


@pytest.fixture(scope="module")
def secondary():
    sys.path.insert(0, str(ROOT / "docs"))
    try:
        yield importlib.import_module("secondary").secondary
    finally:
        sys.path.remove(str(ROOT / "docs"))


def cells(metric, values):
    return f"{sum(values) / len(values):.2f}", metric


def record(*names):
    return {"seeds": [0, 1], "also": [{"metric": name, "values": {"a": [0.1, 0.3], "b": [0, 1]}} for name in names]}


def test_points_of_a_curve_are_rows_of_one_table(secondary):
    words, table = secondary(record("precision at 5% recall", "precision at 10% recall"), cells)
    assert words == "Measured beside it, without a verdict: precision at N% recall; means of 2 seeds."
    assert table.splitlines() == ["| N | a | b |", "|---|---|---|", "| 5 % | 0.20 | 0.50 |", "| 10 % | 0.20 | 0.50 |"]


def test_other_metrics_have_tables_of_their_own(secondary):
    blocks = secondary(record("seconds", "share of 50% kept"), cells)
    assert [block.count("\n") for block in blocks] == [0, 3, 0, 3]
    assert "| a | 0.20 | seconds |" in blocks[1]
    assert secondary({"seeds": [0]}, cells) == []
