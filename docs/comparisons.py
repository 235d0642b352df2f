"""Comparisons that are kept: what `weathered compare` measured, without its folders, and the page made from them.

Run as `python docs/comparisons.py FOLDER NAME TITLE COMMAND [NOTE]` to keep the comparison in FOLDER as
claims/comparisons/NAME.json; COMMAND is what made it, NOTE a sentence on how.
"""

import json
import sys
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
from crossed import crossed_tables
from rendering import table

from weathered.comparison import read_comparison
from weathered.metrics import METRICS
from weathered.stats import Estimate, interval_text, mean_interval, paired_comparison
from weathered.store import RunFolder

KEPT = Path(__file__).parents[1] / "claims" / "comparisons"
MEMORISED = "wrong labels memorised"
SUSCEPTIBILITY = "susceptibility"
COLUMNS = {
    "mean IoU": "{:.4f}",
    "accuracy": "{:.4f}",
    "balanced accuracy": "{:.4f}",
    "head accuracy": "{:.3f}",
    "middle accuracy": "{:.3f}",
    "tail accuracy": "{:.3f}",
    "head IoU": "{:.3f}",
    "middle IoU": "{:.3f}",
    "tail IoU": "{:.3f}",
    "mean corruption accuracy": "{:.4f}",
    "negative log likelihood": "{:.3f}",
    "expected calibration error": "{:.4f}",
    "class-wise calibration error": "{:.4f}",
    MEMORISED: "{:.3f}",
    SUSCEPTIBILITY: "{:.4f}",
    "seconds": "{:.0f}",
}
"""What the page shows of each arm, in this order, where every arm has it, and with how many digits."""


def keep(folder: Path, title: str, command: str, note: str = "") -> dict[str, Any]:
    """What a comparison measured, for each arm and seed; nothing of where it lies."""
    result = read_comparison(folder)
    arms = {}
    for arm in result.arms:
        values = {**arm.values, "seconds": arm.seconds}
        extra = [_of_run(run) for run in arm.folders]
        values |= {name: [found[name] for found in extra] for name in extra[0] if all(name in f for f in extra)}
        arms[arm.name] = values
    record = result.arms[0].folders[0].read_json("run.json")
    return {
        "title": title,
        "command": command,
        "note": note,
        "metric": result.metric.name,
        "baseline": result.baseline,
        "seeds": list(result.seeds),
        "arms": arms,
        "refused": result.refused,
        "versions": record["versions"],
    }


def _of_run(folder: RunFolder) -> dict[str, float]:
    """The share of wrong training labels that a run predicts, and its last susceptibility, where it has them."""
    rows = pq.read_table(
        folder.path / "per_sample.parquet",
        columns=["label", "clean_label", "predicted"],
        filters=[("split", "=", "train")],
    )
    label, clean, predicted = (rows[name].to_numpy() for name in ("label", "clean_label", "predicted"))
    wrong = (clean >= 0) & (label != clean)
    found = {MEMORISED: float((label == predicted)[wrong].mean())} if wrong.any() else {}
    last = folder.metrics()[-1].get(SUSCEPTIBILITY)
    return found if last is None else {**found, SUSCEPTIBILITY: float(last)}


def page(folder: Path = KEPT) -> str:
    """All kept comparisons as markdown."""
    blocks = [
        "# Comparisons",
        "What `weathered compare` measured for several methods on the same data, however it fell. Means over seeds; "
        "the difference to the baseline is paired seed by seed, with its 95 % interval. Options were taken as they "
        "stand in the command, none was chosen on the test data.",
    ]
    for path in sorted(folder.glob("*.json")):
        blocks += _blocks(json.loads(path.read_text()), path.stem)
    return "\n\n".join(blocks) + "\n"


def _blocks(kept: dict[str, Any], name: str) -> list[str]:
    arms, baseline = kept["arms"], kept["baseline"]
    columns = [column for column in COLUMNS if all(column in values for values in arms.values())]
    metric = kept.get("metric", "accuracy")
    if metric == "accuracy" and "tail accuracy" in columns:
        metric = "balanced accuracy"
    means = {arm: {column: mean_interval(values[column]) for column in columns} for arm, values in arms.items()}
    rows = []
    sign = -1 if METRICS[metric].higher_is_better else 1
    for arm in sorted(arms, key=lambda arm: sign * means[arm][metric].value):
        cells = (_cell(means[arm][column], COLUMNS[column]) for column in columns)
        rows.append((f"`{arm}`", *cells, _difference(arms[arm][metric], arms[baseline][metric], arm == baseline)))
    versions = ", ".join(f"{package} {version}" for package, version in kept["versions"].items())
    return [
        f"## {kept['title']} {{#{name}}}",
        f"```bash\n{kept['command']}\n```",
        f"{len(kept['seeds'])} seeds; {versions}. {kept['note']}".rstrip(),
        table(("arm", *columns, f"{metric} against `{baseline}`"), rows),
        *crossed_tables(
            {arm: _cell(means[arm][metric], COLUMNS[metric]) for arm in arms}, kept.get("refused", {}), metric
        ),
    ]


def _cell(estimate: Estimate, form: str) -> str:
    return form.format(estimate.value)


def _difference(values: list[float], against: list[float], is_baseline: bool) -> str:
    if is_baseline:
        return ""
    found = paired_comparison(values, against).difference
    return f"{found.value:+.4f} {interval_text(found.low, found.high, '+.4f', 'interval not known')}"


if __name__ == "__main__":
    source, slug, *words = sys.argv[1:]
    KEPT.mkdir(exist_ok=True)
    (KEPT / f"{slug}.json").write_text(json.dumps(keep(Path(source), *words), indent=1) + "\n")
