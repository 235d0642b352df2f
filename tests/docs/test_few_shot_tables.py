"""Few-shot runs that are kept: the figures of their episodes, and nothing typed."""

import json
import sys

import pytest
from pages import ROOT, check_command

from weathered.core.settings import Settings
from weathered.recipe import DataOptions, Recipe
from weathered.training import train

sys.path.insert(0, str(ROOT / "docs"))
import few_shot


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    data = DataOptions(train="digits", limit=300, base_classes=5, ways=4, episodes=5, queries=5)
    use = ("tfh:training_episodes=20,generated=3,adapt_steps=1",)
    settings = Settings(epochs=1, batch_size=50)
    recipe = Recipe(data=data, use=use, model="cnn_small:width=8", settings=settings)
    return train(recipe, tmp_path_factory.mktemp("few"))


def test_the_kept_table_is_the_runs_own(run, tmp_path):
    kept = few_shot.keep(run.path, "Digits", "weathered train digits", "A note.")
    assert str(run.path.parent) not in json.dumps(kept)
    (tmp_path / "digits.json").write_text(json.dumps(kept))
    text = few_shot.tables(tmp_path)
    assert "### Digits {#digits}" in text
    assert "4-way, 5 episodes" in text
    own = run.read_json("audit.json")["few-shot"]["tables"][0]["rows"]
    lines = [[cell.strip(" `") for cell in line.split("|")[1:-1]] for line in text.splitlines() if line.startswith("|")]
    assert sorted(lines[2:]) == sorted(own)


def test_kept_runs_have_commands_that_exist_and_enough_episodes():
    paths = list(few_shot.KEPT.glob("*.json"))
    assert paths
    for path in paths:
        kept = json.loads(path.read_text())
        check_command(kept["command"])
        assert all(found["accuracy"][3] >= 600 for by in kept["methods"].values() for found in by.values())
        sums = [sum(found["accuracy"][0] for found in by.values()) for by in kept["methods"].values()]
        assert all(0 < value <= 2 for value in sums)
