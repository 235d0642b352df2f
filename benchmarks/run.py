"""Run all benchmarks, or those named on the command line, and write results.md and results.json beside this file."""

import importlib
import json
import platform
import sys
from importlib.metadata import version
from pathlib import Path

import torch

from timing import Row

FILES = (
    "start_up",
    "engine_overhead",
    "mixing",
    "mixing_steps",
    "corruptions",
    "augmenting",
    "attacking",
    "acil",
    "mahalanobis",
    "losses",
    "linf_distance",
    "long_tail",
    "labels",
    "million_rows",
    "review_page",
    "end_to_end",
)
HERE = Path(__file__).parent
PEERS = ("torch", "torchvision", "timm", "kornia", "pytorch-ood", "cleanlab", "torchmetrics", "torchattacks")


def main(names: list[str]) -> None:
    results = HERE / "results.json"
    kept: dict[str, list[dict]] = json.loads(results.read_text())["rows"] if names and results.exists() else {}
    machine = {
        "processor": platform.processor() or platform.machine(),
        "threads": torch.get_num_threads(),
        "python": platform.python_version(),
        **{peer: version(peer) for peer in PEERS},
    }
    for name in names or FILES:
        rows: list[Row] = importlib.import_module(name).rows()
        kept[name] = [{**vars(row), "verdict": row.verdict} for row in rows]
        for row in rows:
            print(f"{row.what} | {row.peer} | {row.ratio:.2f} (target {row.target:.2f}) {row.verdict}", flush=True)
        # after each file, so that a stopped run keeps what it measured
        results.write_text(json.dumps({"machine": machine, "rows": kept}, indent=2) + "\n")
        (HERE / "results.md").write_text(table(machine, kept))


def table(machine: dict, kept: dict[str, list[dict]]) -> str:
    lines = [
        "# Speed, side by side",
        "",
        "Written by `make bench`. Ratio: the peer's time over ours, the median over interleaved repeats in one",
        "process; above 1 we are faster. Targets that were missed are in the table like the others.",
        "",
        ", ".join(f"{key} {value}" for key, value in machine.items()),
        "",
        "| what | peer | ours, ms | peer, ms | ratio | target | n | |",
        "|---|---|---:|---:|---:|---:|---:|---|",
    ]
    for rows in kept.values():
        for row in rows:
            lines.append(
                f"| {row['what']} | {row['peer']} | {row['ours_ms']:.3g} | {row['peer_ms']:.3g} | {row['ratio']:.2f} | "
                f"{row['target']:.2f} | {row['n']} | {row['verdict']} |"
            )
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    main(sys.argv[1:])
