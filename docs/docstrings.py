"""Docstrings are plain text with indented formulas; here they become markdown that shows the same characters.

A griffe extension for mkdocstrings, and the function it shares with `generate.py`.
"""

import inspect
import re
from itertools import zip_longest
from typing import Any

import griffe

ROOM = 105
"""Docstrings are filled up to 120 columns, less their indentation and the length of a word."""


def literal(text: str) -> str:
    """Plain text as markdown that shows the same characters; text between backticks stays code."""
    parts = re.split(r"(`[^`\n]*`)", text)
    return "".join(part if part.startswith("`") else _escape(part) for part in parts)


def _escape(text: str) -> str:
    return re.sub(r"([\\*_\[\]#])", r"\\\1", text.replace("&", "&amp;").replace("<", "&lt;"))


def markdown(docstring: str) -> str:
    """A docstring as markdown: indented lines become code, lines ended early become paragraphs, all else stays text."""
    blocks = re.split(r"\n[ \t]*\n", inspect.cleandoc(docstring))
    return "\n\n".join(_block(block) for block in blocks)


def _block(block: str) -> str:
    out: list[str] = []
    code: list[str] = []
    lines = block.splitlines()
    for line, following in zip_longest(lines, lines[1:], fillvalue=""):
        if line.startswith("    "):
            code.append(line[4:])
            if not following.startswith("    "):
                out += ["", "```text", *code, "```", ""]
                code = []
            continue
        out.append(literal(line))
        if _ended_early(line, following):
            out.append("")
    return "\n".join(out).strip()


def _ended_early(line: str, following: str) -> bool:
    """Whether a sentence ends a line that had room for the next word, so that the break was meant."""
    word = following.split(" ", 1)[0]
    return line.endswith((".", ":", ";")) and len(line) + len(word) < ROOM


class PlainDocstrings(griffe.Extension):
    """Turn the docstring of everything that is loaded into markdown."""

    def on_module_members(self, *, mod: griffe.Module, **kwargs: Any) -> None:
        if mod.exports is not None:
            # the package computes the names it exports, which reading its source cannot follow
            mod.exports = [name for name in mod.exports if isinstance(name, str)]

    def on_object(self, *, obj: griffe.Object, **kwargs: Any) -> None:
        if obj.docstring is not None:
            obj.docstring.value = markdown(obj.docstring.value)
