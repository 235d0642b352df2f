"""`weathered audit`: measure a finished run, one audit after another, each kept as soon as it is done."""

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import typer
from rich.console import Console
from rich.table import Table

from weathered.audit.kept import audit_and_keep, check_audits, kept_audits
from weathered.audit.labels.audited_labels import labels_folder
from weathered.audit.labels.of_run import LabelOptions
from weathered.audit.options import AuditOptions
from weathered.audit.over_views import OVER_VIEWS, check_views
from weathered.audit.result import AuditResult
from weathered.audit.run_audits import default_audits
from weathered.cli.audit_options import Given, audit_options, check_read
from weathered.cli.progress import audit_progress
from weathered.core.errors import SpecError
from weathered.loaded_run import load_run
from weathered.stats import interval_text


def audit_runs(
    paths: Sequence[Path],
    names: Sequence[str] | None,
    given: Given,
    limit: int | None = None,
    labels: LabelOptions | None = None,
    views: Sequence[str] = (),
    as_json: bool = False,
) -> None:
    """Audit one run, or with several runs the ensemble of their scores in the ood audit.

    given: what each audit is told, see `audit_options`. views: names of what is averaged over; they have figures of
    their own beside those of the images alone.
    """
    wanted = list(names or ())
    check_audits(wanted)
    check_views(views, wanted)
    if len({path.resolve() for path in paths}) < len(paths):
        raise SpecError("a run is named twice; an ensemble needs several.")
    runs = [load_run(path) for path in paths]
    if names is None:
        wanted = [name for name in default_audits(runs[0]) if not views or name in OVER_VIEWS]
    check_read(wanted, given)
    asked = audit_options(given)
    if len(runs) > 1 and "ood" not in wanted:
        raise SpecError("several runs are combined by the audit ood alone; name one run, or add --audits ood.")
    folder = runs[0].folder
    path = folder.path / "audit.json"
    results: list[AuditResult] = []
    fuller_kept: dict[str, int] = {}
    with audit_progress(len(wanted)) as (advance, show):
        options = replace(
            asked, limit=limit, labels=labels or LabelOptions(), progress=show, views=tuple(views), announce=_announce
        )
        for name in wanted:
            result, fuller = audit_and_keep(runs, name, options)
            results.append(result)
            if fuller is not None:
                fuller_kept[name] = fuller
            advance()
    if as_json:
        typer.echo(json.dumps({result.audit: result.to_json() for result in results}, indent=2))
        return
    console = Console()
    for result in results:
        console.print(summary_table(result))
        for note in result.notes:
            console.print(f"  {note}", style="dim", markup=False)
        console.print()
    if "labels" in wanted:
        typer.echo(f"labels: {labels_folder(folder.path)}; 'weathered review {folder.path}' shows the suspected ones")
    for name, size in fuller_kept.items():
        typer.echo(f"{name}: the run keeps its earlier figures on {size} samples, more than --limit {limit} allows")
    typer.echo(f"audits: {path}")


def _announce(sentence: str) -> None:
    typer.echo(sentence, err=True)


def audit_quietly(path: Path, labels: LabelOptions) -> dict[str, Any]:
    """Make the label audit of a run under a bar, keep it beside the run, and return all that is kept there."""
    run = load_run(path)
    with audit_progress(1) as (advance, show):
        audit_and_keep([run], "labels", AuditOptions(labels=labels, progress=show))
        advance()
    return kept_audits(run.folder)


def summary_table(result: AuditResult) -> Table:
    """The summary of one audit with n and interval for each figure."""
    table = Table(box=None, header_style="bold", pad_edge=False, title=result.audit, title_justify="left")
    for heading in ("figure", "value", "95 % interval", "n", "better"):
        table.add_column(heading, overflow="fold")
    for name, estimate in result.summary.items():
        better = "higher" if result.higher_is_better[name] else "lower"
        interval = interval_text(estimate.low, estimate.high)
        table.add_row(name, f"{estimate.value:.4f}", interval, str(estimate.n), better)
    return table
