"""The command line as a user meets it: results on standard output, one sentence and exit code 2 for mistakes."""

import inspect
import io
import json
import re
import subprocess
import sys
import zipfile
from dataclasses import fields
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from weathered.cli.commands import compare, train
from weathered.cli.options import RecipeOptions
from weathered.core.settings import Settings
from weathered.recipe import DataOptions, Recipe


def test_the_module_runs_as_a_process_of_its_own():
    done = subprocess.run([sys.executable, "-m", "weathered", "trian"], capture_output=True, text=True, timeout=60)
    assert done.returncode == 2
    assert done.stderr.strip() == "error: No such command 'trian'. Did you mean 'train'?"


FAST = ("--epochs", "1", "--model", "mlp:width=16", "--limit", "200")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["trian"], "No such command 'trian'. Did you mean 'train'?"),
        (["train"], "nothing to train on"),
        (["train", "nowhere.csv"], "nowhere.csv: there is no such file or folder"),
        (["train", "digits", "--epochs", "many"], "Invalid value for '--epochs'"),
        (["train", "digits", "--use", "logitclp"], "Did you mean 'logitclip'?"),
        (["train", "digits", "--use", "logitclip:tau=-1"], "tau must be > 0, got -1"),
        (["train", "digits", "--use", "jocor", "--use", "automix"], "both fill the slot 'procedure'"),
        (["train", "digits", "--use", "mixup", "--use", "jocor"], "JoCoR needs 'hard_target'"),
        (["train", "digits", "--use", "msp"], "msp is a score, not a part of training"),
        (["train", "digits", "--model", "timm:resnet1"], "Did you mean"),
        (["compare", "digits", "--arms", "ce,,mixup"], "empty arm"),
        (["compare", "digits", "--arms", "ce,mixup", "--launcher", "rey"], "launcher must be local or ray, got 'rey'"),
        (["audit", "nowhere", "nowhere"], "a run is named twice"),
        (["audit", "nowhere", "--audits", "few-shot"], "the audit few-shot is made while training"),
        (["audit", "nowhere"], "nowhere is not a run folder"),
        (["report", "nowhere"], "nowhere holds no run"),
        (["verify", "jocr"], "Did you mean 'jocor'?"),
        (["show", "jocr"], "Did you mean 'jocor'?"),
        (["list", "--problem", "noisy"], "There are: noisy-labels"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_a_mistake_is_one_sentence_and_exit_code_2(weathered, arguments, message):
    code, out, err = weathered(*arguments)
    assert code == 2
    assert message in err
    assert err.startswith("error: ")
    assert err.count("\n") == 1
    assert not out


def test_train_audit_report_and_resume(weathered, tmp_path):
    code, out, err = weathered("train", "digits", *FAST, "--noise", "symmetric:0.2", "--json")
    assert code == 0, err
    trained = json.loads(out)
    assert trained["results"]["accuracy"]["n"] == 450
    run = trained["run"]
    assert {"run.json", "metrics.jsonl", "audit.json", "per_sample.parquet", "weights.safetensors", "done"} <= {
        path.name for path in (tmp_path / run).iterdir()
    }
    code, out, _ = weathered("audit", run, "--audits", "calibration,ood", "--scores", "msp", "--limit", "50", "--json")
    assert code == 0
    assert set(json.loads(out)) == {"calibration", "ood"}
    assert set(json.loads((tmp_path / run / "audit.json").read_text())) >= {"accuracy", "calibration", "ood"}
    code, out, _ = weathered("report", run, "-o", "one.html")
    assert code == 0
    assert "one.html" in out
    assert (tmp_path / "one.html").read_text().startswith("<!doctype html>")
    code, out, err = weathered("audit", run, "--audits", "calibratoin")
    assert code == 2
    assert "Did you mean 'calibration'?" in err


def test_compare_ranks_and_writes_a_report(weathered, tmp_path):
    code, out, err = weathered("compare", "digits", *FAST, "--arms", "ce,logitclip", "--seeds", "2")
    assert code == 0, err
    assert re.search(r"baseline", out)
    path = re.search(r"report: (\S+)", out)
    assert path is not None
    page = (tmp_path / path[1]).read_text()
    assert "All figures of all arms" in page
    for figure in ("balanced accuracy", "worst class accuracy", "expected calibration error"):
        assert figure in out
        assert figure in page


def test_crossed_arms_run_where_they_fit_and_say_where_they_do_not(weathered, tmp_path):
    crossing = ("--arms", "ce,logitclip", "--with", "gce,drw", "--seeds", "1")
    code, out, _ = weathered("compare", "digits", *FAST, *crossing, "--dry-run", "--json")
    assert code == 0
    verdicts = json.loads(out)
    assert verdicts["runs"] == 5
    assert verdicts["arms"]["logitclip+drw"] == "compatible"
    assert "both fill the slot 'loss'" in verdicts["arms"]["logitclip+gce"]
    assert not (tmp_path / "runs").exists()
    code, out, err = weathered("compare", "digits", *FAST, *crossing, "--metric", "mean IoU")
    assert code == 2
    assert "there is no 'mean IoU' of these data" in err
    code, out, err = weathered("compare", "digits", *FAST, *crossing, "--metric", "Brier score", "--json")
    assert code == 0, err
    found = json.loads(out)
    assert list(found["refused"]) == ["logitclip+gce"]
    assert "logitclip+gce was left out" in Path(tmp_path / found["report"]).read_text()
    means = [row["Brier score"]["value"] for row in found["ranking"]]
    assert means == sorted(means)


def test_arms_that_do_not_fit_are_refused_before_a_run(weathered, tmp_path):
    for more in ((), ("--dry-run",)):
        code, _, err = weathered("compare", "digits", *FAST, "--arms", "ce,logitclip+gce", *more)
        assert code == 2
        assert "logitclip+gce" in err
    code, _, err = weathered("compare", "digits", *FAST, "--arms", "ce,drw", "--with", "drw")
    assert code == 2
    assert "'drw' is both among the arms" in err
    assert not (tmp_path / "runs").exists()


def test_what_is_known_to_fail_fails_before_a_run(weathered, tmp_path):
    pair = ("compare", "digits", *FAST, "--arms", "ce,mixup")
    for arguments, message in (
        ((*pair, "--metric", "mean IoU"), "there is no 'mean IoU' of these data"),
        ((*pair, "--metric", "worst group accuracy"), "there is no 'worst group accuracy'"),
        ((*pair, "--metric", "foo", "--dry-run"), "there is no metric 'foo'"),
        ((*pair, "--baseline", "foo", "--dry-run"), "baseline 'foo' is not among the arms"),
        (("compare", "digits", *FAST, "--arms", "ce", "--dry-run"), "at least two arms"),
        ((*pair, "--report", "/"), "is a folder; name a file"),
        ((*pair, "--long-tail", "1e9", "--dry-run"), "error: digits: an imbalance of 1e+09"),
        ((*pair, "--noise", ""), "--noise is empty"),
        ((*pair, "--fold", "1/5", "--test", "digits"), "--test would do nothing"),
        (("train", "digits", "--use", "ldam-drw+mixup"), "--use ldam-drw --use mixup"),
    ):
        code, _, err = weathered(*arguments)
        assert code == 2, arguments
        assert message in err
    assert not (tmp_path / "runs").exists()


def test_dry_run_writes_nothing(weathered, tmp_path):
    code, out, _ = weathered("train", "digits", "--use", "ldam-drw", "--dry-run", "--json")
    assert code == 0
    tree = json.loads(out)
    assert tree["recipe"]["head"] == "cosine"
    assert tree["verdict"] == "compatible"
    assert not (tmp_path / "runs").exists()


def test_a_recipe_file_and_options_that_win_over_it(weathered, tmp_path):
    (tmp_path / "r.toml").write_text(
        'use = ["logitclip"]\n[data]\ntrain = "digits"\n[settings]\nepochs = 7\nlr = 0.1\n'
    )
    code, out, _ = weathered("train", "--recipe", "r.toml", "--epochs", "3", "--dry-run", "--json")
    assert code == 0
    resolved = json.loads(out)["recipe"]
    assert resolved["settings"]["epochs"] == 3
    assert resolved["settings"]["lr"] == 0.1
    assert [use["slug"] for use in resolved["use"]] == ["logitclip"]


def picture(value: int) -> bytes:
    stream = io.BytesIO()
    Image.fromarray(np.full((8, 8), value, dtype=np.uint8)).save(stream, "PNG")
    return stream.getvalue()


def test_a_folder_with_a_broken_image_and_an_empty_class(weathered, tmp_path):
    for name, value in (("dark", 10), ("light", 240)):
        (tmp_path / "photos" / name).mkdir(parents=True)
        for number in range(12):
            (tmp_path / "photos" / name / f"{number}.png").write_bytes(picture(value + number))
    (tmp_path / "photos" / "dark" / "broken.png").write_bytes(picture(1)[:40])
    code, _, err = weathered("train", "photos", "--epochs", "1", "--model", "mlp")
    assert code == 2
    assert "broken.png" in err
    code, out, err = weathered("train", "photos", "--epochs", "1", "--model", "mlp", "--skip-bad", "--json")
    assert code == 0, err
    record = json.loads((tmp_path / json.loads(out)["run"] / "run.json").read_text())
    assert any("1" in note for note in record["data_notes"])
    (tmp_path / "photos" / "empty").mkdir()
    again = ("train", "photos", "--epochs", "1", "--model", "mlp", "--skip-bad")
    code, _, err = weathered(*again)
    assert code == 2
    assert "the data have changed" in err
    code, _, err = weathered(*again, "--out", "others")
    assert code == 2
    assert "the class 'empty' is empty" in err


def test_a_pickle_is_never_opened(weathered, tmp_path):
    np.savez(tmp_path / "bad.npz", x=np.array([{"a": 1}] * 4, dtype=object), y=np.arange(4) % 2)
    code, _, err = weathered("train", "bad.npz", "--model", "mlp")
    assert code == 2
    assert "Traceback" not in err
    with zipfile.ZipFile(tmp_path / "bad.npz") as archive:
        assert archive.namelist()


def test_features_with_nan_and_a_single_class(weathered, tmp_path):
    rows = ["a,b,label"] + [f"{i},{i % 3},{i % 2}" for i in range(40)]
    (tmp_path / "good.csv").write_text("\n".join(rows))
    assert weathered("train", "good.csv", "--model", "mlp", "--epochs", "1")[0] == 0
    (tmp_path / "nan.csv").write_text("\n".join([*rows, "nan,1,0"]))
    code, _, err = weathered("train", "nan.csv", "--model", "mlp")
    assert code == 2
    assert "row 40" in err
    (tmp_path / "single.csv").write_text("\n".join(["a,b,label"] + [f"{i},1,0" for i in range(20)]))
    code, _, err = weathered("train", "single.csv", "--model", "mlp")
    assert code == 2
    assert "class" in err


def test_a_full_disk_is_one_sentence(weathered):
    code, _, err = weathered("train", "digits", *FAST, "--out", "/dev/full/runs")
    assert code == 2
    assert "Traceback" not in err


def test_incremental_options_reach_the_run_and_are_refused_without_a_learner(weathered):
    code, out, _ = weathered(
        "train", "digits", "--use", "acil", "--base-classes", "4", "--phases", "3", "--dry-run", "--json"
    )
    assert code == 0
    assert json.loads(out)["recipe"]["data"]["phases"] == 3
    code, _, err = weathered("train", "digits", "--phases", "3")
    assert code == 2
    assert "need an incremental learner" in err


def test_every_option_of_the_command_line_reaches_the_recipe(weathered):
    arguments = {
        "--aux": "ood=patches", "--noise": "symmetric:0.2", "--make": "corruption:kind=fog,severity=1",
        "--limit": "99", "--epochs": "3",
        "--batch-size": "7", "--lr": "0.5", "--optimizer": "adam", "--weight-decay": "0.25", "--schedule": "step",
        "--seed": "5", "--evaluations": "2", "--validation": "0.1", "--image-size": "12", "--precision": "bf16-mixed",
    }  # fmt: skip
    flat = [word for pair in arguments.items() for word in pair]
    code, out, err = weathered("train", "digits", *flat, "--channels-last", "--skip-bad", "--dry-run", "--json")
    assert code == 0, err
    recipe = json.loads(out)["recipe"]
    assert recipe["data"]["make"] == ["symmetric:rate=0.2", "corruption:kind=fog,severity=1"]
    assert (recipe["data"]["limit"], recipe["data"]["validation"], recipe["data"]["image_size"]) == (99, 0.1, 12)
    assert recipe["data"]["skip_bad"] is True
    assert recipe["data"]["aux"] == ["ood=patches"]
    expected = {
        "epochs": 3, "batch_size": 7, "lr": 0.5, "optimizer": "adam", "weight_decay": 0.25, "schedule": "step",
        "seed": 5, "evaluations": 2, "precision": "bf16-mixed", "channels_last": True,
    }  # fmt: skip
    assert {key: recipe["settings"][key] for key in expected} == expected


def test_shared_options_are_named_as_what_they_set():
    """An option of another name would be read and then dropped."""
    made = {"recipe", "noise", "long_tail", "labels", "data_seed"}
    targets = {field.name for kind in (Recipe, DataOptions, Settings) for field in fields(kind)}
    assert {field.name for field in fields(RecipeOptions)} - made <= targets


def test_train_and_compare_take_the_same_options():
    shared = {field.name for field in fields(RecipeOptions)}
    for command in (train, compare):
        assert shared < set(inspect.signature(command).parameters)
        assert "options" not in inspect.signature(command).parameters


def test_folders_of_splits_are_not_taken_for_classes(weathered, tmp_path):
    for split in ("train", "test"):
        for name in ("dark", "light"):
            (tmp_path / "own" / split / name).mkdir(parents=True)
            for number in range(8):
                (tmp_path / "own" / split / name / f"{number}.png").write_bytes(picture(10 * number + 3))
    code, _, err = weathered("train", "own", "--dry-run")
    assert code == 2
    assert "look like splits" in err
    code, out, _ = weathered("train", "own/train", "--test", "own/test", "--model", "mlp", "--dry-run")
    assert code == 0
    assert "dark (8), light (8)" in out


def test_compare_audits_every_run_and_ranks_by_what_it_found(weathered, tmp_path):
    asked = ("compare", "digits", *FAST, "--arms", "ce,mixup", "--seeds", "2", "--metric", "mean corruption accuracy")
    code, _, err = weathered(*asked)
    assert code == 2
    assert "add --audits corruption" in err
    code, _, err = weathered(*asked, "--audits", "corupt")
    assert code == 2
    assert "Did you mean 'corruption'?" in err
    code, _, err = weathered("compare", "digits", *FAST, "--arms", "ce,mixup", "--audit-limit", "20")
    assert code == 2
    assert "would do nothing without --audits" in err
    audits = ("--audits", "corruption", "--audit-limit", "20", "--json")
    code, out, err = weathered(*asked, *audits)
    assert code == 0, err
    found = json.loads(out)
    assert found["metric"] == "mean corruption accuracy"
    runs = [(tmp_path / "runs" / run, row) for row in found["ranking"] for run in row["runs"]]
    assert len(runs) == 4
    for path, row in runs:
        kept = json.loads((path / "audit.json").read_text())["corruption"]["summary"]["mean corruption accuracy"]
        assert kept["n"] == 20
        assert kept["value"] in row["values"]["mean corruption accuracy"]
    changed = [path.stat().st_mtime_ns for path in (path / "audit.json" for path, _ in runs)]
    code, again, err = weathered(*asked, *audits)
    assert code == 0, err
    assert json.loads(again)["ranking"] == found["ranking"]
    assert changed == [path.stat().st_mtime_ns for path in (path / "audit.json" for path, _ in runs)]


def test_a_limited_audit_does_not_replace_a_fuller_one(weathered, tmp_path):
    code, out, err = weathered("train", "digits", "--limit", "100", "--epochs", "1", "--out", "runs")
    assert code == 0, err
    run = next((tmp_path / "runs").glob("*/run.json")).parent

    def size() -> int:
        return json.loads((run / "audit.json").read_text())["selective"]["summary"]["area under risk-coverage"]["n"]

    for asked, message in (
        (("--audits", "accuracy", "--sigma", "0.5"), "--sigma would do nothing without the audit certified"),
        (("--audits", "accuracy", "--scores", "msp"), "--scores would do nothing without the audit ood"),
        (("--audits", "accuracy", "--ood", "digits"), "--ood would do nothing without the audit ood"),
    ):
        code, _, err = weathered("audit", str(run), *asked)
        assert code == 2
        assert message in err

    sizes, said = [], []
    for limit in ("40", "60", "50"):
        code, out, err = weathered("audit", str(run), "--audits", "selective", "--limit", limit)
        assert code == 0, err
        sizes.append(size())
        said.append("keeps its earlier figures on 60 samples" in out)
    assert sizes == [40, 60, 60]
    assert said == [False, False, True]


def test_a_table_is_audited_by_what_fits_it(weathered, tmp_path):
    rows = ["a,b,label"] + [f"{i},{i % 3},{i % 2}" for i in range(300)]
    (tmp_path / "t.csv").write_text("\n".join(rows))
    code, out, _ = weathered("train", "t.csv", "--model", "mlp", "--epochs", "1", "--json")
    assert code == 0
    code, out, err = weathered("audit", json.loads(out)["run"], "--json")
    assert code == 0, err
    assert set(json.loads(out)) == {"accuracy", "calibration", "selective", "ood"}


def test_a_report_never_replaces_what_is_not_a_file(weathered, tmp_path):
    code, out, _ = weathered("train", "digits", *FAST, "--json")
    (tmp_path / "folder.html").mkdir()
    run = json.loads(out)["run"]
    code, _, err = weathered("report", run, "-o", "folder.html")
    assert code == 2
    assert "not a regular file" in err
    table = tmp_path / run / "per_sample.parquet"
    table.write_bytes(table.read_bytes()[:100])
    code, _, err = weathered("report", run, "-o", "z.html")
    assert code == 2
    assert "per_sample.parquet is damaged" in err


def test_control_characters_never_reach_the_terminal(weathered):
    code, _, err = weathered("train", "no\x1b[31mwhere\n.csv")
    assert code == 2
    assert "\x1b" not in err
    assert err.count("\n") == 1
