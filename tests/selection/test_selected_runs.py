"""Finished runs: which rows choose, what is refused, and what the command prints and writes."""

import json
from dataclasses import replace

import pytest
import torch
from torch import nn

from weathered.core.errors import DataError, Incompatible, SpecError
from weathered.core.predict import eval_mode
from weathered.core.rng import generator
from weathered.data.sources import load, load_pair
from weathered.loaded_run import load_run
from weathered.recipe import DataOptions, Recipe
from weathered.selection.laws import equal_cells
from weathered.selection.of_runs import held_out, mean_accuracy, measure_run, select_runs
from weathered.selection.ood_expansion_selection import ExpansionSelection, variation
from weathered.store import RunFolder
from weathered.training import train

DATA = DataOptions("domains:160", validation=0.2, seed=0)
METHOD = ExpansionSelection(min_count=20)
PARTS = {"group_column": "site", "rows": "part=train", "test_rows": "part=test", "seed": 0}


def finished(out, *use, data=DATA, seed=0, lr=0.05, model="mlp:width=8,depth=1,norm=true"):
    recipe = Recipe(data, model=model, use=use).with_settings(epochs=2, seed=seed, lr=lr, evaluations=0)
    return train(recipe, out)


@pytest.fixture(scope="module")
def pool(tmp_path_factory):
    """Three runs on the same rows."""
    out = tmp_path_factory.mktemp("pool")
    return [finished(out), finished(out, "mixup"), finished(out, seed=1, lr=0.5)]


def write_table(path, domains=("north", "south"), test_domains=(), rows=240):
    """A csv file of two classes whose rows have a site and a part, train or test."""
    rng = generator(0, "table")
    y = torch.randint(2, (rows,), generator=rng)
    x = torch.randn(rows, 3, generator=rng) + 2 * y[:, None]
    sites, lines = (*domains, *test_domains), ["a,b,c,site,part,label"]
    for i in range(rows):
        part = "test" if i % 4 == 0 else "train"
        site = sites[i // 4 % len(sites)] if part == "test" else domains[i % len(domains)]
        lines.append(",".join([*(f"{value:.4f}" for value in x[i].tolist()), site, part, str(int(y[i]))]))
    path.write_text("\n".join(lines) + "\n")
    return str(path)


def test_figures_are_those_of_validation_rows_and_training_features_in_evaluation_mode(pool):
    found = select_runs(pool, METHOD)
    for folder, candidate in zip(pool, found.candidates, strict=True):
        run = load_run(folder.path)
        held, whole = run.splits.validation, run.splits.train
        assert held is not None
        rows = equal_cells(whole.labels, whole.extra["group"], 20, generator(0, "selection cells"))
        x, y, e = whole.floats(rows), whole.labels[rows], whole.extra["group"][rows]
        right = (run.predict(held).argmax(1) == held.labels).double()
        shares = [right[held.extra["group"] == g].mean() for g in range(3)]
        assert candidate.accuracy == pytest.approx(float(sum(shares) / 3))
        network = run.model
        with eval_mode(network), torch.no_grad():
            by_hand = network.forward_head(network.forward_features(x), pre_logits=True)
        network.train()
        training = network.forward_head(network.forward_features(x), pre_logits=True)
        assert torch.equal(candidate.stability.variation, variation(by_hand, y, e, min_count=20))
        assert not torch.equal(candidate.stability.variation, variation(training.detach(), y, e, min_count=20))
    expected = METHOD.choose([c.accuracy for c in found.candidates], [c.stability for c in found.candidates])
    assert found.choice.chosen == expected.chosen
    assert found.ranking[0] == found.choice.chosen
    assert sorted(found.ranking) == [0, 1, 2]
    assert "on 192" not in found.notes[0]
    assert "validation rows; no test row was read" in found.notes[1]
    assert "3 runs of 3 recipes" in found.notes[2]


def test_domains_count_alike_in_accuracy():
    logits = torch.tensor([[1.0, 0.0]] * 5)
    assert mean_accuracy(logits, torch.tensor([0, 0, 0, 1, 1]), torch.tensor([4, 4, 4, 4, 9])) == pytest.approx(0.375)


def test_rows_of_other_domains_never_choose(tmp_path):
    path = write_table(tmp_path / "t.csv", test_domains=("east", "west"))
    data = DataOptions(path, **PARTS)
    run = load_run(finished(tmp_path, data=data).path)
    held, notes = held_out(run.splits)
    assert {run.splits.train.group_names[g] for g in held.extra["group"].tolist()} == {"north", "south"}
    assert 0 < len(held) < len(run.splits.test)
    assert "no longer unseen data" in notes[0]
    assert f"{len(run.splits.test) - len(held)} test rows of other domains were not read" in notes[0]
    # the test set of `domains` is all of another domain
    other = load_run(finished(tmp_path, data=DataOptions("domains:60", seed=0)).path)
    with pytest.raises(DataError, match="all test rows are of other domains.*--validation"):
        held_out(other.splits)


def test_a_domain_without_held_out_rows_is_named(pool):
    splits = load_run(pool[0].path).splits
    kept = splits.validation.select(splits.validation.extra["group"] != 1)
    _, notes = held_out(splits._replace(validation=kept))
    assert "Domains without held-out rows count for no accuracy: 'strength 0.75'." in notes


def test_runs_on_other_rows_labels_or_groups_are_refused(pool, tmp_path):
    other_seed = finished(tmp_path, data=DataOptions("domains:160", validation=0.2, seed=1))
    with pytest.raises(DataError, match="other training rows than .* one --data-seed and several --seed"):
        select_runs([pool[0], other_seed], METHOD)
    noisy = finished(tmp_path, data=DataOptions("domains:160", validation=0.2, seed=0, make=("symmetric:rate=0.2",)))
    with pytest.raises(DataError, match="trained on other data than .* they differ in make"):
        select_runs([pool[0], noisy], METHOD)


def test_auxiliary_data_may_differ(pool, tmp_path):
    beside = finished(tmp_path, data=DataOptions("domains:160", validation=0.2, seed=0, aux=("ood=gaussian:size=40",)))
    assert len(select_runs([pool[0], beside], METHOD).candidates) == 2


def test_what_cannot_be_chosen_among_is_refused(pool, tmp_path):
    with pytest.raises(SpecError, match="one run, so there is nothing to choose"):
        select_runs(pool[:1], METHOD)
    with pytest.raises(SpecError, match="a run is named twice"):
        select_runs([pool[0], RunFolder(pool[0].path / ".." / pool[0].path.name)], METHOD)
    begun = RunFolder(tmp_path / "begun")
    begun.write_json("run.json", pool[0].read_json("run.json"))
    with pytest.raises(DataError, match="begun is not finished.*--resume', or leave it out"):
        select_runs([pool[0], begun], METHOD)
    plain = [finished(tmp_path, data=DataOptions(limit=100, seed=0), seed=seed) for seed in (0, 1)]
    with pytest.raises(DataError, match="no groups, which are the domains here; train with --group-column"):
        select_runs(plain, METHOD)
    with pytest.raises(DataError, match="min_count = 100 samples in every domain"):
        select_runs(pool, ExpansionSelection(min_count=100))
    with pytest.raises(DataError, match=r"no run has a feature with an informativeness of 1 or more, 0\.\d+ at most"):
        select_runs(pool, ExpansionSelection(min_count=20, delta=1))


def test_networks_without_features_are_refused(tmp_path):
    data = DataOptions(write_table(tmp_path / "t.csv"), **PARTS, validation=0.2)
    runs = [finished(tmp_path, data=data, seed=seed) for seed in (0, 1)]
    assert select_runs(runs, METHOD).choice.chosen in (0, 1)
    loaded = load_run(runs[0].path)
    bare = nn.Sequential(nn.Linear(3, 2))
    with pytest.raises(Incompatible, match="has no forward_features and forward_head"):
        measure_run(replace(loaded, model=bare), loaded.splits.validation, torch.arange(40), METHOD)


@pytest.mark.parametrize(
    ("data", "use", "model"),
    [
        (DataOptions(limit=100, seed=0), "acil:expansion=16", "mlp:width=8"),
        (DataOptions("shapes:24", seed=0), "label-smoothing", "unet:width=4,depth=1"),
    ],
)
def test_runs_that_are_no_classifiers_of_all_classes_are_refused(data, use, model, tmp_path):
    runs = [finished(tmp_path, use, data=data, model=model, seed=seed) for seed in (0, 1)]
    with pytest.raises(Incompatible, match="among classifiers of one label for each sample, trained on all classes"):
        select_runs(runs, METHOD)


def test_one_domain_leaves_accuracy_alone_and_that_is_said(tmp_path):
    data = DataOptions(write_table(tmp_path / "t.csv", ("north",)), **PARTS, validation=0.2)
    found = select_runs([finished(tmp_path, data=data, seed=seed) for seed in (0, 1)], METHOD)
    assert [c.stability.mean_variation for c in found.candidates] == [0, 0]
    assert found.choice.chosen == found.choice.most_accurate
    assert "All training rows are of one domain, 'north', so every variation is 0" in found.notes[0]


def test_the_source_of_domains():
    train_set, test_set = load_pair("domains:300")
    assert (len(train_set), len(test_set)) == (900, 300)
    assert train_set.group_counts.tolist() == [300, 300, 300, 0]
    assert test_set.group_counts.tolist() == [0, 0, 0, 300]
    assert torch.equal(load("domains:300").floats(torch.arange(900)), train_set.floats(torch.arange(900)))
    for data, strengths in ((train_set, {0: 0.5, 1: 0.75, 2: 1.0}), (test_set, {3: -0.3})):
        x, sign, group = data.floats(torch.arange(len(data))), 2.0 * data.labels - 1, data.extra["group"]
        for code, strength in strengths.items():
            assert data.group_names[code] == f"strength {strength:g}"
            chosen = group == code
            slopes = (x[chosen] * sign[chosen, None]).mean(0)
            spread = (x[chosen] - slopes * sign[chosen, None]).std(0)
            assert slopes.tolist() == pytest.approx([0.9] * 3 + [strength] * 3, abs=0.3)
            assert spread.tolist() == pytest.approx([1.2] * 3 + [0.6] * 3, rel=0.2)
    for wrong in ("domains:1", "domains:many", "domains:200000"):
        with pytest.raises(DataError, match=r"a number of rows of each domain in \[2, 100000\]"):
            load(wrong)
    with pytest.raises(DataError, match="no columns to choose rows, groups or captions by"):
        load("domains:20", group_column="site")


def test_the_command_prints_the_choice_and_writes_it(weathered, pool, tmp_path):
    paths = [str(folder.path) for folder in pool]
    code, out, err = weathered("select", *paths, "--min-count", "20", "--out", "found/selection.json")
    assert code == 0, err
    tree = json.loads((tmp_path / "found" / "selection.json").read_text())
    assert f"chosen: {tree['chosen']}, by accuracy - {tree['r0']:.4g} variation (r0 from the" in out
    assert "by accuracy alone: " in out
    assert "no test row was read" in err
    assert [row["rank"] for row in tree["runs"]] == [1, 2, 3]
    criterion = [row["criterion"] for row in tree["runs"]]
    assert criterion == sorted(criterion, reverse=True)
    for row in tree["runs"]:
        assert row["criterion"] == pytest.approx(row["accuracy"] - tree["r0"] * row["variation"])
        assert row["features"] == 8
    folder = str(pool[0].path.parent)
    code, out, err = weathered("select", folder, "--min-count", "20", "--r0", "0", "--json")
    assert code == 0, err
    tree = json.loads(out)
    assert tree["chosen"] == tree["most_accurate"]
    assert (tree["r0"], tree["options"]["min_count"]) == (0, 20)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--delta", "2"), "delta must be in [0, 1], got 2.0"),
        (("--window", "0"), "window must be > 0"),
        (("--r0", "-1"), "r0 must be 'auto', or >= 0"),
        (("--scaling", "none"), "scaling must be 'feature' or 'global', got 'none'"),
        (("--out", "."), "is a folder; name a file"),
        (("--min-count", "100"), "or a smaller min_count at the price of more noise"),
        (("nowhere",), "nowhere holds no run"),
    ],
)
def test_what_is_wrong_on_the_command_line_is_one_sentence(weathered, pool, options, message):
    code, _, err = weathered("select", *(str(folder.path) for folder in pool), *options)
    assert code == 2
    assert message in err
    assert "Traceback" not in err
