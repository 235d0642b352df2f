"""Where a run comes from: what it may be resumed on, and what is said of runs that were not made alike."""

import json
import shutil
from pathlib import Path

import pytest
import torch

import weathered
from weathered.__main__ import main
from weathered.arms import parse_arms, plan
from weathered.claim_source import package_digest
from weathered.cli.comparing import compare_arms
from weathered.comparison import comparison_of, read_comparison
from weathered.core.errors import WeatheredError
from weathered.core.settings import Settings
from weathered.recipe import DataOptions, Recipe
from weathered.report.collect import report_on_comparison
from weathered.run_record import code_of, unlike
from weathered.store import RunFolder
from weathered.training import train

PACKAGE = Path(weathered.__file__).parent


def recipe(*use: str, seed: int = 0) -> Recipe:
    settings = Settings(epochs=1, batch_size=20, seed=seed, checkpoint_seconds=0)
    return Recipe(data=DataOptions(train="digits", limit=60, seed=0), model="mlp:width=8", use=use, settings=settings)


@pytest.fixture
def unfinished(tmp_path) -> Path:
    """The run.json of a run of `drw` with a checkpoint."""

    def stop(run):
        if run.step == 2:
            raise RuntimeError("stopped")

    with pytest.raises(RuntimeError, match="stopped"):
        train(recipe("drw"), tmp_path, observer=stop)
    return tmp_path / recipe("drw").hash / "run.json"


def change(path: Path, **changes) -> None:
    record = json.loads(path.read_text())
    merged = {key: {**record[key], **value} if isinstance(value, dict) else value for key, value in changes.items()}
    path.write_text(json.dumps({**record, **merged}))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"devices": 2}, r"was begun on 2 x cpu and cannot be resumed faithfully on 1 x cpu. Use the same --devices"),
        ({"device": "cuda:0"}, r"was begun on 1 x cuda and cannot be resumed faithfully on 1 x cpu"),
        ({"source": {"weathered": "0"}}, r"was begun with other code \(weathered changed since\)"),
        ({"source": {"drw": "0"}}, r"was begun with other code \(drw changed since\)"),
        ({"versions": {"numpy": "0"}, "source": {"drw": "0"}}, r"\(numpy, drw changed since\)"),
    ],
)
def test_what_would_not_go_on_as_it_began_is_refused(unfinished, changes, message):
    if torch.cuda.is_available():
        pytest.skip("the messages are those of a CPU")
    before = unfinished.read_text()
    change(unfinished, **changes)
    with pytest.raises(WeatheredError, match=message):
        train(recipe("drw"), unfinished.parent.parent)
    unfinished.write_text(before)
    assert train(recipe("drw"), unfinished.parent.parent).state == "done"


@pytest.mark.parametrize("file", ["weighting/base.py", "nn/mlp.py", "core/run.py", "core/objective.py"])
def test_every_file_of_the_package_counts(tmp_path, file):
    """Also those that no class of a part inherits from."""
    copy = shutil.copytree(PACKAGE, tmp_path / "weathered", ignore=shutil.ignore_patterns("__pycache__"))
    digest = package_digest()
    assert package_digest(copy) == digest == code_of(recipe("drw"))["source"]["weathered"]
    (copy / file).write_text((copy / file).read_text() + "\n")
    assert package_digest(copy) != digest


RECORD = {"versions": {"torch": "2.1", "numpy": "2.0"}, "source": {"weathered": "a"}, "device": "cpu", "devices": 1}
RECORD |= {"threads": 2}


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"versions": {"torch": "2.0", "numpy": "2.0"}}, "differ in torch (2.0 in 1 run, 2.1 in 2 runs). Part"),
        ({"source": {"weathered": "b"}}, "differ in the source code of weathered. Part"),
        ({"source": {}}, "differ in the source code of weathered. Part"),
        ({"devices": 2}, "differ in devices (1 x cpu in 2 runs, 2 x cpu in 1 run). Part"),
        ({"device": "cuda:1"}, "differ in devices (1 x cpu in 2 runs, 1 x cuda in 1 run). Part"),
        ({"threads": 1}, "differ in threads (1 in 1 run, 2 in 2 runs). Part"),
        (
            {"versions": {"torch": "2.1", "numpy": "1"}, "source": {"weathered": "b"}},
            "differ in numpy (1 in 1 run, 2.0 in 2 runs); the source code of weathered. Part",
        ),
    ],
)
def test_what_differs_between_runs_is_named(changes, words):
    (sentence,) = unlike([RECORD, {**RECORD, **changes}, RECORD])
    assert words in sentence


def test_runs_that_differ_in_their_methods_only_are_alike():
    one, other = ({**RECORD, "source": {"weathered": "a", slug: slug}} for slug in ("drw", "mixup"))
    assert unlike([one, other]) == ()
    assert unlike([one, {**one, "source": {"weathered": "a", "drw": "x"}}])[0].count("source code of drw") == 1


@pytest.fixture
def said(monkeypatch, capsys):
    """The command line: arguments -> what it wrote to standard error."""

    def run(*arguments: str) -> str:
        monkeypatch.setattr("sys.argv", ["weathered", *arguments])
        with pytest.raises(SystemExit):
            main()
        return capsys.readouterr().err

    return run


def test_a_comparison_says_where_its_runs_come_from(tmp_path, said):
    folders = [train(recipe(*use), tmp_path) for use in ((), ("mixup",))]
    alike = comparison_of(folders, tmp_path)
    assert alike.notes() == ()
    assert alike.to_json()["notes"] == []
    page = report_on_comparison(alike, tmp_path / "report.html").read_text()
    assert "not made alike" not in page

    change(folders[1].path / "run.json", versions={"torch": "1.9"})
    found = comparison_of(folders, tmp_path)
    assert "differ in torch (1.9 in 1 run, " in found.notes()[0]
    assert found.to_json()["notes"] == list(found.notes())
    page = report_on_comparison(found, tmp_path / "report.html").read_text()
    assert "The runs were not made alike; they differ in torch (1.9 in 1 run, " in page
    paths = [str(folder.path) for folder in folders]
    assert "note: The runs were not made alike" in said("report", *paths, "-o", str(tmp_path / "report.html"))


def test_finished_runs_of_other_code_enter_a_comparison_with_a_note(tmp_path, capsys):
    arms = "ce,mixup"
    planned = plan(recipe(), parse_arms(arms), [0])
    first, second = (train(made, tmp_path) for recipes in planned.values() for made in recipes)

    def again() -> tuple[str, str]:
        compare_arms(recipe(), parse_arms(arms), 1, tmp_path, None, as_json=False)
        return capsys.readouterr()

    assert "not made alike" not in "".join(again())
    change(second.path / "run.json", source={"weathered": "0"})
    assert "note: The runs were not made alike; they differ in the source code of weathered." in again()[1]
    (comparison,) = tmp_path.glob("compare-*")
    assert read_comparison(comparison).notes()
    assert json.loads((comparison / "comparison.json").read_text())["notes"]
    assert first.read_json("run.json")["source"]["weathered"] == package_digest()


def test_a_finished_run_of_other_code_is_shown_with_a_note(tmp_path, said):
    command = ("train", "digits", "--epochs", "1", "--model", "mlp:width=8", "--limit", "60", "--out", str(tmp_path))
    assert "finished before" not in said(*command)
    assert "this run was finished before; its results are shown again." in said(*command)
    (path,) = tmp_path.glob("*/run.json")
    change(path, versions={"numpy": "0"})
    assert "its results are shown again, from other code (numpy changed since)." in said(*command)
    assert RunFolder(path.parent).state == "done"
