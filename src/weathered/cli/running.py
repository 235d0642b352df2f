"""What train, compare and report do once their options are a recipe."""

import json
import shlex
import sys
from contextlib import nullcontext
from pathlib import Path
from typing import Any, cast

import typer
from rich.console import Console
from rich.table import Table

from weathered.assemble import build_parts, resolve
from weathered.cli.progress import training_progress
from weathered.comparison import comparison_of, read_comparison
from weathered.core.errors import SpecError
from weathered.data.prepare import prepare
from weathered.recipe import Recipe
from weathered.report.collect import report_on_comparison
from weathered.run_record import changed_code, code_of
from weathered.stats import interval_text
from weathered.store import RunFolder, find_runs
from weathered.training import build_run, resolved_head, train
from weathered.unread import unread_by_all, unread_data


def dry(recipe: Recipe, as_json: bool) -> None:
    """Print the resolved recipe and whether its parts fit together; nothing is trained or written."""
    splits = prepare(recipe)
    run = build_run(recipe, splits)
    head = resolved_head(recipe, build_parts(resolve(recipe.use), splits.train))
    tree = {"hash": recipe.hash, **recipe.canonical(), "head": head}
    facts = {
        "train": len(splits.train),
        "test": len(splits.test),
        "classes": dict(zip(splits.train.class_names, splits.train.class_counts.tolist(), strict=True)),
        "notes": [*splits.train.notes, *unread_data(run), *recipe.idle_tricks()],
    }
    verdict = "compatible"
    if as_json:
        typer.echo(
            json.dumps({"recipe": tree, "data": facts, "facts": sorted(run.facts), "verdict": verdict}, indent=2)
        )
        return
    typer.echo(json.dumps(tree, indent=2))
    typer.echo(f"data: {facts['train']} training and {facts['test']} test samples")
    typer.echo("classes: " + ", ".join(f"{name} ({count})" for name, count in facts["classes"].items()))
    for note in facts["notes"]:
        typer.echo(f"note: {note}")
    typer.echo(f"facts: {', '.join(sorted(run.facts))}")
    typer.echo(f"verdict: {verdict}; {run.total_steps} steps of {run.batch_size} samples")


def train_one(
    recipe: Recipe, out: Path, resume: bool, as_json: bool, accelerator: str = "auto", devices: int = 1, nodes: int = 1
) -> None:
    """Train a recipe with a progress bar and print its results."""
    from lightning_fabric import Fabric

    strategy = "ddp" if devices * nodes > 1 else "auto"
    precision = cast(Any, recipe.applied.settings.precision)
    try:
        fabric = Fabric(
            accelerator=accelerator, strategy=strategy, devices=devices, num_nodes=nodes, precision=precision
        )
    except (RuntimeError, ValueError) as error:
        raise SpecError(f"--accelerator {accelerator} --devices {devices}: {error}") from error
    fabric.launch()
    finished = RunFolder(out / recipe.hash).state == "done"
    with training_progress() if fabric.is_global_zero else nullcontext((None, None)) as (observe, watch):
        folder = train(recipe, out, observer=observe, watch=watch, fabric=fabric, resume=resume)
    if not fabric.is_global_zero:
        return
    record = folder.read_json("run.json")
    notes = [*record["data_notes"], *unread_by_all([record]), *record.get("idle", [])]
    if as_json:
        shown = {"run": str(folder.path), "results": record["results"], "notes": notes}
        if (episodes := folder.read_json("audit.json").get("few-shot")) is not None:
            shown["few-shot"] = episodes["tables"]
        typer.echo(json.dumps(shown, indent=2))
        return
    if finished:
        changed = changed_code(record, code_of(recipe))
        other = f", from other code ({', '.join(changed)} changed since)" if changed else ""
        typer.echo(f"note: this run was finished before; its results are shown again{other}.", err=True)
    for note in notes:
        typer.echo(f"note: {note}", err=True)
    table = Table(box=None, header_style="bold", pad_edge=False)
    for column in ("figure", "value", "95 % interval", "n"):
        table.add_column(column)
    for name, value in record["results"].items():
        table.add_row(name, f"{value['value']:.4f}", interval_text(value["low"], value["high"]), str(value["n"]))
    Console().print(table)
    for shown in _tables_of_episodes(folder):
        Console().print(shown)
    typer.echo(f"run: {folder.path}")


def _tables_of_episodes(folder: RunFolder) -> list[Table]:
    """The tables of methods on the same episodes, for runs that have them."""
    tables = []
    for found in folder.read_json("audit.json").get("few-shot", {}).get("tables", ()):
        table = Table(box=None, header_style="bold", pad_edge=False, title=found["title"], title_justify="left")
        for column in found["columns"]:
            table.add_column(column)
        for row in found["rows"]:
            table.add_row(*(f"{cell:.4f}" if isinstance(cell, float) else str(cell) for cell in row))
        tables.append(table)
    return tables


def report_on(paths: list[Path], out: Path, as_json: bool) -> None:
    """Write a report on run folders, or on the comparison that a folder holds."""
    comparisons = [path for path in paths if (path / "comparison.json").exists()]
    if len(comparisons) > 1 or (comparisons and len(paths) > 1):
        raise SpecError("a report covers one comparison, or runs; give one comparison folder, or run folders.")
    result = read_comparison(comparisons[0]) if comparisons else comparison_of(find_runs(paths), out.parent)
    path = report_on_comparison(result, out, [command_line()])
    for note in result.notes():
        typer.echo(f"note: {note}", err=True)
    typer.echo(json.dumps({"report": str(path)}) if as_json else f"report: {path}")


def command_line() -> str:
    """The command that is running, as a user would type it."""
    return shlex.join(["weathered", *sys.argv[1:]])
