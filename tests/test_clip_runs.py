"""Clips from the command line to the report, what an attack by scores alone costs, and what does not fit."""

import json

import pytest
from PIL import Image

SMALL = ("--model", "clip-cnn:width=4,hidden=8", "--epochs", "1", "--batch-size", "20", "--out", "runs")


def run_of(tmp_path):
    return str(next((tmp_path / "runs").glob("*/run.json")).parent)


def test_train_audit_attack_and_report(weathered, tmp_path):
    more = ("--epochs", "4", "--optimizer", "adam", "--lr", "0.02")
    code, out, err = weathered("train", "clips:120", *SMALL, *more, "--use", "mixup")
    assert code == 0, err
    assert "accuracy" in out
    run = run_of(tmp_path)
    code, out, err = weathered("audit", run, "--json")
    assert code == 0, err
    assert list(json.loads(out)) == ["accuracy", "calibration", "selective", "ood"]
    assert "means of two clips (synthetic)" in out
    attacks = "nes:queries=60,samples=4,astfocus:queries=60,samples=4,hidden=4,patch=9,grid=4"
    asked = ("--audits", "robustness", "--attacks", attacks, "--epsilon", "0.1", "--limit", "6", "--json")
    code, out, err = weathered("audit", run, *asked)
    assert code == 0, err
    assert "robustness: at most" in err
    found = json.loads(out)["robustness"]
    titles = [table["title"] for table in found["tables"]]
    assert titles[1] == "Attacks by scores alone: queries of all attacked clips, mean absolute change of 255"
    assert [row[0] for row in found["tables"][1]["rows"]] == attacks.replace(",ast", ";ast").split(";")
    assert any("saw scores alone and fooled the network on" in note for note in found["notes"])
    assert any("of the clip." in note for note in found["notes"])
    code, _, err = weathered("audit", run, "--audits", "robustness", "--limit", "4")
    assert code == 0, err
    assert "robustness: at most" in err
    code, _, err = weathered("report", run, "-o", "report.html")
    assert code == 0, err
    text = (tmp_path / "report.html").read_text()
    assert text.count("data:image/png") == 24
    for audit, message in (
        ("corruption", "the corruption audit needs images, but the data are clips"),
        ("certified", "the certified audit needs images, but the data are clips"),
    ):
        code, _, err = weathered("audit", run, "--audits", audit)
        assert code == 2
        assert message in err
    for options, message in (
        ("square", "the attack square needs 'image' (it changes squares of images), but the data are clips"),
        ("astfocus:patch=30", "AstFocus does not fit clips (test): patch must be in [1, 24] for 24x24 frames, got 30"),
        ("astfocus:samples=7", "astfocus: samples must be even"),
        ("astfocus:encoder=3", "encoder must be pixels, timm:NAME or a function, got '3'"),
        ("astfocus:framse=[2,4]", "astfocus has no option 'framse'. Did you mean 'frames'?"),
        ("astfocus:place_reward=boxes", "place_reward must be edges, none or a function"),
        ("astfocus:encoder=timm:nothing", "is no model of timm"),
    ):
        code, _, err = weathered("audit", run, "--audits", "robustness", "--limit", "2", "--attacks", options)
        assert code == 2, options
        assert message in " ".join(err.split())
        assert "Traceback" not in err
    code, _, err = weathered("audit", run, "--audits", "robustness", "--attacks", "nes", "--norm", "l2")
    assert code == 2
    assert "NES works in the norm linf" in err
    code, _, err = weathered("audit", run, "--audits", "robustness", "--attacks", "nes", "--epsilon", "0")
    assert code == 2
    assert "epsilon must be in (0, 1]" in err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("clips:40", "--model", "cnn_small"), "cnn_small needs images, but the data are clips; use --model clip-cnn."),
        (("clips:40", "--use", "cutmix"), "needs 'image'"),
        (("clips:40", "--use", "crop-flip"), "needs 'image' (it crops and mirrors images)"),
        (("clips:40", "--use", "rand-augment"), "needs 'image'"),
        (("clips:40", "--make", "corruption:kind=fog,severity=3"), "corruptions need images"),
        (("clips:40", "--test", "digits"), "the classes differ from those of the training set"),
        (("clips:1",), "takes a number of clips"),
        (("clips:40", "--label-column", "x"), "clips has no columns"),
    ],
)
def test_what_does_not_fit_ends_in_one_sentence(weathered, arguments, message):
    code, _, err = weathered("train", *SMALL, *arguments)
    assert code == 2
    assert message in " ".join(err.split())
    assert "Traceback" not in err


def test_a_folder_of_clips_is_trained_on(weathered, tmp_path):
    for name, colour in (("red", (200, 0, 0)), ("blue", (0, 0, 200))):
        for clip in range(8):
            folder = tmp_path / "clips" / name / f"clip{clip}"
            folder.mkdir(parents=True)
            for frame in range(4):
                Image.new("RGB", (9, 9), colour).save(folder / f"{frame}.png")
    code, _, err = weathered("train", "clip-folder:clips:frames=3", *SMALL)
    assert code == 0, err
    record = json.loads((tmp_path / "runs").glob("*/run.json").__next__().read_text())
    assert "Of each clip 3 frames were taken, evenly over its length." in record["data_notes"]
    code, _, err = weathered("train", "clip-folder:clips", *SMALL)
    assert code == 2
    assert "has 4 frames, fewer than the 16 asked for with frames=16" in err


def test_a_preview_needs_images(weathered):
    code, _, err = weathered("show", "mixup", "--preview", "m.png", "--data", "clips:20")
    assert code == 2
    assert "a preview needs images" in err
