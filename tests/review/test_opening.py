"""A review of a real run: opened, killed, opened again, exported; and everything that does not fit, in one sentence."""

import csv
import json
import re
import shutil
import signal
import socket
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from sample_reviews import Started, Visitor, audited_run

from weathered.audit.labels.audited_labels import read_audited_labels, write_audited_labels
from weathered.cli.reviewing import export_corrections, review, review_run
from weathered.core.errors import DataError, SpecError, WeatheredError
from weathered.data.prepare import prepare
from weathered.recipe import DataOptions, Recipe
from weathered.review import serve as serving
from weathered.review.opening import noise_estimate, open_review
from weathered.stats import Estimate


@pytest.fixture(scope="module")
def photos(tmp_path_factory) -> Path:
    """A folder of two classes of pictures."""
    folder = tmp_path_factory.mktemp("data") / "photos"
    rng = np.random.default_rng(0)
    for name, level in (("dark", 40), ("light", 200)):
        (folder / name).mkdir(parents=True)
        for number in range(40):
            pixels = rng.normal(level, 20, (8, 8)).clip(0, 255).astype(np.uint8)
            Image.fromarray(pixels).save(folder / name / f"{number}.png")
    return folder


@pytest.fixture(scope="module")
def finished(photos, tmp_path_factory) -> Path:
    return audited_run(tmp_path_factory.mktemp("runs"), DataOptions(train=str(photos)))


@pytest.fixture
def run(finished, tmp_path) -> Path:
    """A copy of the run that a test may spoil."""
    return Path(shutil.copytree(finished, tmp_path / "run"))


def begun(server: Started) -> tuple[int, str]:
    """Port and token that a server prints when it is there."""
    line = server.output.readline()
    found = re.search(r"http://127\.0\.0\.1:(\d+)/\?token=(\S+)", line)
    assert found, (line, server.output.read())
    return int(found[1]), found[2]


def test_a_killed_server_keeps_decisions_sessions_and_port(run, tmp_path, capsys):
    with Started("-m", "weathered", "review", str(run), "--no-browser") as server:
        port, token = begun(server)
        ann = Visitor(port)
        ann.join(token, "ann")
        line = server.output.readline()
        assert line.startswith("ann has joined. A link for another reviewer: http://127.0.0.1:")
        rows = [
            int(row) for row in re.findall(r'<li data-row="(\d+)" data-given="\d+" data-suggested="1"', ann.get("/"))
        ]
        for number, row in enumerate(rows[:5]):
            assert ann.post("/decide", row=row, label=1, key=f"before-{number}")[0] == 200
        assert server.end(signal.SIGKILL) == -signal.SIGKILL
    with Started("-m", "weathered", "review", str(run), "--no-browser") as server:
        again, _ = begun(server)
        assert again == port
        assert "You are <b>ann</b>" in ann.get("/")
        assert '<b data-field="decided">5</b>' in ann.get("/")
        # what the browser sends again because it never saw the answer
        assert ann.post("/decide", row=rows[4], label=1, key="before-4")[0] == 200
        assert ann.post("/undo", key="after-000")[0] == 200
        code = server.end(signal.SIGINT)
        told = server.output.read()
        assert code == 0, told
        assert told.strip().splitlines() == [
            f"decisions: {run / 'labels' / 'review.sqlite'}",
            f"export them by: weathered review {run} --export corrections.csv",
        ]
    export_corrections(run, tmp_path / "corrections.csv", everything=False, as_json=True)
    told = json.loads(capsys.readouterr().out)
    assert (told["corrections"], told["disputed"]) == (4, 0)
    with (tmp_path / "corrections.csv").open(newline="") as stream:
        lines = list(csv.DictReader(stream))
    audited = read_audited_labels(run)
    assert sorted(int(line["row"]) for line in lines) == sorted(int(audited.source_row[row]) for row in rows[:4])
    assert {(line["old"], line["new"], line["reviewer"]) for line in lines} == {("dark", "light", "ann")}


def test_the_review_shows_the_training_set_and_the_estimate(run):
    opened = open_review(run)
    assert len(opened.suspects) == 40
    assert opened.title.endswith(run.name)
    assert opened.noise == Estimate(0.1, 0.05, 0.2, 60)
    opened.store.close()
    (run / "audit.json").unlink()
    opened = open_review(run)
    assert opened.noise is None
    opened.store.close()
    assert noise_estimate({"labels": {"summary": {"estimated noise rate": {"value": 0.1, "low": None}}}}) is None


def test_a_picture_that_is_gone_since_the_audit_is_one_sentence(photos, tmp_path):
    copy = Path(shutil.copytree(photos, tmp_path / "photos"))
    run = audited_run(tmp_path / "runs", DataOptions(train=str(copy)))
    (copy / "dark" / "3.png").unlink()
    with pytest.raises(
        DataError, match=r"the data of .* have changed since it was trained: a file was added, altered or"
    ):
        open_review(run)


def spoiled(run: Path, **changes) -> None:
    write_audited_labels(run, replace(read_audited_labels(run), **changes))


def test_an_audit_of_other_data_is_one_sentence(run, photos, tmp_path):
    audited = read_audited_labels(run)
    other = audited_run(tmp_path / "runs", DataOptions(train=str(photos), limit=30), suspects=10)
    shutil.copy(other / "labels" / "labels.parquet", run / "labels" / "labels.parquet")
    with pytest.raises(DataError, match=r"belongs to other data \(it has \d+ rows and the training set 60\)"):
        open_review(run)
    labels = audited.label.copy()
    labels[7] = 1 - labels[7]
    write_audited_labels(run, replace(audited, label=labels))
    with pytest.raises(DataError, match=r"belongs to other data \(training row 7 was '\w+' and is '\w+'\)"):
        open_review(run)


def test_a_damaged_audit_is_one_sentence(run):
    audited = read_audited_labels(run)
    for changes, sentence in (
        ({"rank": audited.rank + 1}, "its ranks are not 1, 2, 3"),
        ({"suggested": audited.suggested + 5}, "'suggested' names classes beyond the 2 of the run"),
        ({"like_label": [[999]] * len(audited)}, "'like_label' names rows beyond its 60"),
    ):
        write_audited_labels(run, replace(audited, **changes))
        with pytest.raises(DataError, match=sentence):
            open_review(run)


def test_decisions_on_another_audit_are_one_sentence(run, tmp_path):
    open_review(run).store.close()
    spoiled(run, source_row=read_audited_labels(run).source_row + 1)
    with pytest.raises(DataError, match="holds decisions on other labels than those of this audit"):
        open_review(run)
    with pytest.raises(DataError, match="holds decisions on other labels"):
        export_corrections(run, tmp_path / "c.csv", everything=False, as_json=False)


def test_runs_that_cannot_be_reviewed_are_one_sentence(run, tmp_path):
    with pytest.raises(DataError, match="is not a run folder"):
        open_review(tmp_path)
    with pytest.raises(DataError, match="was not reviewed yet; begin by 'weathered review"):
        export_corrections(run, tmp_path / "c.csv", everything=False, as_json=False)
    (run / "labels" / "labels.parquet").unlink()
    with pytest.raises(DataError, match="has no label audit yet"):
        open_review(run)
    (run / "done").unlink()
    with pytest.raises(WeatheredError, match="is not finished"):
        open_review(run)
    for given, name in (({"everything": True}, "--all"), ({"as_json": True}, "--json")):
        with pytest.raises(SpecError, match=f"{name} goes with --export"):
            review(run, **given)


def test_a_port_that_is_taken_is_one_sentence(run):
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        opened = open_review(run)
        with pytest.raises(SpecError, match=r"port \d+ cannot be used: .*; give another --port, or none"):
            serving.serve(opened, taken.getsockname()[1], False, print)
        opened.store.close()


def test_without_its_packages_the_command_says_how_to_get_them(run, monkeypatch):
    monkeypatch.setitem(sys.modules, "uvicorn", None)
    with pytest.raises(
        WeatheredError, match=r"needs fastapi and uvicorn; install them by pip install 'weathered\[review"
    ):
        review_run(run, None, False)


@pytest.mark.parametrize(
    "path", ["../../etc/passwd", "../outside.png", "/etc/passwd", "link.png", "folder/outside.png"]
)
def test_paths_that_lead_out_of_the_data_are_refused_before_anything_is_served(photos, tmp_path, path):
    """A crafted table is refused when it is read, also when a link is put in place of a picture after the audit."""
    table = tmp_path / "data"
    table.mkdir()
    Image.new("L", (8, 8), 99).save(tmp_path / "outside.png")
    lines = ["path,label"]
    for number in range(40):
        shutil.copy(photos / ("dark", "light")[number % 2] / f"{number}.png", table / f"{number}.png")
        lines.append(f"{number}.png,{number % 2}")
    (table / "t.csv").write_text("\n".join([*lines, "link.png,0", "folder/outside.png,1"]) + "\n")
    shutil.copy(table / "0.png", table / "link.png")
    (table / "folder").mkdir()
    shutil.copy(table / "1.png", table / "folder" / "outside.png")
    run = audited_run(tmp_path / "runs", DataOptions(train=str(table / "t.csv")), suspects=10)
    open_review(run).store.close()
    if path == "link.png":
        (table / "link.png").unlink()
        (table / "link.png").symlink_to(tmp_path / "outside.png")
    elif path == "folder/outside.png":
        shutil.rmtree(table / "folder")
        (table / "folder").symlink_to(tmp_path)
    else:
        (table / "t.csv").write_text("\n".join([*lines, f"{path},0"]) + "\n")
    with pytest.raises(DataError):
        open_review(run)
    with pytest.raises(DataError, match="leads out of the folder of the table"):
        prepare(Recipe(data=DataOptions(train=str(table / "t.csv"))))
