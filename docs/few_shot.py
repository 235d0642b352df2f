"""Tables of few-shot runs that are kept: what a run's episodes say, without its folder, and markdown made from them.

Run as `python docs/few_shot.py RUN NAME TITLE COMMAND [NOTE]` to keep the run in RUN as claims/few-shot/NAME.json;
COMMAND is what made it, NOTE a sentence on it.
"""

import json
import sys
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
from rendering import table

from weathered.fewshot.classifiers import LOGISTIC
from weathered.fewshot.recipe_run import with_half_width
from weathered.stats import Estimate, mean_interval, paired_comparison
from weathered.store import RunFolder

KEPT = Path(__file__).parents[1] / "claims" / "few-shot"


def keep(folder: Path, title: str, command: str, note: str = "") -> dict[str, Any]:
    """Each method's mean over episodes and its paired difference, by shots; nothing of where the run lies."""
    run = RunFolder(folder)
    record, audit = run.read_json("run.json"), run.read_json("audit.json")
    rows = pq.read_table(folder / "episodes.parquet").to_pylist()
    values: dict[str, dict[str, list[float]]] = {}
    for row in rows:
        values.setdefault(row["method"], {}).setdefault(str(row["shots"]), []).append(row["accuracy"])
    methods = {
        name: {
            shots: {
                "accuracy": mean_interval(found),
                "difference": paired_comparison(found, values[LOGISTIC][shots]).difference,
            }
            for shots, found in by_shots.items()
        }
        for name, by_shots in values.items()
    }
    return {
        "title": title,
        "command": command,
        "note": note,
        "ways": record["resolved"]["data"]["ways"],
        "base_classes": len(record["classes"]),
        "base accuracy": record["results"]["accuracy"]["value"],
        "generator": {name: value for name, value in audit["few-shot"]["tables"][1]["rows"]},
        "methods": methods,
        "versions": record["versions"],
    }


def tables(folder: Path = KEPT) -> str:
    """All kept runs as markdown."""
    return "\n\n".join(block for path in sorted(folder.glob("*.json")) for block in _blocks(path)) + "\n"


def _blocks(path: Path) -> list[str]:
    kept = json.loads(path.read_text())
    shots = list(next(iter(kept["methods"].values())))
    first = next(iter(kept["methods"].values()))[shots[0]]["accuracy"]
    episodes = Estimate(*first).n
    rows = []
    for name, by_shots in sorted(
        kept["methods"].items(), key=lambda item: -sum(item[1][k]["accuracy"][0] for k in shots)
    ):
        cells = [f"`{name}`" if name.startswith("tfh") else name]
        for found in (by_shots[k] for k in shots):
            cells.append(with_half_width(Estimate(*found["accuracy"])))
            difference = Estimate(*found["difference"])
            cells.append("" if name == LOGISTIC else with_half_width(difference, "+.3f"))
        rows.append(cells)
    versions = ", ".join(f"{package} {version}" for package, version in kept["versions"].items())
    generator = "; ".join(f"{name}: {value:.4f}" for name, value in kept["generator"].items())
    headings = ["method", *(text for k in shots for text in (f"{k}-shot", f"against {LOGISTIC}"))]
    return [
        f"### {kept['title']} {{#{path.stem}}}",
        f"```bash\n{kept['command']}\n```",
        f"{kept['ways']}-way, {episodes} episodes, half-widths of 95 % intervals; one network, trained on "
        f"{kept['base_classes']} classes, with accuracy {kept['base accuracy']:.3f} on their test images; {versions}. "
        f"{kept['note']}".rstrip(),
        table(headings, rows),
        f"The generator on base classes: {generator}.",
    ]


if __name__ == "__main__":
    source, slug, *words = sys.argv[1:]
    KEPT.mkdir(exist_ok=True)
    (KEPT / f"{slug}.json").write_text(json.dumps(keep(Path(source), *words), indent=1) + "\n")
