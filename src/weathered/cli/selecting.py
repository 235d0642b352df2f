"""`weathered select`: choose one of several finished runs, and say by which rule."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import typer
from rich.console import Console
from rich.table import Table

from weathered.cli.progress import counted_progress
from weathered.core.atomic import write_text
from weathered.core.errors import SpecError
from weathered.selection.of_runs import RunSelection, select_runs
from weathered.selection.ood_expansion_selection import ExpansionSelection
from weathered.store import find_runs


def select_and_print(paths: Sequence[Path], options: Mapping[str, Any], out: Path | None, as_json: bool) -> None:
    """Choose among the runs, print the table and the choice, and write the result where `out` says.

    options: of `ExpansionSelection`, those that were given. Raises SpecError for an option out of range.
    """
    if out is not None and out.is_dir():
        raise SpecError(f"--out {out} is a folder; name a file, as in {out / 'selection.json'}.")
    try:
        method = ExpansionSelection(**options)
    except ValueError as error:
        raise SpecError(f"{error}.") from error
    with counted_progress("runs") as watch:
        found = select_runs(find_runs(paths), method, watch)
    tree = found.to_json()
    if out is not None:
        write_text(out, json.dumps(tree, indent=2) + "\n")
    if as_json:
        typer.echo(json.dumps(tree, indent=2))
        return
    Console().print(selection_table(found))
    for note in found.notes:
        typer.echo(f"note: {note}", err=True)
    typer.echo(f"chosen: {tree['chosen']}, by {rule(found)}")
    same = tree["chosen"] == tree["most_accurate"]
    typer.echo(f"by accuracy alone: {'the same run' if same else tree['most_accurate']}")
    if out is not None:
        typer.echo(f"selection: {out}")


def rule(found: RunSelection) -> str:
    """The rule in words, as in `accuracy - 0.41 variation (r0 from the 9 runs within 0.1 of the best)`."""
    method, choice = found.method, found.choice
    near = int(choice.near.sum())
    source = (
        f"r0 from the {near} run{'s' * (near != 1)} within {method.window:g} of the best accuracy"
        if method.r0 == "auto"
        else "r0 as given"
    )
    return f"accuracy - {choice.r0:.4g} variation ({source})"


def selection_table(found: RunSelection) -> Table:
    """Runs from the choice down."""
    table = Table(box=None, header_style="bold", pad_edge=False)
    figures = ("accuracy", "variation", "informativeness", "features", "criterion")
    for heading in ("rank", "run", "methods", "seed", *figures):
        table.add_column(heading, overflow="fold", justify="left" if heading in ("run", "methods") else "right")
    for rank, i in enumerate(found.ranking, 1):
        path, use, seed, accuracy, stability = found.candidates[i]
        some = stability.informative > 0
        table.add_row(
            str(rank) if some else "-",
            Path(path).name,
            ", ".join(use) or "cross-entropy",
            str(seed),
            f"{accuracy:.4f}",
            f"{stability.mean_variation:.4f}" if some else "-",
            f"{stability.mean_informativeness:.4f}" if some else "-",
            f"{stability.informative} of {len(stability.variation)}",
            f"{float(found.choice.criterion[i]):.4f}" if some else "-",
        )
    table.caption = (
        f"means over features with an informativeness of {found.method.delta:g} or more; variation: lower is better"
    )
    return table
