"""What the documentation shows: Python blocks run and print what they say, commands are commands."""

import io
from contextlib import redirect_stdout
from pathlib import Path

import pytest
import torch
from pages import ROOT, blocks, check_command, commands, recipes

from weathered.assemble import resolve
from weathered.recipe import Recipe

PAGES = sorted(
    path
    for path in [ROOT / "README.md", *(ROOT / "docs").rglob("*.md")]
    if "methods" not in path.relative_to(ROOT).parts and path.name != "claims.md"
)
"""All pages written by hand, notes included."""


def name(path: Path) -> str:
    return str(path.relative_to(ROOT))


def languages(path: Path) -> set[str]:
    return {info for info, *_ in blocks(path)}


@pytest.mark.parametrize("path", [p for p in PAGES if "python" in languages(p)], ids=name)
def test_python_blocks_run_in_order_and_print_what_follows_them(path, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    names: dict[str, object] = {"__name__": "snippet"}
    printed = None
    with torch.random.fork_rng():
        torch.manual_seed(0)
        for info, text, line, adjacent in blocks(path):
            if info == "python":
                stream = io.StringIO()
                with redirect_stdout(stream):
                    exec(compile("\n" * (line - 1) + text, str(path), "exec"), names)
                printed = stream.getvalue()
            elif info == "text" and adjacent and printed is not None:
                assert printed == text, f"{path.name}:{line} shows another output than the block above it prints"
            else:
                printed = None


@pytest.mark.parametrize("path", PAGES, ids=name)
def test_blocks_name_a_language_that_is_checked(path):
    assert languages(path) <= {"python", "text", "bash", "sh", "toml", ""}


def test_recipes_are_recipes():
    shown = recipes(PAGES)
    assert shown
    for tree in shown:
        recipe = Recipe.from_tree(tree)
        resolve((*recipe.use, *recipe.data.make))


def test_commands_exist():
    rows = commands(PAGES)
    assert len(rows) > 10
    for row in sorted(rows):
        check_command(row)
