"""A recipe with ACIL: trained on the base classes, frozen, equal to joint ridge on its own features."""

import dataclasses

import pytest
import torch
from torch.testing import assert_close

from weathered.core.errors import Incompatible, SpecError, WeatheredError
from weathered.core.settings import Settings
from weathered.data.prepare import prepare
from weathered.incremental.acil import random_expansion
from weathered.incremental.recipe_run import base_split, phases_of, pooled_features
from weathered.loaded_run import load_run
from weathered.recipe import DataOptions, Recipe
from weathered.training import build_run, train

GAMMA = 0.1


def recipe(**data) -> Recipe:
    return Recipe(
        data=DataOptions(**{"train": "digits", "limit": 400, "base_classes": 4, "phases": 3, **data}),
        use=(f"acil:expansion=64,gamma={GAMMA}",),
        model="cnn_small:width=8",
        settings=Settings(epochs=2, batch_size=32),
    )


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    return load_run(train(recipe(), tmp_path_factory.mktemp("acil")).path)


def test_the_network_is_trained_on_base_classes_only():
    splits = prepare(recipe())
    groups = phases_of(recipe(), 10)
    assert [len(group) for group in groups] == [4, 2, 2, 2]
    assert sorted(c for group in groups for c in group) == list(range(10))
    base = base_split(splits, groups)
    assert set(base.train.labels.tolist()) == set(groups[0])
    assert len(base.test) == len(splits.test)
    assert set(build_run(recipe(), splits).train.labels.tolist()) == set(groups[0])


def test_the_classifier_is_joint_ridge_on_frozen_features(finished):
    labels, network = finished.splits.train.labels, finished.model.network
    features = pooled_features(network, finished.splits.train)
    hidden = random_expansion(features, finished.model.expansion)
    target = torch.nn.functional.one_hot(labels, 10).double()
    joint = torch.linalg.solve(hidden.T @ hidden + GAMMA * torch.eye(64, dtype=torch.double), hidden.T @ target)
    assert_close(finished.model.weight.data, joint, atol=1e-6, rtol=1e-6)


def test_features_are_taken_in_evaluation_mode_and_modes_are_restored(finished):
    network = finished.model.network.train()
    once = pooled_features(network, finished.splits.test, batch_size=7)
    again = pooled_features(network, finished.splits.test, batch_size=200)
    assert network.training
    assert_close(once, again, atol=1e-5, rtol=1e-5)


def test_a_ridge_score_is_never_read_as_a_probability(finished):
    results = finished.folder.read_json("run.json")["results"]
    assert "last accuracy" in results
    assert results["last accuracy"]["value"] == results["accuracy"]["value"]
    assert results["average accuracy over phases"]["low"] is None
    assert not any("calibration" in name or "likelihood" in name for name in results)


def test_wrong_phases_are_one_sentence():
    for data in ({"base_classes": 1}, {"base_classes": 10}, {"base_classes": 4, "phases": 5}):
        with pytest.raises((SpecError, WeatheredError), match=r"base_classes|phases"):
            build_run(recipe(**data), prepare(recipe(**data)))


@pytest.mark.parametrize("spec", ["ldam", "drw", "ldam-drw", "open-sampling", "logitclip:base=ldam"])
def test_what_counts_all_classes_is_refused_with_the_way_out(spec):
    """The base phase leaves classes without samples, and none of them may be dropped."""
    other = dataclasses.replace(recipe(aux=("ood=gaussian:size=32",)), use=("acil:expansion=64", spec))
    with pytest.raises(Incompatible, match=r"with acil the network is trained on the classes of the first phase alone"):
        build_run(other, prepare(other))
