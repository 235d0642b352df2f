"""Comparisons that are kept: figures of the runs themselves, nothing of where they lay, and a page in order."""

import json
import sys

import numpy as np
import pyarrow.parquet as pq
import pytest
from pages import ROOT

from weathered.arms import crossed, parse_arms
from weathered.comparison import compare
from weathered.core.settings import Settings
from weathered.recipe import DataOptions, Recipe

sys.path.insert(0, str(ROOT / "docs"))
import comparisons

RECIPE = Recipe(
    DataOptions(train="digits", limit=300, make=("symmetric:rate=0.3",)),
    model="mlp:width=16",
    settings=Settings(epochs=2, batch_size=50),
)


@pytest.fixture(scope="module")
def result(tmp_path_factory):
    arms = parse_arms("ce,label-smoothing")
    return compare(RECIPE, arms, seeds=range(2), out=tmp_path_factory.mktemp("runs"), workers=1)


def test_what_is_kept_is_what_the_runs_say(result, tmp_path):
    kept = comparisons.keep(result.path, "Digits", "weathered compare digits")
    assert kept["seeds"] == [0, 1]
    assert set(kept["arms"]) == {"ce", "label-smoothing"}
    for arm in result.arms:
        assert kept["arms"][arm.name]["accuracy"] == arm.values["accuracy"]
        for share, folder in zip(kept["arms"][arm.name]["wrong labels memorised"], arm.folders, strict=True):
            rows = pq.read_table(folder.path / "per_sample.parquet").to_pylist()
            wrong = [row for row in rows if row["split"] == "train" and row["label"] != row["clean_label"]]
            assert share == np.mean([row["label"] == row["predicted"] for row in wrong])
    assert str(tmp_path.parent.parent) not in json.dumps(kept)


def test_the_page_lists_arms_from_best_to_worst_against_the_baseline(result, tmp_path):
    (tmp_path / "digits.json").write_text(json.dumps(comparisons.keep(result.path, "Digits", "weathered compare ...")))
    text = comparisons.page(tmp_path)
    assert "## Digits {#digits}" in text
    rows = [line for line in text.splitlines() if line.startswith("| `")]
    means = [float(row.split("|")[2]) for row in rows]
    assert means == sorted(means, reverse=True)
    assert [row.split("|")[-2].strip() == "" for row in rows].count(True) == 1


def test_crossed_arms_get_a_table_of_pairs_with_the_reasons_of_refusals(tmp_path):
    arms = crossed(parse_arms("ce,logitclip,mixup"), parse_arms("gce,drw"))
    found = compare(RECIPE, arms, seeds=range(1), out=tmp_path / "runs", workers=1, leave_out_refused=True)
    assert set(found.refused) == {"logitclip+gce"}
    kept = comparisons.keep(found.path, "Digits", "weathered compare ...")
    (tmp_path / "digits.json").write_text(json.dumps(kept))
    lines = comparisons.page(tmp_path).splitlines()
    head = lines.index("|  | alone | `gce` | `drw` |")
    cells = [[cell.strip() for cell in line.split("|")[1:-1]] for line in lines[head + 2 : head + 5]]
    value = {name: f"{values['balanced accuracy'][0]:.4f}" for name, values in kept["arms"].items()}
    assert cells == [
        ["alone", "", value["gce"], value["drw"]],
        ["`logitclip`", value["logitclip"], "no (1)", value["logitclip+drw"]],
        ["`mixup`", value["mixup"], value["mixup+gce"], value["mixup+drw"]],
    ]
    assert any(line.startswith("1. logitclip and gce both fill the slot 'loss'") for line in lines)


def test_every_kept_comparison_has_a_table():
    files = list(comparisons.KEPT.glob("*.json"))
    text = comparisons.page()
    for path in files:
        kept = json.loads(path.read_text())
        assert len(kept["seeds"]) >= 3
        assert all(f"| `{arm}` |" in text for arm in kept["arms"])
        assert kept["command"] in text


def test_tails_and_pixels_are_ranked_by_what_serves_rare_classes():
    def record(**values):
        arms = {"ce": values, "other": {name: [v + 0.1 for v in column] for name, column in values.items()}}
        return {
            "arms": arms,
            "baseline": "ce",
            "seeds": [0, 1],
            "versions": {},
            "title": "T",
            "command": "c",
            "note": "",
        }

    tail = {"accuracy": [0.5, 0.6], "balanced accuracy": [0.4, 0.5], "tail accuracy": [0.1, 0.2]}
    assert "balanced accuracy against `ce`" in comparisons._blocks(record(**tail), "t")[-1]
    pixels = {**tail, "mean IoU": [0.3, 0.4]}
    assert "mean IoU against `ce`" in comparisons._blocks({**record(**pixels), "metric": "mean IoU"}, "t")[-1]
    assert "| accuracy against `ce`" in comparisons._blocks(record(accuracy=[0.5, 0.6]), "t")[-1]
