"""Digests of what a claim's figures were computed with: the code of the claim, without its words, and the package."""

import ast
import hashlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

WORDS = ("SENTENCE", "DATA", "METRIC", "ALSO")
"""Constants of a claim that describe its figures."""


def claim_digest(path: Path, words: Sequence[str]) -> str:
    """Sixteen digits for the code of a claim and of what it takes from the files beside it.

    words: strings that describe the figures. They count for nothing wherever they stand, nor do docstrings, comments,
    layout, and the module of this package from which a name is imported.
    """
    imports, code = set(), []
    for statement in _statements(path, None):
        if isinstance(statement, ast.Import | ast.ImportFrom):
            imports.add(_import(statement))
        elif not _describes(statement):
            code.append(_dump(statement, words))
    return hashlib.sha256("\n".join([*sorted(imports), *code]).encode()).hexdigest()[:16]


def package_digest(folder: Path = Path(__file__).parent) -> str:
    """Sixteen digits for all Python files of a package, by default of this one."""
    digest = hashlib.sha256()
    for name in sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*.py")):
        digest.update(name.encode() + b"\0" + hashlib.sha256((folder / name).read_bytes()).digest())
    return digest.hexdigest()[:16]


def _statements(path: Path, wanted: set[str] | None) -> list[ast.stmt]:
    """The statements of a file, or those behind the wanted names, and those behind what it imports from neighbours."""
    body = [single for statement in ast.parse(path.read_text()).body for single in _one_by_one(statement)]
    found = body if wanted is None else _behind(body, wanted)
    for statement in list(found):
        if isinstance(statement, ast.ImportFrom):
            beside, names = f"{statement.module}.py", {alias.name for alias in statement.names}
        elif isinstance(statement, ast.Import):
            beside, names = f"{statement.names[0].name}.py", None
        else:
            continue
        if path.with_name(beside).is_file():
            found += _statements(path.with_name(beside), names)
    return found


def _one_by_one(statement: ast.stmt) -> Iterator[ast.stmt]:
    """An import of several names as one import for each, any other statement as it is."""
    if isinstance(statement, ast.ImportFrom):
        yield from (ast.ImportFrom(statement.module, [alias], statement.level) for alias in statement.names)
    elif isinstance(statement, ast.Import):
        yield from (ast.Import([alias]) for alias in statement.names)
    else:
        yield statement


def _behind(body: list[ast.stmt], wanted: set[str]) -> list[ast.stmt]:
    """The statements that define the wanted names or what these use, and those that define nothing."""
    taken = [not _defined(statement) for statement in body]
    names, grown = set(wanted), True
    while grown:
        grown = False
        for i, statement in enumerate(body):
            if not taken[i] and _defined(statement) & names:
                names |= {node.id for node in ast.walk(statement) if isinstance(node, ast.Name)}
                taken[i] = grown = True
    return [statement for statement, take in zip(body, taken, strict=True) if take]


def _defined(statement: ast.stmt) -> set[str]:
    if isinstance(statement, ast.Import | ast.ImportFrom):
        return {alias.asname or alias.name.partition(".")[0] for alias in statement.names}
    if isinstance(statement, ast.FunctionDef | ast.ClassDef):
        return {statement.name}
    return {node.id for node in ast.walk(statement) if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store)}


def _import(statement: ast.Import | ast.ImportFrom) -> str:
    alias = statement.names[0]
    module = statement.module or "" if isinstance(statement, ast.ImportFrom) else ""
    return f"{'' if module.partition('.')[0] == 'weathered' else module} {alias.name} {alias.asname or ''}"


def _describes(statement: ast.stmt) -> bool:
    """Whether it assigns words, or is a string by itself."""
    words = isinstance(statement, ast.Assign) and getattr(statement.targets[0], "id", "") in WORDS
    return words or _is_text(statement)


def _dump(node: Any, words: Sequence[str]) -> str:
    """A syntax tree as text that no version of Python changes: what is absent or empty is left out."""
    if isinstance(node, list):
        return f"[{', '.join(_dump(item, words) for item in node if not _is_text(item))}]"
    if isinstance(node, ast.Constant):
        return f"word {words.index(node.value)}" if node.value in words else repr(node.value)
    if not isinstance(node, ast.AST):
        return repr(node)
    fields = [
        f"{name}={_dump(value, words)}"
        for name, value in ast.iter_fields(node)
        if value is not None and value != [] and name not in ("ctx", "kind", "type_comment")
    ]
    return f"{type(node).__name__}({', '.join(fields)})"


def _is_text(item: Any) -> bool:
    return isinstance(item, ast.Expr) and isinstance(item.value, ast.Constant) and isinstance(item.value.value, str)
