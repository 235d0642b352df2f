"""A run killed at random moments and resumed ends with the weights of the uninterrupted one, bit for bit."""

import multiprocessing
import os
import random
import signal
import time

import pytest
from safetensors.torch import load_file

from weathered.core.settings import Settings
from weathered.recipe import DataOptions, Recipe
from weathered.registry import ENTRIES, TRAINING_SLOTS
from weathered.training import train

SMALLER = {
    "absgd": "absgd:temperature=-1.0",
    "drw": "drw:start=0.5",
    "forward-correction": "forward-correction:noise_rate=0.3",
    "ldam-drw": "ldam-drw:start=0.5",
    "linf-distance-net": "linf-distance-net:end=0.5",
    "odnl": "odnl:aux_batch=32",
    "outlier-exposure": "outlier-exposure:aux_batch=32",
    "open-sampling": "open-sampling:aux_batch=32",
    "self-adaptive-self-supervised": "self-adaptive-self-supervised:hidden=64,size=16",
    "self-adaptive-trades": "self-adaptive-trades:steps=2,start=0.5",
    "smoothmix": "smoothmix:num_noise=2,attack_steps=1",
}
"""Options that bring a method to work, or keep it short, in a run of a second."""
MODELS = {"linf-distance-net": "linf-net:width=32"}
METHODS = [entry.slug for entry in ENTRIES if entry.slot in (*TRAINING_SLOTS, "bundle")]


def recipe_for(name: str) -> Recipe:
    return Recipe(
        data=DataOptions(train="digits", limit=300, make=("symmetric:rate=0.3",), aux=("ood=gaussian:size=100",)),
        model=MODELS.get(name, "cnn_small"),
        use=(SMALLER.get(name, name),),
        settings=Settings(epochs=6, batch_size=32, evaluations=3, checkpoint_seconds=0),
    )


@pytest.mark.slow
@pytest.mark.parametrize("name", METHODS)
def test_ten_kills_change_nothing(name, tmp_path):
    recipe = recipe_for(name)
    begun = time.monotonic()
    whole = train(recipe, tmp_path / "whole")
    seconds = time.monotonic() - begun
    moments = random.Random(name)
    # a fork of this process, which has used OpenMP by now, could hang
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["weathered.training"])
    kills = 0
    for _ in range(10):
        child = context.Process(target=train, args=(recipe, tmp_path / "killed"))
        child.start()
        child.join(moments.uniform(0.05, 0.35) * seconds)
        if child.is_alive() and child.pid is not None:
            os.kill(child.pid, signal.SIGKILL)
            kills += 1
        child.join()
    resumed = train(recipe, tmp_path / "killed")
    assert kills >= 3, "the run ended before it could be killed; make it longer"
    expected, found = load_file(whole.weights), load_file(resumed.weights)
    assert expected.keys() == found.keys()
    for key in expected:
        assert expected[key].equal(found[key]), key
    assert [line["epoch"] for line in resumed.metrics()] == [line["epoch"] for line in whole.metrics()]
    assert [line["train_loss"] for line in resumed.metrics()] == [line["train_loss"] for line in whole.metrics()]
