"""`weathered list` and `weathered show`: what there is, without importing torch for the list."""

import json
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.table import Table

from weathered.registry import ENTRIES, PROBLEMS


def list_methods(
    problem: Annotated[str | None, typer.Option(help="Only methods for this problem, as in noisy-labels.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """List all methods."""
    from weathered.core.errors import SpecError
    from weathered.core.spec import near

    if problem is not None and problem not in PROBLEMS:
        raise SpecError(f"no problem '{problem}'.{near(problem, PROBLEMS)} There are: {', '.join(PROBLEMS)}.")
    entries = [entry for entry in ENTRIES if problem is None or problem in entry.problems]
    if as_json:
        fields = ("slug", "slot", "problems", "paper", "summary")
        rows = [{field: getattr(entry, field) for field in fields} for entry in entries]
        typer.echo(json.dumps(rows, indent=2))
        return
    table = Table(box=None, header_style="bold", pad_edge=False)
    for column in ("method", "slot", "what it does, and for which problem"):
        table.add_column(column, overflow="fold", no_wrap=column == "method")
    for entry in entries:
        problems = f" [dim]{', '.join(entry.problems)}[/dim]" if entry.problems else ""
        table.add_row(entry.slug, entry.slot, entry.summary + problems)
    Console().print(table)


def show(
    method: Annotated[str, typer.Argument(help="A method's name, as 'weathered list' prints it.")],
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
    preview: Annotated[
        Path | None, typer.Option(help="Write a picture of what a transform does, as in cutmix.png; NAME:option=value.")
    ] = None,
    data: Annotated[str, typer.Option(help="The images of the preview.")] = "digits",
) -> None:
    """Show what a method does, needs, breaks and was measured to do, and how to call it in your own loop."""
    if preview is not None:
        from weathered.cli.preview import preview as draw

        path = draw(method, data, preview)
        typer.echo(json.dumps({"preview": str(path)}) if as_json else f"preview: {path}")
        return
    from weathered.cli.describe import describe

    description = describe(method)
    if as_json:
        typer.echo(json.dumps(description, indent=2))
        return
    console = Console(highlight=False)
    console.print(f"[bold]{description['slug']}[/bold]  {description['summary']}")
    console.print(f"source: {description['paper']}    slot: {description['slot']}")
    if description["problems"]:
        console.print(f"for: {', '.join(description['problems'])}")
    for heading in ("options", "needs", "breaks"):
        if description[heading]:
            console.print(f"\n[bold]{heading}[/bold]")
            for name, text in description[heading].items():
                console.print(f"  {name}: {text}", markup=False)
    if description["honours"]:
        console.print(f"\n[bold]honours[/bold] the slots {', '.join(description['honours'])}")
    if description["documentation"]:
        console.print("\n" + reflowed(description["documentation"]), markup=False)
    console.print("\n[bold]measured[/bold] " + description["measured"])
    console.print("\n[bold]in your own loop[/bold]\n")
    # lines that a terminal wraps could not be copied
    typer.echo(description["alone"], nl=False)


def reflowed(text: str) -> str:
    """The text with lines joined that were broken only because they were full, so that a terminal wraps them once."""
    lines: list[str] = []
    full = False
    for line in text.splitlines():
        if full and line and not line[0].isspace():
            lines[-1] += " " + line
        else:
            lines.append(line)
        full = len(line) >= FULL
    return "\n".join(lines)


FULL = 90
"""Characters of a line that was broken for its length, where lines have up to 120."""
