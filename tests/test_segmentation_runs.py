"""Segmentation from the command line to the report, and resumed bit for bit."""

import json

import pytest
import torch

from weathered.core.predict import outcomes, prediction_of
from weathered.core.settings import Settings
from weathered.loaded_run import load_run
from weathered.recipe import DataOptions, Recipe
from weathered.training import build_run, prepare, train

RECIPE = Recipe(
    DataOptions(train="shapes:48", validation=0.2),
    model="unet:width=4,depth=1",
    use=("ldam", "cdb", "crop-flip"),
    settings=Settings(epochs=3, batch_size=8, lr=0.05, evaluations=2),
)


def test_a_run_has_overlaps_and_reads_back(tmp_path):
    folder = train(RECIPE, tmp_path)
    record = folder.read_json("run.json")
    assert {"mean IoU", "accuracy", "tail IoU", "expected calibration error"} <= set(record["results"])
    accuracies = [line["test_accuracy"] for line in folder.metrics() if "test_accuracy" in line]
    assert accuracies[-1] == pytest.approx(record["results"]["accuracy"]["value"])
    loaded = load_run(folder.path)
    logits, labels = outcomes(loaded.run, loaded.splits.test)
    again = prediction_of(loaded.model, loaded.run)(loaded.splits.test.floats(torch.arange(2)))
    assert again.shape == (2, 8, 20, 20)
    assert logits.shape == (len(labels), 8)


def test_four_steps_are_two_and_two(tmp_path):
    whole = build_run(RECIPE, prepare(RECIPE))
    parted, resumed = (build_run(RECIPE, prepare(RECIPE)) for _ in range(2))
    from weathered.core.fit import fit

    fit(whole, max_steps=8)
    fit(parted, max_steps=4)
    resumed.load_state_dict(parted.state_dict())
    fit(resumed, max_steps=4)
    for a, b in zip(whole.model.state_dict().values(), resumed.model.state_dict().values(), strict=True):
        assert torch.equal(a, b)


def test_old_recipes_keep_their_names():
    tree = Recipe().canonical()["data"]
    assert not {"mask_column", "group_column", "rows", "test_rows", "ignore_label"} & set(tree)
    assert Recipe(DataOptions(rows="split=train")).canonical()["data"]["rows"] == "split=train"


def test_train_audit_and_report(weathered, tmp_path):
    small = ("--model", "unet:width=4,depth=1", "--epochs", "1", "--batch-size", "8", "--out", "runs")
    code, out, _ = weathered("train", "shapes:24", *small)
    assert code == 0
    assert "mean IoU" in out
    run = next((tmp_path / "runs").glob("*/run.json")).parent
    code, out, _ = weathered("audit", str(run))
    assert code == 0
    assert "segmentation" in json.loads((run / "audit.json").read_text())
    code, _, err = weathered("audit", str(run), "--audits", "accuracy")
    assert code == 2
    assert "Use --audits segmentation" in err
    code, _, err = weathered("report", str(run), "-o", "report.html")
    assert code == 0, err
    assert "Overlap by class" in (tmp_path / "report.html").read_text()


def test_arms_are_compared_by_overlap(weathered, tmp_path):
    small = ("--model", "unet:width=4,depth=1", "--epochs", "1", "--batch-size", "8", "--out", "runs")
    code, out, err = weathered("compare", "shapes:60", *small, "--arms", "ce,class-balanced", "--seeds", "2")
    assert code == 0, err
    assert "class-balanced" in out
    comparison = json.loads(next((tmp_path / "runs").glob("compare-*/comparison.json")).read_text())
    assert comparison["metric"] == "mean IoU"
    means = [row["mean IoU"]["value"] for row in comparison["ranking"]]
    assert means == sorted(means, reverse=True)
    assert "test mean IoU after the last epoch" in next((tmp_path / "runs").glob("compare-*/report.html")).read_text()


def test_makers_of_labels_are_refused(weathered):
    code, _, err = weathered("train", "shapes:24", "--model", "unet", "--long-tail", "5")
    assert code == 2
    assert "have one for each pixel" in err


def test_cals_learns_on_labelled_pixels_alone():
    recipe = Recipe(
        DataOptions(train="shapes:40", validation=0.2), model="unet:width=4,depth=1", use=("cals:margin=1",),
        settings=Settings(epochs=2, batch_size=8),
    )  # fmt: skip
    splits = prepare(recipe)
    assert splits.validation is not None
    blank = splits.validation.extra["mask"].clone()
    blank[:, :10] = 255
    validation = splits.validation.replace(extra={"mask": blank})
    run = build_run(recipe, splits._replace(validation=validation))
    (term,) = run.terms
    term.reset()
    logits = torch.randn(len(validation), 8, 20, 20)
    term.update(logits, blank)
    term.step(1)
    expected = term.multipliers.clone()
    term._begin()
    term.reset()
    term.update(logits[:, :, 10:])
    term.step(1)

    torch.testing.assert_close(term.multipliers, expected)
    from weathered.core.fit import fit

    fit(run)
    assert (term.multipliers > 1e-6).any()


def test_data_that_cannot_be_scored_or_stay_in_place_are_refused(weathered, tmp_path):
    import numpy as np

    images = np.random.default_rng(0).integers(0, 256, (8, 20, 20, 3), dtype=np.uint8)
    masks = np.random.default_rng(1).integers(0, 2, (8, 20, 20))
    np.savez(tmp_path / "a.npz", images=images, masks=masks)
    np.savez(tmp_path / "b.npz", images=images, masks=np.full_like(masks, 255), class_names=np.array(["0", "1"]))
    code, _, err = weathered("train", "a.npz", "--test", "b.npz", "--model", "unet")
    assert code == 2
    assert "no pixel of the test masks has a class" in err
    code, _, err = weathered(
        "train", "shapes:24", "--model", "unet", "--make", "corruption:kind=elastic_transform,severity=5"
    )
    assert code == 2
    assert "moves pixels" in err


def test_folds_hold_out_images(tmp_path):
    recipe = Recipe(DataOptions(train="shapes:24", fold="1/3"), model="unet:width=4,depth=1")
    splits = prepare(recipe)
    rows = [set(part.rows_in_source.tolist()) for part in (splits.train, splits.test)]
    assert len(rows[0]) == pytest.approx(2 * len(rows[1]), abs=2)
    assert not rows[0] & rows[1]
