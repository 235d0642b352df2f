"""Reports of real runs: what a reader is told of a single run, of curves, and of classes that arrive later."""

import re
from html import unescape
from pathlib import Path

import pytest

from weathered.comparison import comparison_of
from weathered.core.settings import Settings
from weathered.recipe import DataOptions, Recipe
from weathered.report.collect import report_on_comparison
from weathered.report.objectives import Objective, loss_note, objective_of
from weathered.store import RunFolder
from weathered.training import train

DIFFERS = "The training objective differs between the arms"


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """A function: methods, seed -> a finished run of one epoch on sixty digits."""
    out = tmp_path_factory.mktemp("runs")

    def run(*use: str, seed: int = 0, **data) -> RunFolder:
        options = DataOptions(train="digits", limit=60, seed=0, **data)
        settings = Settings(epochs=1, batch_size=32, seed=seed)
        return train(Recipe(data=options, model="mlp:width=8", use=use, settings=settings), out)

    return run


def page(folders, path: Path) -> str:
    """The report on these runs as a reader sees it, without scripts and styles."""
    html = report_on_comparison(comparison_of(folders, path.parent), path).read_text()
    shown = re.sub(r"<(script|style)>.*?</\1>", " ", html[html.index("<title>") :], flags=re.S)
    return re.sub(r"\s+", " ", unescape(re.sub(r"<[^>]+>", " ", shown)))


@pytest.mark.parametrize("seeds", [1, 2])
def test_a_report_of_one_arm_ranks_nothing(runs, tmp_path, seeds):
    shown = page([runs(seed=seed) for seed in range(seeds)], tmp_path / "r.html")
    assert "there is nothing to compare with" in shown
    assert "cross-entropy reaches" in shown
    assert "whose label the model doubts most" in shown
    assert ("result is over all 2" in shown) == (seeds == 2)
    assert not re.search(r"ranking|\branks?\b|\bbest\b|beats|winner|baseline|ahead|behind", shown, re.I)


def test_a_report_of_two_arms_does_rank(runs, tmp_path):
    shown = page([runs(), runs("mixup")], tmp_path / "r.html")
    assert "Ranking" in shown
    assert "One seed each, so without intervals." in shown


@pytest.mark.parametrize(
    ("others", "note"),
    [
        (["jocor"], f"{DIFFERS}: a curve of loss compares with itself only, not with the others. Only that of cross-"),
        (["mixup"], DIFFERS),
        (["logitclip"], DIFFERS),
        (["supervised"], ""),
        (["plain"], ""),
    ],
)
def test_losses_of_other_objectives_are_not_to_be_compared(runs, tmp_path, others, note):
    folders = [runs(), runs(*others)]
    shown = page(folders, tmp_path / "r.html")
    assert note in shown
    assert (DIFFERS in shown) == bool(note)


def test_a_shared_objective_other_than_cross_entropy_is_named_but_compared(runs):
    records = [runs("mixup", seed=seed).read_json("run.json") for seed in (0, 1)]
    objectives = {str(i): objective_of(record) for i, record in enumerate(records)}
    assert objectives["0"] == objectives["1"]
    assert loss_note(objectives).startswith("It is the objective of the methods in use")
    other = objective_of(runs("mixup:alpha=8").read_json("run.json"))
    assert loss_note({**objectives, "2": other}).startswith(DIFFERS)
    assert loss_note({"a": Objective((), None)}) == ""


def test_the_curve_of_a_learner_is_said_to_be_its_base_networks(runs, tmp_path):
    folder = runs("acil:expansion=32", base_classes=4, phases=3)
    shown = page([folder], tmp_path / "r.html")
    curve = "The curve of acil:expansion=32"
    assert f"{curve} scores its base network, which learns the 4 base classes only, on test images of all 10;" in shown
    assert f"{curve} is the loss of its base network" in shown
    assert "of the 4 base classes, 10 classes in all" in shown
    assert "reaches" in shown
    assert "test accuracy after the last phase" in shown
    assert "none can be called worst" in shown
    together = page([runs(), runs("acil:expansion=32")], tmp_path / "both.html")
    assert DIFFERS in together
    assert "The curve of cross-entropy" not in together


def test_made_flaws_are_part_of_the_datas_name(runs, tmp_path):
    shown = page([runs(make=("symmetric:rate=0.4",))], tmp_path / "r.html")
    assert "digits with symmetric:rate=0.4, 60 training samples of 10 classes" in shown
