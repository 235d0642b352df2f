"""`weathered advise`: from a finished run to a command that decides, and what it refuses."""

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner

from weathered.cli import app
from weathered.core.errors import DataError, SpecError
from weathered.recipe import DataOptions, Recipe
from weathered.training import train


def test_a_run_is_audited_once_and_advised_on(tmp_path):
    recipe = Recipe(data=DataOptions(make=("symmetric:rate=0.3",), limit=300), model="mlp:width=32")
    run = train(recipe.with_settings(epochs=6, batch_size=50), tmp_path).path
    call = CliRunner().invoke(app, ["advise", str(run), "--folds", "2", "--json"], catch_exceptions=False)
    tree = json.loads(call.stdout)
    assert tree["run"] == str(run)
    assert tree["situation"]["rows"] == 300
    assert len(tree["advice"]) == 3
    assert "labels" in json.loads((run / "audit.json").read_text())
    before = {path: path.stat().st_mtime_ns for path in Path(run, "labels").rglob("*") if path.is_file()}
    again = CliRunner().invoke(app, ["advise", str(run)], catch_exceptions=False)
    assert tree["command"] in again.stdout
    assert before == {path: path.stat().st_mtime_ns for path in Path(run, "labels").rglob("*") if path.is_file()}
    with pytest.raises(SpecError, match="is a finished run, so options of a recipe would change nothing"):
        CliRunner().invoke(app, ["advise", str(run), "--model", "mlp"], catch_exceptions=False)
    with pytest.raises(DataError, match="there is no data source 'digit'"):
        CliRunner().invoke(app, ["advise", "digit"], catch_exceptions=False)
