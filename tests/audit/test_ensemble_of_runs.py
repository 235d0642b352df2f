"""An ensemble of runs is audited on rows that none of its members was trained on, or not at all."""

import pytest

from weathered.audit.ood_of_runs import ood
from weathered.audit.options import AuditOptions
from weathered.core.errors import DataError
from weathered.loaded_run import load_run
from weathered.recipe import DataOptions, Recipe
from weathered.training import train


def trained(out, run_seed, **data):
    recipe = Recipe(data=DataOptions(limit=200, **data), model="mlp:width=16").with_settings(epochs=1, seed=run_seed)
    return load_run(train(recipe, out).path)


def test_members_with_splits_of_their_own_are_refused(tmp_path):
    first, second = (trained(tmp_path, seed) for seed in (0, 1))
    assert set(first.splits.test.source_rows.tolist()) & set(second.splits.train.source_rows.tolist())
    with pytest.raises(DataError, match="other test rows than .* --data-seed and several --seed"):
        ood([first, second], AuditOptions())


def test_members_with_one_split_are_combined(tmp_path):
    runs = [trained(tmp_path, seed, seed=7) for seed in (0, 1)]
    result = ood(runs, AuditOptions(scores=("msp",), limit=100))
    assert any("zode of msp" in name for name in result.summary)
    held = set(runs[0].splits.test.source_rows.tolist())
    assert not any(held & set(run.splits.train.source_rows.tolist()) for run in runs)


def test_members_on_other_data_are_refused(tmp_path):
    table = tmp_path / "t.csv"
    table.write_text("x,label\n" + "\n".join(f"{i},{i % 10}" for i in range(100)) + "\n")
    runs = [trained(tmp_path, 0, seed=7), trained(tmp_path, 0, seed=7, train=f"csv:{table}")]
    with pytest.raises(DataError, match="other test rows"):
        ood(runs, AuditOptions())
