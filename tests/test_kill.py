"""A run killed at random moments and resumed ends with the weights of the uninterrupted one, bit for bit."""

import multiprocessing
import os
import random
import signal
import time
from dataclasses import replace
from pathlib import Path

import pytest
from safetensors.torch import load_file

from weathered.core.settings import Settings
from weathered.data.prepare import prepare
from weathered.recipe import DataOptions, Recipe
from weathered.registry import ENTRIES, TRAINING_SLOTS
from weathered.training import build_run, train

SMALLER = {
    "absgd": "absgd:temperature=-1.0",
    "dd-backdoor": "dd-backdoor:images_per_class=1,outer=2,inner=1,portion=0.1,trigger_steps=3,network_epochs=5",
    "drw": "drw:start=0.5",
    "forward-correction": "forward-correction:noise_rate=0.3",
    "ldam-drw": "ldam-drw:start=0.5",
    "linf-distance-net": "linf-distance-net:end=0.5",
    "odnl": "odnl:aux_batch=32",
    "one-of": "one-of:parts=['mixup','cutmix']",
    "outlier-exposure": "outlier-exposure:aux_batch=32",
    "open-sampling": "open-sampling:aux_batch=32",
    "self-adaptive-self-supervised": "self-adaptive-self-supervised:hidden=64,size=16",
    "self-adaptive-trades": "self-adaptive-trades:steps=2,start=0.5",
    "smoothmix": "smoothmix:num_noise=2,attack_steps=1",
}
"""Options that bring a method to work, or keep it short, in a run of a second."""
MODELS = {
    "linf-distance-net": "linf-net:width=32",
    "chroma-vae": "chroma-vae:width=32",
    "bag-of-tricks": "resnet:depth=26,width=8,small=true",
    "group-vs-loss": "mlp:width=64",
}
CAPTIONS = DataOptions(train="captions:200")
DATA = {"mixgen": CAPTIONS, "contrastive": CAPTIONS}
BESIDE = {"mixgen": ("contrastive",)}
"""What methods need of data and company that not all others have."""
METHODS = [entry.slug for entry in ENTRIES if entry.slot in (*TRAINING_SLOTS, "bundle")]


def grouped(folder: Path) -> DataOptions:
    """A table of two classes and two groups."""
    draw = random.Random(0)
    rows = [f"{draw.gauss(i % 2, 1)},{draw.gauss(0, 1)},{'ab'[i % 2]},{'xy'[i // 2 % 2]}\n" for i in range(400)]
    path = folder / "grouped.csv"
    path.write_text("one,two,label,site\n" + "".join(rows))
    return DataOptions(train=f"csv:{path}", group_column="site")


def recipe_for(name: str, folder: Path) -> Recipe:
    noisy = DataOptions(
        train="digits", limit=300, make=("symmetric:rate=0.3",), aux=("ood=gaussian:size=100",), validation=0.2
    )
    decoupled = name == "robust-vit-recipe"
    return Recipe(
        data=grouped(folder) if name == "group-vs-loss" else DATA.get(name, noisy),
        model=MODELS.get(name, "cnn_small"),
        use=(SMALLER.get(name, name), *BESIDE.get(name, ())),
        settings=Settings(
            epochs=6, batch_size=32, evaluations=3, checkpoint_seconds=0, optimizer="adamw" if decoupled else "sgd"
        ),
    )


def test_every_method_has_a_recipe_that_it_accepts(tmp_path):
    """The slow test below would not tell."""
    for name in METHODS:
        if name != "distillation":
            recipe = recipe_for(name, tmp_path).applied
            build_run(recipe, prepare(recipe))


@pytest.mark.slow
@pytest.mark.parametrize("name", METHODS)
def test_ten_kills_change_nothing(name, tmp_path):
    if name == "distillation":
        teacher = train(recipe_for("cross-entropy", tmp_path), tmp_path / "teacher").path
        recipe = replace(recipe_for("cross-entropy", tmp_path), use=(f"distillation:teacher={teacher}",))
    else:
        recipe = recipe_for(name, tmp_path)
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
