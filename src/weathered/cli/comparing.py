"""What compare does once its options are a recipe."""

import json
from collections.abc import Sequence
from pathlib import Path
from statistics import fmean
from typing import Any, cast

import typer
from rich.console import Console
from rich.table import Table

from weathered.arms import Arms, ablated, check_comparison, crossed, parse_arms, plan, refusals
from weathered.audit.result import plain
from weathered.cli.progress import counted_progress, sweep_progress
from weathered.cli.running import command_line
from weathered.comparison import CompareResult, compare
from weathered.core.errors import Incompatible, SpecError, WeatheredError
from weathered.recipe import Recipe
from weathered.report.collect import report_on_comparison
from weathered.report.text import seconds
from weathered.stats import interval_text
from weathered.sweep import Launcher


def arms_of(arms: str, others: str | None, ablate: bool = False) -> Arms:
    """The arms as written, crossed with others where there are any. ablate: also without each part, and it alone."""
    named = parse_arms(arms)
    named = named if others is None else crossed(named, parse_arms(others, "--with"))
    return ablated(named) if ablate else named


def audits_of(audits: str | None, limit: int | None) -> tuple[str, ...]:
    """The audits of every run as written. Raises SpecError for a limit without any."""
    names = () if audits is None else tuple(name.strip() for name in audits.split(","))
    if limit is not None and not names:
        raise SpecError("--audit-limit would do nothing without --audits.")
    return names


def dry_compare(
    recipe: Recipe,
    arms: Arms,
    seeds: int,
    crossing: bool,
    as_json: bool,
    baseline: str | None = None,
    metric: str | None = None,
    audits: Sequence[str] = (),
) -> None:
    """Print which arms fit together and why others do not; nothing is trained or written.

    Raises Incompatible if an arm is refused, unless arms were crossed or taken apart, where that is part of the answer.
    """
    _, asked = check_comparison(arms, range(seeds), baseline, metric, audits)
    refused = refusals(plan(recipe, arms, (0,)), recipe.data, asked)
    if as_json:
        verdicts = {name: str(refused[name]) if name in refused else "compatible" for name in arms}
        typer.echo(json.dumps({"arms": verdicts, "runs": seeds * (len(arms) - len(refused))}, indent=2))
    else:
        table = Table(box=None, header_style="bold", pad_edge=False)
        for heading in ("arm", "verdict"):
            table.add_column(heading, overflow="fold")
        for name in arms:
            table.add_row(name, str(refused.get(name, "compatible")))
        Console().print(table)
        typer.echo(f"{len(arms) - len(refused)} of {len(arms)} arms fit: {seeds * (len(arms) - len(refused))} runs")
    if refused and not crossing:
        raise Incompatible(f"{len(refused)} of {len(arms)} arms are refused: {', '.join(refused)}.")


def compare_arms(
    recipe: Recipe,
    arms: Arms,
    seeds: int,
    out: Path,
    report: Path | None,
    as_json: bool,
    *,
    baseline: str | None = None,
    metric: str | None = None,
    crossing: bool = False,
    audits: Sequence[str] = (),
    audit_limit: int | None = None,
    launcher: str = "local",
    workers: int | None = None,
) -> None:
    """Compare arms with a progress bar, print the ranking and write the report.

    crossing: arms that are refused are left out and named.
    """
    if report is not None and report.is_dir():
        raise SpecError(f"--report {report} is a folder; name a file, as in {report / 'report.html'}.")
    with sweep_progress() as watch, counted_progress("audits") as audit_watch:
        result = compare(
            recipe,
            arms,
            range(seeds),
            out,
            baseline=baseline,
            metric=metric,
            leave_out_refused=crossing,
            launcher=cast(Launcher, launcher),
            workers=workers,
            watcher=watch,
            audits=audits,
            audit_limit=audit_limit,
            audit_watch=audit_watch,
        )
    path = report_on_comparison(result, report or result.path / "report.html", [command_line()])
    if as_json:
        typer.echo(json.dumps({**plain(result.to_json()), "report": str(path)}, indent=2))
    else:
        console = Console()
        console.print(ranking_table(result))
        if (figures := figures_table(result)).row_count:
            console.print()
            console.print(figures)
        for name, reason in result.refused.items():
            typer.echo(f"left out: {name}: {reason}", err=True)
        for note in result.notes():
            typer.echo(f"note: {note}", err=True)
        for name, error in result.failed.items():
            typer.echo(f"failed: {out / name}: {error}", err=True)
        typer.echo(f"comparison: {result.path}")
        typer.echo(f"report: {path}")
    if result.failed:
        raise WeatheredError(f"{len(result.failed)} of the runs failed; the same command tries them again.")


SHOWN = (
    *("mean IoU", "accuracy", "balanced accuracy", "worst class accuracy", "worst class IoU"),
    *("head accuracy", "middle accuracy", "tail accuracy", "head IoU", "middle IoU", "tail IoU"),
    *("image to text recall at 1", "text to image recall at 1"),
    *("image to text recall at 5", "text to image recall at 5"),
    *("mean corruption accuracy", "worst group accuracy", "expected calibration error", "negative log likelihood"),
)
"""Figures that a terminal has room for; the report has all, with intervals."""


COLUMNS = 6
"""Arms beside each other."""


def figures_table(result: CompareResult) -> Table:
    """Means over seeds of what else was measured, one column for each of the best arms and the baseline."""
    table = Table(box=None, header_style="bold", pad_edge=False)
    ranking = [arm for rank, arm in enumerate(result.ranking()) if rank < COLUMNS or arm.name == result.baseline]
    for heading in ("figure", *(arm.name for arm in ranking)):
        table.add_column(heading, overflow="fold", justify="left" if heading == "figure" else "right")
    for name in SHOWN:
        if name != result.metric.name and any(name in arm.values for arm in ranking):
            means = (fmean(arm.values[name]) if name in arm.values else None for arm in ranking)
            table.add_row(name, *("" if mean is None else f"{mean:.4f}" for mean in means))
    table.caption = f"means over seeds{' of the best' if len(ranking) < len(result.arms) else ''}; the report has all"
    return table


def ranking_table(result: CompareResult) -> Table:
    """Arms from best to worst, with intervals over seeds and the paired test against the baseline."""
    table = Table(box=None, header_style="bold", pad_edge=False)
    metric = result.metric
    headings = ("arm", f"test {metric.name}", "95 % interval", f"difference to {result.baseline}", "p", "time/run")
    for heading in headings:
        table.add_column(heading, overflow="fold")
    for arm in result.ranking():
        estimate = plain(arm.estimate(metric)._asdict())
        against = result.against_baseline(arm)
        difference, p_value = "baseline", ""
        if arm.name != result.baseline:
            gap: dict[str, Any] = plain(against.difference._asdict())
            difference = f"{gap['value']:+.4f} {interval_text(gap['low'], gap['high'])}"
            p_value = "-" if gap["low"] is None else f"{against.p_value:.3g}"
        duration = seconds(sum(arm.seconds) / len(arm.seconds))
        interval = interval_text(estimate["low"], estimate["high"])
        table.add_row(arm.name, f"{estimate['value']:.4f}", interval, difference, p_value, duration)
    over = f"mean of {len(result.seeds)} seeds, paired t test over seeds" if len(result.seeds) > 1 else "one seed"
    direction = "" if metric.higher_is_better else ", lower is better"
    table.caption = f"{metric.name} after the last epoch{direction}, {over}"
    return table
