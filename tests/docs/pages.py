"""Fenced blocks of markdown pages, and a check of the commands in them."""

import re
import shlex
import tomllib
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import typer.main

from weathered.arms import parse_arms
from weathered.assemble import resolve
from weathered.audit.ood_model import build_scores
from weathered.cli import app
from weathered.cli.options import with_key
from weathered.core.spec import split_specs

ROOT = Path(__file__).parents[2]
OF_AUDITS = {"find-fix-retrain", "label-audit-aggregate", "label-audit-worst"}
"""Slugs of claims about what audits find, not about a method."""
CLAIMS = {path.stem.replace("_", "-") for path in (ROOT / "claims").glob("*.py") if path.stem != "common"}
CLAIMED = tuple(sorted(CLAIMS - OF_AUDITS))
"""Slugs of the methods that carry a claim."""
FENCE = re.compile(r"^(?P<indent> *)```(?P<info>[^\n]*)\n(?P<body>.*?)^(?P=indent)```$", re.M | re.S)
INCLUDE = re.compile(r"^--8<--\n(.+)\n--8<--$", re.M)
"""How a block includes a file. Written so that no formatter takes it for Python."""


def blocks(path: Path) -> Iterator[tuple[str, str, int, bool]]:
    """Language, text, first line, and whether only blank lines part it from the block before."""
    text, end = path.read_text(), 0
    for match in FENCE.finditer(text):
        line = text.count("\n", 0, match.start("body")) + 1
        body = "\n".join(row.removeprefix(match["indent"]) for row in match["body"].splitlines())
        yield match["info"], INCLUDE.sub(_content, body) + "\n", line, not text[end : match.start()].strip()
        end = match.end()


def _content(include: re.Match[str]) -> str:
    return (ROOT / include[1]).read_text().rstrip()


def recipes(paths: Iterable[Path]) -> list[dict[str, Any]]:
    """The TOML blocks of some pages, read."""
    return [tomllib.loads(text) for path in paths for info, text, *_ in blocks(path) if info == "toml"]


def commands(paths: Iterable[Path]) -> set[str]:
    """Every line that calls weathered in the bash blocks of some pages."""
    rows = set()
    for path in paths:
        for info, text, *_ in blocks(path):
            if info in ("bash", "sh"):
                rows |= {row for row in text.replace("\\\n", " ").splitlines() if row.startswith("weathered ")}
    return rows


def check_command(row: str) -> None:
    """Raise unless the command line has this command, and its options, methods, makers and scores exist."""
    group: Any = typer.main.get_command(app)
    name, *arguments = shlex.split(row, comments=True)[1:]
    given = group.commands[name].make_context(name, arguments).params
    resolve(given.get("use") or [])
    for methods in parse_arms(given["arms"]).values() if given.get("arms") else ():
        resolve(methods)
    if given.get("noise"):
        resolve([with_key(given["noise"], "rate")])
    if given.get("long_tail"):
        resolve([with_key(f"long-tail:{given['long_tail']}", "imbalance")])
    if given.get("scores"):
        build_scores(split_specs(given["scores"]))
