"""A recipe with TFH: one table of all methods, resumed bit for bit, refused before training."""

import dataclasses
import json
import shutil

import pyarrow.parquet as pq
import pytest
import torch
from safetensors.torch import load_file

from weathered.arms import parse_arms, plan, refusals
from weathered.audit.labels.of_run import LabelOptions, audit_run_labels
from weathered.comparison import compare
from weathered.core.errors import DataError, Incompatible, SpecError, WeatheredError
from weathered.core.predict import eval_mode
from weathered.core.settings import Settings
from weathered.data.prepare import prepare
from weathered.fewshot import recipe_run
from weathered.fewshot.classifiers import LOGISTIC
from weathered.fewshot.recipe_run import fetcher, learn_few_shot, method_of
from weathered.loaded_run import load_run
from weathered.recipe import DataOptions, Recipe
from weathered.report.collect import report_on_comparison
from weathered.stats import mean_interval, paired_comparison
from weathered.store import RunFolder
from weathered.training import build_run, train

METHODS = ["tfh", "tfh-ft", LOGISTIC, "nearest centroid", "linear head"]
CHEAP = "tfh:training_episodes=120,generated=5,adapt_steps=2"


def recipe(*use: str, seed: int = 0, model: str = "cnn_small:width=8", **data) -> Recipe:
    given = {"train": "digits", "limit": 500, "base_classes": 5, "ways": 4, "episodes": 12, "queries": 5, **data}
    settings = Settings(epochs=2, batch_size=32, seed=seed, checkpoint_seconds=0)
    return Recipe(data=DataOptions(**given), use=use or (CHEAP,), model=model, settings=settings)


@pytest.fixture(scope="module")
def finished(tmp_path_factory) -> RunFolder:
    return train(recipe(), tmp_path_factory.mktemp("tfh"))


def same(one: RunFolder, other: RunFolder) -> bool:
    tables = [pq.read_table(folder.path / "episodes.parquet") for folder in (one, other)]
    weights = [load_file(folder.path / "hallucinator.safetensors") for folder in (one, other)]
    return (
        tables[0].equals(tables[1])
        and all(torch.equal(value, weights[1][name]) for name, value in weights[0].items())
        and one.read_json("audit.json") == other.read_json("audit.json")
    )


def test_the_folder_holds_one_table_of_all_methods(finished):
    audit = finished.read_json("audit.json")["few-shot"]
    table = audit["tables"][0]
    assert table["columns"] == ["method", "1-shot", "difference", "5-shot", "difference"]
    assert [row[0] for row in table["rows"]] == METHODS
    kept = pq.read_table(finished.path / "episodes.parquet").to_pylist()
    assert len(kept) == 2 * 5 * 12
    by: dict = {}
    for line in kept:
        by.setdefault((line["shots"], line["method"]), []).append(line["accuracy"])
    for row in table["rows"]:
        for column, shots in ((1, 1), (3, 5)):
            value, _, high, _ = mean_interval(by[shots, row[0]])
            assert row[column] == f"{value:.3f} ± {high - value:.3f}"
            if row[0] != LOGISTIC:
                found = paired_comparison(by[shots, row[0]], by[shots, LOGISTIC]).difference
                assert row[column + 1].startswith(f"{found.value:+.3f}")
    results = finished.read_json("run.json")["results"]
    assert results["5-shot accuracy"]["value"] == pytest.approx(mean_interval(by[5, "tfh-ft"]).value)
    assert results["5-shot accuracy"]["n"] == 12
    gain = results[f"1-shot gain over {LOGISTIC}"]
    assert gain["value"] == pytest.approx(mean_interval(by[1, "tfh-ft"]).value - mean_interval(by[1, LOGISTIC]).value)
    assert [chart["kind"] for chart in audit["figures"]] == ["bar", "bar"]


def test_the_rest_of_the_run_is_about_the_base_classes(finished):
    run = load_run(finished.path)
    assert len(run.splits.train.class_names) == 5
    assert set(run.splits.train.class_names).isdisjoint(run.splits.novel[0].class_names)
    record = finished.read_json("run.json")
    assert record["classes"] == list(run.splits.train.class_names)
    assert record["results"]["accuracy"]["n"] == len(run.splits.test)
    assert run.predict(run.splits.test).shape == (len(run.splits.test), 5)
    assert record["resolved"]["data"]["shots"] == [1, 5]


def test_the_same_recipe_gives_the_same_figures_and_other_seeds_do_not(finished, tmp_path):
    again = train(recipe(), tmp_path)
    assert again.path.name == finished.path.name
    assert same(finished, again)
    other = train(recipe(seed=1), tmp_path)
    assert not same(finished, other)


@pytest.mark.parametrize("stop", ["training", "generator", "episodes"])
def test_it_resumes_where_it_was_stopped(finished, tmp_path, monkeypatch, stop):
    with monkeypatch.context() as patch:
        observer = None
        if stop == "training":

            def observer(run):
                if run.step == 5:
                    raise KeyboardInterrupt

        elif stop == "generator":
            whole = recipe_run.TFH.partial_fit

            def partial(self, *arguments):
                if self._trained is not None:
                    raise KeyboardInterrupt
                return whole(self, *arguments)

            patch.setattr(recipe_run.TFH, "partial_fit", partial)
        else:
            patch.setattr(recipe_run, "run_episodes", lambda *_, **__: (_ for _ in ()).throw(KeyboardInterrupt()))
        with pytest.raises(KeyboardInterrupt):
            train(recipe(), tmp_path, observer=observer)
    folder = RunFolder(tmp_path / recipe().hash)
    assert folder.state == "incomplete"
    steps, seen = [], []
    whole = recipe_run.TFH.partial_fit
    monkeypatch.setattr(recipe_run.TFH, "partial_fit", lambda self, *a: seen.append(self.episode_) or whole(self, *a))
    with pytest.raises(WeatheredError, match=r"unfinished run of this recipe. Add --resume"):
        train(recipe(), tmp_path, resume=False)
    train(recipe(), tmp_path, observer=lambda run: steps.append(run.step))
    assert same(finished, folder)
    assert bool(steps) == (stop == "training")
    assert seen == {"training": [0, 100], "generator": [100], "episodes": []}[stop]
    assert not folder.checkpoints.exists()


def test_the_network_stands_still_while_the_generator_learns(finished):
    run = load_run(finished.path)
    network = run.model.train()
    before = {name: value.clone() for name, value in network.state_dict().items()}
    method = method_of(run.recipe)
    learn_few_shot(method, network, run.splits, run.recipe.data.episode_options, 0)
    assert network.training
    assert all(torch.equal(value, before[name]) for name, value in network.state_dict().items())
    assert not any(parameter.grad is not None for parameter in network.parameters())


def test_features_are_those_of_evaluation_mode_kept_or_computed(finished, monkeypatch):
    run = load_run(finished.path)
    rows = torch.tensor([3, 0, 900, 901, len(run.splits.novel[0]), 3])[[0, 1, 4, 5]]
    kept = fetcher(run.model, run.splits.novel)
    monkeypatch.setattr(recipe_run, "ROOM", 1)
    computed = fetcher(run.model.train(), run.splits.novel)
    assert torch.allclose(kept(rows), computed(rows), atol=1e-5)
    first, second = run.splits.novel
    with torch.no_grad(), eval_mode(run.model):
        assert torch.allclose(kept(rows)[1], run.model.forward_features(first.floats(torch.tensor([0])))[0], atol=1e-5)
        assert torch.allclose(kept(rows)[2], run.model.forward_features(second.floats(torch.tensor([0])))[0], atol=1e-5)


def test_the_report_shows_the_table(finished, tmp_path):
    from weathered.comparison import comparison_of

    page = report_on_comparison(comparison_of([finished], tmp_path), tmp_path / "report.html").read_text()
    assert "Learning new classes from a few samples" in page
    assert "1-shot accuracy on novel classes" in page
    for row in finished.read_json("audit.json")["few-shot"]["tables"][0]["rows"]:
        assert all(cell in page for cell in row)


def test_arms_are_ranked_by_episodes(tmp_path):
    arms = parse_arms(f"{CHEAP},tfh:training_episodes=1,generated=0,adapt_steps=0")
    shared = dataclasses.replace(recipe(), use=())
    for made in (item for recipes in plan(shared, arms, (0,)).values() for item in recipes):
        train(made, tmp_path)
    result = compare(shared, arms, seeds=(0,), out=tmp_path, workers=1, metric="5-shot accuracy")
    assert result.metric.name == "5-shot accuracy"
    plain = next(arm for arm in result.arms if "generated=0" in arm.name)
    assert plain.values[f"5-shot gain over {LOGISTIC}"] == [0.0]
    assert compare(shared, arms, seeds=(0,), out=tmp_path, workers=1).metric.name == "1-shot accuracy"


def test_arms_with_and_without_few_shots_get_their_own_data():
    shared = Recipe(data=DataOptions(train="digits"), model="cnn_small:width=8")
    planned = plan(shared, parse_arms("ce,tfh,mixup,tfh:vector=true"), (0,))
    assert refusals(planned, shared.data) == {}
    with_ways = dataclasses.replace(shared, data=DataOptions(train="digits", ways=4))
    found = refusals(plan(with_ways, parse_arms("tfh,ce"), (0,)), with_ways.data)
    assert set(found) == {"ce"}
    assert "ways would do nothing without a few-shot method" in str(found["ce"])


@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        (
            {"train": "shapes:40", "limit": None, "model": "unet:width=8,depth=1"},
            Incompatible,
            r"one label for each sample",
        ),
        ({"model": "mlp:width=8"}, Incompatible, r"TFH: features of shape \(8,\) are pooled, but TFH makes maps"),
        ({"base_classes": 4}, Incompatible, r"take ways=5 base classes, but there are 4; raise --base-classes"),
        ({"base_classes": 9}, SpecError, r"need base_classes in \[2, 6\], got 9"),
        ({"queries": 400}, DataError, r"takes 405 rows of a novel class"),
        ({"model": "timm:convnext_atto", "image_size": 64}, Incompatible, r"an output of relu is never negative"),
        ({"model": "timm:resnet18", "image_size": 32}, Incompatible, r"\(512, 1, 1\) are pooled"),
        ({"model": "timm:deit_tiny_patch16_224", "image_size": 32}, Incompatible, r"feature maps \(c, h, w\)"),
        ({"phases": 2}, SpecError, r"phases need an incremental learner"),
    ],
)
def test_what_cannot_work_is_refused_before_training(tmp_path, changes, error, message):
    with pytest.raises(error, match=message):
        train(recipe(**changes), tmp_path)
    assert not list(tmp_path.glob("*/metrics.jsonl"))


def test_vectors_work_where_there_are_no_maps(tmp_path):
    vector = CHEAP + ",vector=true"
    folder = train(recipe(vector, model="mlp:width=8"), tmp_path)
    rows = folder.read_json("audit.json")["few-shot"]["tables"][0]["rows"]
    assert [row[0] for row in rows] == ["tfh (vectors)", "tfh-ft (vectors)", *METHODS[2:]]


@pytest.mark.parametrize("part", ["ldam-drw", "mixup", "logit-adjustment", "tau-normalisation"])
def test_the_network_may_be_trained_by_any_method(part):
    """Base classes are all there is to training, so methods that count classes fit, too."""
    made = recipe(CHEAP, part)
    splits = prepare(made)
    run = build_run(made, splits)
    assert run.train.num_classes == 5
    assert bool((run.train.class_counts > 0).all())


def test_protocols_are_refused_without_their_methods():
    for data, message in (
        ({"ways": 3}, r"ways would do nothing without a few-shot method"),
        ({"shots": (1,), "episodes": 9}, r"shots and episodes would do nothing"),
        ({"base_classes": 4}, r"base_classes need an incremental learner or a few-shot method"),
    ):
        with pytest.raises(SpecError, match=message):
            prepare(Recipe(data=DataOptions(train="digits", **data)))
    with pytest.raises(SpecError, match=r"acil and tfh both take over the trained network. Drop one"):
        prepare(Recipe(data=DataOptions(train="digits"), use=("acil", "tfh")))


@pytest.mark.parametrize(
    ("data", "message"),
    [
        ({"shots": ()}, r"shots must be whole numbers, as in 1,5, got \[\]"),
        ({"shots": (1, 1)}, r"shots must be different numbers"),
        ({"shots": (0,)}, r"shots must be at least 1, got 0"),
        ({"shots": ("a",)}, r"shots must be whole numbers"),
        ({"ways": 1}, r"ways must be at least 2"),
        ({"episodes": 1}, r"episodes must be at least 2"),
    ],
)
def test_options_of_episodes_are_checked(data, message):
    with pytest.raises(SpecError, match=message):
        DataOptions(**data)


def test_defaults_and_their_values_name_one_run_and_other_runs_keep_their_names():
    spelled = recipe(ways=5, shots=(1, 5), queries=15, episodes=600)
    assert recipe(ways=None, queries=None, episodes=None).hash == spelled.hash
    plain = Recipe(data=DataOptions(train="digits"))
    assert not {"ways", "shots", "queries", "episodes"} & set(plain.canonical()["data"])
    assert Recipe.from_tree(json.loads(json.dumps(spelled.to_tree()))) == spelled


def test_the_label_audit_is_refused(finished):
    with pytest.raises(Incompatible, match=r"each fold would be a few-shot run of its own. Train a recipe without tfh"):
        audit_run_labels(load_run(finished.path), LabelOptions())


COMMAND = (
    *("train", "digits", "--limit", "500", "--model", "cnn_small:width=8", "--epochs", "1", "--use", CHEAP),
    *("--base-classes", "5", "--ways", "4", "--shots", "1,3", "--episodes", "6", "--queries", "5"),
)


def test_the_command_prints_the_table(weathered):
    code, out, _ = weathered(*COMMAND)
    assert code == 0
    assert "4-way accuracy on 5 novel classes and difference to logistic regression" in out
    for name in METHODS:
        assert any(line.startswith(name) and line.count("±") >= 2 for line in out.splitlines()), name
    assert "3-shot accuracy" in out
    code, out, _ = weathered(*COMMAND, "--json")
    assert [row[0] for row in json.loads(out)["few-shot"][0]["rows"]] == METHODS


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--shots", "1;5"), "--shots takes whole numbers, as in 1,5, got '1;5'"),
        (("--shots", "0"), "shots must be at least 1, got 0"),
        (("--ways", "7"), "7-way episodes of 10 classes need base_classes in [2, 3], got 5"),
        (("--queries", "0"), "queries must be at least 1, got 0"),
        (("--use", "acil"), "tfh and acil both take over the trained network"),
    ],
)
def test_wrong_options_are_one_sentence(weathered, options, message):
    code, _, err = weathered(*COMMAND, *options)
    assert code == 2
    assert message in err
    assert "Traceback" not in err
    assert len(err.strip().splitlines()) == 1


def test_a_damaged_state_of_the_generator_is_said(finished, tmp_path, monkeypatch):
    with monkeypatch.context() as patch:
        patch.setattr(recipe_run, "run_episodes", lambda *_, **__: (_ for _ in ()).throw(KeyboardInterrupt()))
        with pytest.raises(KeyboardInterrupt):
            train(recipe(), tmp_path)
    kept = next((tmp_path / recipe().hash / "checkpoint" / "few-shot").glob("step-*"))
    (kept / "tensors.safetensors").write_bytes(b"cut")
    with pytest.raises(WeatheredError, match=r"is damaged: tensors.safetensors was cut or changed. Delete"):
        train(recipe(), tmp_path)
    shutil.rmtree(kept)
    assert same(finished, train(recipe(), tmp_path))
