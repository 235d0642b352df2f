"""`weathered show`: what it prints of every method can be copied and runs."""

import ast
import io
from contextlib import redirect_stdout

import pytest
import torch
from typer.testing import CliRunner

from weathered.cli import app
from weathered.cli.catalogue import reflowed
from weathered.cli.snippets import KINDS, snippet
from weathered.registry import ENTRIES

SLUGS = [entry.slug for entry in ENTRIES]


@pytest.mark.parametrize("slug", SLUGS)
def test_the_snippet_that_is_printed_runs(slug, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    shown = CliRunner().invoke(app, ["show", slug], env={"COLUMNS": "40", "TERM": "dumb"}).output
    code = shown.partition("in your own loop\n\n")[2]
    assert code == snippet(slug)
    with torch.random.fork_rng(), redirect_stdout(io.StringIO()):
        torch.manual_seed(0)
        exec(compile(code, slug, "exec"), {"__name__": "snippet"})


@pytest.mark.parametrize("entry", ENTRIES, ids=SLUGS)
def test_the_snippet_calls_the_method_itself_in_a_few_lines(entry):
    for slug in entry.parts or (entry.slug,):
        name = next(other.class_name for other in ENTRIES if other.slug == slug)
        calls = [node.func for node in ast.walk(ast.parse(snippet(entry.slug))) if isinstance(node, ast.Call)]
        assert any(isinstance(call, ast.Name) and call.id == name for call in calls)
        body = [line for line in snippet(slug).splitlines() if line and not line.startswith(("import", "from"))]
        assert len(body) <= 7
        assert all(len(line) <= 120 for line in body)


def test_full_lines_are_joined_and_others_stay():
    full = "x" * 100
    assert reflowed(f"{full}\n{full}\nend.\nalpha > 0: a shape.\n\n{full}\n    code") == (
        f"{full} {full} end.\nalpha > 0: a shape.\n\n{full}\n    code"
    )


def test_a_bundle_says_which_part_each_paragraph_is_about():
    shown = CliRunner().invoke(app, ["show", "bag-of-tricks"], env={"COLUMNS": "80", "TERM": "dumb"}).output
    assert "\nzero-gamma: The last scale" in shown


def test_every_slot_in_use_has_a_kind_of_snippet():
    assert {entry.slot for entry in ENTRIES} - {"bundle"} == set(KINDS)
