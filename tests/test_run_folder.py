"""What a resumed run keeps of the lines that the interrupted one wrote."""

import json

import pytest

from weathered.core.atomic import write_atomically, write_text
from weathered.core.checkpoint import newest_checkpoint
from weathered.core.errors import DataError
from weathered.core.settings import Settings
from weathered.recipe import DataOptions, Recipe
from weathered.store import RunFolder
from weathered.training import train

LINES = [{"step": step, "epoch": step // 5, "train_loss": 1 / step} for step in (5, 10, 15)]


def folder(tmp_path, text: str) -> RunFolder:
    (tmp_path / "metrics.jsonl").write_text(text)
    return RunFolder(tmp_path)


WHOLE = "".join(json.dumps(line) + "\n" for line in LINES)


@pytest.mark.parametrize(("step", "kept"), [(0, 0), (4, 0), (5, 1), (9, 1), (10, 2), (15, 3), (99, 3)])
def test_lines_up_to_the_checkpoint_are_kept(tmp_path, step, kept):
    run = folder(tmp_path, WHOLE)
    run.keep_metrics_until(step)
    assert run.metrics() == LINES[:kept]
    run.append_metrics(LINES[2])
    assert run.metrics() == [*LINES[:kept], LINES[2]]


@pytest.mark.parametrize("cut", [1, 8, 20])
def test_a_line_cut_by_a_kill_is_dropped_and_the_next_one_stands_alone(tmp_path, cut):
    run = folder(tmp_path, WHOLE[:-cut])
    assert run.metrics() == (LINES if cut == 1 else LINES[:2])
    run.keep_metrics_until(10)
    run.append_metrics(LINES[2])
    assert run.metrics() == LINES


def test_a_folder_without_metrics_starts_with_none(tmp_path):
    run = RunFolder(tmp_path / "new")
    run.keep_metrics_until(0)
    assert run.metrics() == []
    assert [path.name for path in run.path.iterdir()] == ["metrics.jsonl"]


def test_a_run_stopped_between_checkpoints_has_each_epoch_once(tmp_path):
    """The checkpoint is older than the last line when the run breaks off."""
    recipe = Recipe(
        data=DataOptions(train="digits", limit=200),
        model="mlp:width=8",
        settings=Settings(epochs=5, batch_size=30, checkpoint_seconds=0),
    )
    whole = train(recipe, tmp_path / "whole").metrics()

    def stop(run):
        if run.step == 7:
            # after this step no checkpoint is due
            object.__setattr__(run.settings, "checkpoint_seconds", 1e9)
        if run.step == 17:
            raise RuntimeError("stopped")

    with pytest.raises(RuntimeError, match="stopped"):
        train(recipe, tmp_path / "run", observer=stop)
    run = RunFolder(tmp_path / "run" / recipe.hash)
    newest = newest_checkpoint(run.checkpoints)
    assert newest is not None
    assert int(newest.name.removeprefix("step-")) < run.metrics()[-1]["step"]
    found = train(recipe, tmp_path / "run").metrics()
    assert [line["epoch"] for line in found] == [1, 2, 3, 4, 5]
    assert [line["train_loss"] for line in found] == [line["train_loss"] for line in whole]


@pytest.mark.parametrize(
    ("text", "reason"), [("{}", "it has no 'recipe'"), ("[1]", "it holds no table"), ('{"recipe": ', "Expecting value")]
)
def test_a_damaged_record_is_named(tmp_path, text, reason):
    (tmp_path / "run.json").write_text(text)
    with pytest.raises(DataError, match=f"run.json cannot be read: .*{reason}"):
        RunFolder(tmp_path).read_json("run.json")


def test_a_file_that_cannot_be_written_goes_by_its_own_name(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(OSError, match="folder") as caught:
        write_text(tmp_path / "file" / "folder" / "report.html", "text")
    assert ".report.html." not in str(caught.value)

    def fail(part):
        raise FileNotFoundError(2, "No such file or directory", str(part))

    with pytest.raises(FileNotFoundError) as missing:
        write_atomically(tmp_path / "report.html", fail)
    assert missing.value.filename == str(tmp_path / "report.html")
