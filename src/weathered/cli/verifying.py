"""`weathered verify`: claims over seeds in a pool of processes, and the table of what they showed."""

import json
import multiprocessing
import os
from collections.abc import Sequence
from concurrent.futures import Future, ProcessPoolExecutor
from pathlib import Path
from typing import Any

import typer
from rich.console import Console
from rich.table import Table

from weathered.claim_source import package_digest
from weathered.cli.progress import plain_progress
from weathered.core.errors import WeatheredError
from weathered.core.worker import end_with_parent
from weathered.ledger import CLAIMS
from weathered.report.text import seconds
from weathered.stats import interval_text
from weathered.verification import SeedResult, conclude, load_claims, measure_one, write_record


def verify_claims(names: list[str], seeds: int | None, folder: Path | None, workers: int | None, as_json: bool) -> None:
    """Measure the named claims, or all, and write each record as soon as its seeds are done.

    seeds: how many, from 0; by default each claim's own number. A claim of which a seed fails keeps its old record.
    Raises WeatheredError at the end if any failed.
    """
    source = folder or CLAIMS
    claims = load_claims(names, source)
    numbers = {slug: range(seeds or claim.seeds) for slug, claim in claims.items()}
    total = sum(map(len, numbers.values()))
    cores = os.cpu_count() or 1
    workers = min(workers or cores, total)
    threads = max(1, cores // workers)
    package = package_digest()
    records: list[dict[str, Any]] = []
    failed: dict[str, str] = {}
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(workers, context, end_with_parent) as pool, plain_progress("claims", total) as advance:
        futures = {
            slug: [
                pool.submit(measure_one, str(source / f"{slug.replace('-', '_')}.py"), seed, threads, claim.digest)
                for seed in numbers[slug]
            ]
            for slug, claim in claims.items()
        }
        for group in futures.values():
            for future in group:
                future.add_done_callback(lambda _: advance())
        for slug, group in futures.items():
            try:
                record = conclude(claims[slug], numbers[slug], _results(numbers[slug], group), threads, package)
            except WeatheredError as error:
                failed[slug] = str(error)
                continue
            write_record(record, folder / "ledger" if folder else None)
            records.append(record)
    if as_json:
        errors = [{"slug": slug, "error": error} for slug, error in failed.items()]
        typer.echo(json.dumps([*records, *errors], indent=2))
    elif records:
        Console().print(ledger_table(records))
    for slug, error in failed.items():
        typer.echo(f"failed: {slug}: {error}", err=True)
    if failed:
        raise WeatheredError(f"{len(failed)} of {len(claims)} claims failed; their ledger files are as they were.")


def _results(seeds: Sequence[int], group: Sequence[Future[SeedResult]]) -> list[SeedResult]:
    """The result of each seed. Raises WeatheredError naming the first that failed; those not begun are dropped."""
    found = []
    for seed, future in zip(seeds, group, strict=True):
        try:
            found.append(future.result())
        except Exception as error:
            # a claim is anybody's code: whatever it raises, the other claims go on
            for other in group:
                other.cancel()
            raise WeatheredError(f"seed {seed}: {type(error).__name__}: {error}") from error
    return found


def ledger_table(records: list[dict[str, Any]]) -> Table:
    """Records as a table: what was compared, by how much it differs, and the verdict."""
    table = Table(box=None, header_style="bold", pad_edge=False)
    for heading in ("claim", "compared", "metric", "difference", "95 % interval", "seeds", "time", "verdict"):
        table.add_column(heading, overflow="fold")
    for record in records:
        low, high = record["interval"]
        table.add_row(
            record["slug"],
            f"{record['main']} - {record['baseline']}",
            record["metric"].partition(",")[0],
            f"{record['difference']:+.4f}",
            interval_text(low, high, "+.4f"),
            str(len(record["seeds"])),
            seconds(record["seconds"]),
            record["verdict"],
        )
    return table
