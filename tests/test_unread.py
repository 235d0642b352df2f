"""Data that are given and read by nothing are named, and those that one arm of a comparison reads are not."""

import json

import pytest
import torch

from weathered.cli.running import dry, train_one
from weathered.comparison import comparison_of
from weathered.core.facts import Traits
from weathered.core.procedure import Procedure
from weathered.core.run import Run
from weathered.core.settings import Settings
from weathered.data.auxiliary import load_auxiliary
from weathered.nn.build import build_model
from weathered.recipe import DataOptions, Recipe
from weathered.report.collect import report_on_comparison
from weathered.training import train
from weathered.unread import unread_by_all, unread_data

AUX = "The auxiliary data 'ood' are read by no method."
VALIDATION = "The validation set is read by no method"


def recipe(*use, **data):
    options = DataOptions(train="digits", limit=64, **data)
    return Recipe(data=options, model="mlp:width=8", use=use, settings=Settings(epochs=1, batch_size=32))


BOTH = {"aux": ("ood=gaussian:size=32",), "validation": 0.25}


@pytest.mark.parametrize(
    ("needs", "unread"),
    [
        ({}, ["'one'", "'two'", "its 64 rows"]),
        ({"aux:two": "why"}, ["'one'", "its 64 rows"]),
        ({"aux": "why"}, ["its 64 rows"]),
        ({"validation": "why"}, ["'one'", "'two'"]),
        ({"aux": "why", "validation": "why"}, []),
    ],
)
@pytest.mark.parametrize("slot", ["procedure", "probe"])
def test_what_no_part_needs_is_named(digits, needs, unread, slot):
    class Reader(Procedure):
        traits = Traits(needs=needs, honours=Procedure.traits.honours)

    rows = digits.select(torch.arange(64))
    aux = {name: load_auxiliary("gaussian:size=8", rows, 0) for name in ("one", "two")}
    validation = digits.select(torch.arange(64, 128))
    model = build_model("mlp:width=8", rows)
    procedure, probe = (Reader(), None) if slot == "procedure" else (None, Reader())
    settings = Settings(1, 32)
    run = Run(model, rows, procedure=procedure, probe=probe, aux=aux, validation=validation, settings=settings)
    notes = unread_data(run)
    assert len(notes) == len(unread)
    assert all(name in note for name, note in zip(unread, notes, strict=True))
    assert unread_data(Run(model, rows, settings=Settings(1, 32))) == []


def test_train_says_so_dry_or_not_and_again_when_it_is_finished(tmp_path, capsys):
    dry(recipe(**BOTH), as_json=False)
    assert f"note: {AUX}" in capsys.readouterr().out
    for _ in range(2):
        train_one(recipe(**BOTH), tmp_path, resume=False, as_json=False, accelerator="cpu")
        err = capsys.readouterr().err
        assert f"note: {AUX}" in err
        assert f"note: {VALIDATION}: its 17 rows" in err
    train_one(recipe(**BOTH), tmp_path, resume=False, as_json=True, accelerator="cpu")
    notes = json.loads(capsys.readouterr().out)["notes"]
    assert [AUX in note or VALIDATION in note for note in notes[-2:]] == [True, True]


def test_what_is_read_is_not_named(capsys):
    dry(recipe("odnl", **BOTH), as_json=True)
    notes = json.loads(capsys.readouterr().out)["data"]["notes"]
    assert [VALIDATION in note for note in notes if "read by no method" in note] == [True]
    dry(recipe(), as_json=True)
    assert "read by no method" not in capsys.readouterr().out


def test_a_comparison_names_only_what_no_arm_reads(tmp_path):
    plain, mixed, reading = (train(recipe(*use, **BOTH), tmp_path) for use in ((), ("mixup",), ("odnl",)))
    nothing = comparison_of([plain, mixed], tmp_path)
    assert [note.partition(":")[0].strip(".") for note in nothing.notes()] == [AUX.strip("."), VALIDATION]
    some = comparison_of([plain, reading], tmp_path)
    assert [VALIDATION in note for note in some.notes()] == [True]
    page = report_on_comparison(some, tmp_path / "r.html").read_text()
    assert VALIDATION in page
    assert "read by no method" not in page.replace(VALIDATION, "")
    assert unread_beside_an_older_run(plain) == ()


def unread_beside_an_older_run(folder):
    """Records from before there was such a note have none."""
    record = {name: value for name, value in folder.read_json("run.json").items() if name != "unread"}
    return unread_by_all([folder.read_json("run.json"), record])
