"""`weathered review`: a local web page on which people check suspected labels, and the export of their corrections."""

import json
from pathlib import Path
from typing import Annotated

import typer


def review(
    run: Annotated[Path, typer.Argument(help="Folder of a finished run that has a label audit.")],
    export: Annotated[
        Path | None, typer.Option("--export", help="Write the corrections to this .csv or .parquet file, and stop.")
    ] = None,
    everything: Annotated[bool, typer.Option("--all", help="Export the labels that were confirmed, too.")] = False,
    port: Annotated[
        int | None, typer.Option(min=1, max=65535, help="Port of the page; by default the one it had before.")
    ] = None,
    browser: Annotated[bool, typer.Option("--browser/--no-browser", help="Open the page in a browser.")] = True,
    as_json: Annotated[bool, typer.Option("--json", help="Print what was exported as JSON.")] = False,
) -> None:
    """Check suspected labels on a local web page, and export corrections."""
    if export is not None:
        export_corrections(run, export, everything, as_json)
    else:
        from weathered.core.errors import SpecError

        for given, name in ((everything, "--all"), (as_json, "--json")):
            if given:
                raise SpecError(f"{name} goes with --export FILE.")
        review_run(run, port, browser)


def review_run(run: Path, port: int | None, browser: bool) -> None:
    """Serve the review of a run until Ctrl-C, and say where the decisions are."""
    from weathered.review.opening import open_review, store_path
    from weathered.review.serve import serve

    serve(open_review(run), port, browser, lambda text: typer.echo(text))
    typer.echo(f"\ndecisions: {store_path(run)}")
    typer.echo(f"export them by: weathered review {run} --export corrections.csv")


def export_corrections(run: Path, out: Path, everything: bool, as_json: bool) -> None:
    """Write the corrections of a run's review to a file, without its data and without serving."""
    from weathered.core.errors import DataError
    from weathered.review.export import corrections, write_corrections
    from weathered.review.opening import open_store, read_audit, store_path
    from weathered.review.standing import Standing

    audited, names = read_audit(run)
    if not store_path(run).exists():
        raise DataError(f"{run} was not reviewed yet; begin by 'weathered review {run}'.")
    store, standing = open_store(run, audited, names), Standing(len(audited))
    standing.follow(store.since())
    store.close()
    found = corrections(audited, names, standing, keep=everything)
    write_corrections(out, found.lines)
    changed = sum(line.old != line.new for line in found.lines)
    if as_json:
        counts = {"corrections": changed, "confirmed": len(found.lines) - changed, "disputed": found.disputed}
        typer.echo(json.dumps({"file": str(out), **counts}))
        return
    kept = f", {len(found.lines) - changed} confirmed" if everything else ""
    typer.echo(f"corrections: {out} ({changed} changed{kept})")
    if found.disputed:
        typer.echo(
            f"{found.disputed} left out: their reviewers disagree and no label has more than half of them. "
            f"See 'disagreement' in weathered review {run}."
        )
