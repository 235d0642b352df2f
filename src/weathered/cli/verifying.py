"""`weathered verify`: claims over seeds in a pool of processes, and the table of what they showed."""

import json
import multiprocessing
import os
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

import typer
from rich.console import Console
from rich.table import Table

from weathered.cli.progress import plain_progress
from weathered.ledger import CLAIMS
from weathered.verification import conclude, load_claims, measure_one, write_record


def verify_claims(names: list[str], seeds: int, folder: Path | None, workers: int | None, as_json: bool) -> None:
    """Measure the named claims, or all, and write each record as soon as its seeds are done."""
    source = folder or CLAIMS
    claims = load_claims(names, source)
    cores = os.cpu_count() or 1
    workers = min(workers or cores, len(claims) * seeds)
    threads = max(1, cores // workers)
    records: list[dict[str, Any]] = []
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(workers, context) as pool, plain_progress("claims", len(claims) * seeds) as advance:
        futures = {
            slug: [
                pool.submit(measure_one, str(source / f"{slug.replace('-', '_')}.py"), seed, threads)
                for seed in range(seeds)
            ]
            for slug in claims
        }
        for group in futures.values():
            for future in group:
                future.add_done_callback(lambda _: advance())
        for slug, group in futures.items():
            record = conclude(claims[slug], range(seeds), [future.result() for future in group])
            write_record(record, folder / "ledger" if folder else None)
            records.append(record)
    if as_json:
        typer.echo(json.dumps(records, indent=2))
        return
    Console().print(ledger_table(records))


def ledger_table(records: list[dict[str, Any]]) -> Table:
    """Records as a table: what was compared, by how much it differs, and the verdict."""
    table = Table(box=None, header_style="bold", pad_edge=False)
    for heading in ("claim", "compared", "metric", "difference", "95 % interval", "seeds", "s", "verdict"):
        table.add_column(heading, overflow="fold")
    for record in records:
        low, high = record["interval"]
        table.add_row(
            record["slug"],
            f"{record['main']} - {record['baseline']}",
            record["metric"].partition(",")[0],
            f"{record['difference']:+.4f}",
            f"[{low:+.4f}, {high:+.4f}]",
            str(len(record["seeds"])),
            f"{record['seconds']:.0f}",
            record["verdict"],
        )
    return table
