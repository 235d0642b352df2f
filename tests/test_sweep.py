"""Sweeps and comparisons: the same results from every launcher, finished runs are kept, failures are told."""

import json

import pytest
import torch
from safetensors.torch import load_file

from weathered.arms import parse_arms, plan, refusals
from weathered.comparison import compare, comparison_of, read_comparison
from weathered.core.errors import DataError, SpecError, WeatheredError
from weathered.core.settings import Settings
from weathered.loaded_run import load_run
from weathered.metrics import METRICS
from weathered.recipe import DataOptions, Recipe
from weathered.report.collect import report_on_comparison
from weathered.store import find_runs
from weathered.sweep import run_all
from weathered.training import train


def recipe(**settings) -> Recipe:
    return Recipe(
        data=DataOptions(train="digits", limit=300, make=("symmetric:rate=0.2",)),
        model="mlp:width=32",
        settings=Settings(**{"epochs": 2, "batch_size": 32, **settings}),
    )


@pytest.fixture
def threads():
    """Sets the number of threads for one test: sums over threads depend on it."""
    before = torch.get_num_threads()
    yield torch.set_num_threads
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def compared(tmp_path_factory):
    out = tmp_path_factory.mktemp("compared")
    seen = []
    result = compare(recipe(), parse_arms("ce,logitclip,mixup"), (0, 1), out, watcher=seen.append)
    return result, out, seen


def test_every_arm_ran_with_every_seed_and_the_watcher_was_told(compared):
    result, out, seen = compared
    assert [arm.name for arm in result.arms] == ["ce", "logitclip", "mixup"]
    assert all(len(arm.values["accuracy"]) == 2 for arm in result.arms)
    assert len(find_runs([out])) == 6
    assert sum(status.ended for status in seen) == 6
    assert not result.failed


def test_arms_of_one_seed_share_data_and_differ_only_in_method(compared):
    result, *_ = compared
    records = [arm.folders[0].read_json("run.json") for arm in result.arms]
    assert len({json.dumps(record["resolved"]["data"]) for record in records}) == 1
    assert len({tuple(record["data_notes"]) for record in records}) == 1
    assert len({record["hash"] for record in records}) == 3


def test_a_finished_comparison_is_read_and_not_trained_again(compared):
    result, out, _ = compared
    stamps = {folder.path: (folder.path / "done").stat().st_mtime_ns for folder in find_runs([out])}
    again = compare(recipe(), parse_arms("ce,logitclip,mixup"), (0, 1), out)
    assert {folder.path: (folder.path / "done").stat().st_mtime_ns for folder in find_runs([out])} == stamps
    assert again.to_json() == result.to_json()
    assert read_comparison(result.path).to_json()["ranking"] == result.to_json()["ranking"]


def test_runs_given_one_by_one_become_the_same_comparison(compared):
    result, out, _ = compared
    found = comparison_of(find_runs([out]), out)
    values = {tuple(sorted(arm.values["accuracy"])) for arm in found.arms}
    assert values == {tuple(sorted(arm.values["accuracy"])) for arm in result.arms}
    assert found.seeds == (0, 1)


@pytest.mark.parametrize("name", ["balanced accuracy", "expected calibration error", "negative log likelihood"])
def test_any_figure_of_the_runs_ranks_in_its_own_direction(compared, name):
    _, out, _ = compared
    found = compare(recipe(), parse_arms("ce,logitclip,mixup"), (0, 1), out, metric=name)
    means = [arm.estimate(found.metric).value for arm in found.ranking()]
    assert means == sorted(means, reverse=METRICS[name].higher_is_better)
    assert read_comparison(found.path).metric == METRICS[name]
    page = report_on_comparison(found, out / "report.html").read_text()
    assert f"test {name} after the last epoch" in page


def test_the_direction_of_each_metric_is_that_of_the_audits(compared):
    result, *_ = compared
    audits = result.arms[0].folders[0].read_json("audit.json").values()
    figures = {name: figure for audit in audits for name, figure in audit["summary"].items()}
    assert len(figures) > 4
    assert {name: METRICS[name].higher_is_better for name in figures} == {
        name: figure["higher_is_better"] for name, figure in figures.items()
    }


def test_a_metric_that_is_not_known_or_not_measured_is_refused(compared, tmp_path):
    _, out, _ = compared
    with pytest.raises(SpecError, match="no metric 'acuracy'. Did you mean 'accuracy'"):
        compare(recipe(), parse_arms("ce,logitclip"), (0,), tmp_path, metric="acuracy")
    assert not any(tmp_path.iterdir())
    with pytest.raises(DataError, match="not every run of arm 'ce' has the metric 'tail accuracy'"):
        compare(recipe(), parse_arms("ce,logitclip,mixup"), (0, 1), out, metric="tail accuracy")
    with pytest.raises(DataError, match="there is no 'mean IoU' of these data"):
        compare(recipe(), parse_arms("ce,logitclip,mixup"), (0, 1), out, metric="mean IoU")


def test_a_worker_gives_the_weights_of_a_run_in_this_process(compared, tmp_path, threads):
    result, *_ = compared
    folder = result.arm("logitclip").folders[1]
    threads(folder.read_json("run.json")["threads"])
    here = train(Recipe.from_tree(folder.read_json("run.json")["recipe"]), tmp_path)
    expected, found = load_file(folder.weights), load_file(here.weights)
    assert all(expected[key].equal(found[key]) for key in expected)


def test_a_finished_run_is_read_back_with_its_predictions(compared):
    result, *_ = compared
    folder = result.arm("mixup").folders[0]
    loaded = load_run(folder.path)
    accuracy = float((loaded.predict(loaded.splits.test).argmax(1) == loaded.splits.test.labels).double().mean())
    assert accuracy == folder.read_json("run.json")["results"]["accuracy"]["value"]


def test_an_arm_that_cannot_be_built_is_refused_before_any_run(tmp_path):
    arms = parse_arms("ce,smoothmix+logitclip")
    with pytest.raises(WeatheredError, match=r"arm 'smoothmix\+logitclip': LogitClip fills the slot 'loss'"):
        compare(recipe(), arms, (0,), tmp_path)
    assert not list(tmp_path.glob("*/run.json"))
    with pytest.raises(SpecError, match="at least two arms"):
        compare(recipe(), parse_arms("ce"), (0,), tmp_path)
    with pytest.raises(SpecError, match="baseline 'mixup' is not among the arms"):
        compare(recipe(), parse_arms("ce,logitclip"), (0,), tmp_path, baseline="mixup")
    assert not refusals(plan(recipe(), parse_arms("ce,mixup"), (0,)))


def test_a_run_that_diverges_is_reported_and_the_others_are_kept(tmp_path):
    hot = recipe(lr=1e30)
    outcomes = run_all([hot, recipe()], tmp_path, workers=1)
    assert outcomes[0].error is not None
    assert "the loss is" in outcomes[0].error
    assert "Lower --lr" in outcomes[0].error
    assert outcomes[1].error is None
    assert outcomes[1].folder.state == "done"


def test_a_damaged_weights_file_is_one_sentence(tmp_path):
    folder = train(recipe(epochs=1), tmp_path)
    folder.weights.write_bytes(folder.weights.read_bytes()[:100])
    with pytest.raises(WeatheredError, match=r"weights.safetensors is damaged or belongs to another recipe"):
        load_run(folder.path)
    with pytest.raises(WeatheredError, match=r"is not a run folder"):
        load_run(tmp_path)


def test_ray_trains_the_same_weights(tmp_path):
    pytest.importorskip("ray", reason="Ray is an extra")
    recipes = [recipe(epochs=1), recipe(epochs=1, seed=1)]
    local = run_all(recipes, tmp_path / "local", workers=2)
    remote = run_all(recipes, tmp_path / "ray", launcher="ray")
    assert [outcome.error for outcome in remote] == [None, None]
    for one, other in zip(local, remote, strict=True):
        expected, found = load_file(one.folder.weights), load_file(other.folder.weights)
        assert all(expected[key].equal(found[key]) for key in expected)


def test_a_run_on_changed_data_is_not_taken_for_this_one(tmp_path):
    table = tmp_path / "t.csv"
    table.write_text("\n".join(["a,b,label"] + [f"{i},{i % 7},{i % 2}" for i in range(40)]))
    made = Recipe(data=DataOptions(train=str(table)), model="mlp:width=8", settings=Settings(epochs=1, batch_size=8))
    folder = train(made, tmp_path / "runs")
    assert train(made, tmp_path / "runs").path == folder.path
    table.write_text(table.read_text() + "\n99,1,1")
    for again in (lambda: train(made, tmp_path / "runs"), lambda: load_run(folder.path)):
        with pytest.raises(WeatheredError, match=r"the data have changed since .* was trained on them"):
            again()


def test_a_run_begun_with_other_code_is_not_resumed(tmp_path):
    made = recipe(checkpoint_seconds=0)

    def stop(run):
        if run.step == 3:
            raise RuntimeError("stopped")

    with pytest.raises(RuntimeError, match="stopped"):
        train(made, tmp_path, observer=stop)
    path = tmp_path / made.hash / "run.json"
    record = json.loads(path.read_text())
    path.write_text(json.dumps({**record, "versions": {**record["versions"], "torch": "0.1"}}))
    with pytest.raises(WeatheredError, match=r"was begun with other code \(torch changed since\)"):
        train(made, tmp_path)
    path.write_text(json.dumps(record))
    assert train(made, tmp_path).state == "done"


def test_comparing_runs_on_other_data_is_refused(tmp_path):
    one = train(recipe(epochs=1), tmp_path)
    other = Recipe(data=DataOptions(train="digits", limit=200), model="mlp:width=32", settings=Settings(epochs=1))
    with pytest.raises(WeatheredError, match="was trained on other data than"):
        comparison_of([one, train(other, tmp_path)], tmp_path)
