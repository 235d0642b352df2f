"""LDAM on a long tail with the networks of our own: training gets going, whatever the seed."""

import pytest
import torch

from weathered.core.fit import fit
from weathered.core.run import Run
from weathered.core.settings import Settings
from weathered.data.prepare import prepare
from weathered.recipe import DataOptions, Recipe
from weathered.training import build_run


def trained(model: str, method: str, seed: int, **settings) -> tuple[Run, float]:
    """A run on digits thinned 50:1 and its accuracy on its training labels."""
    recipe = Recipe(
        data=DataOptions(train="digits", make=("long-tail:imbalance=50",)),
        model=model,
        use=(method,),
        settings=Settings(seed=seed, **settings),
    )
    splits = prepare(recipe)
    run = fit(build_run(recipe, splits))
    return run, float((run.predict(splits.train).argmax(1) == splits.train.labels).double().mean())


def dead_share(run: Run) -> float:
    """The share of the units before the head that are 0 for every training image."""
    x = run.train.floats(torch.arange(len(run.train)))
    with torch.no_grad():
        features = run.model.eval().forward_features(x)  # pyright: ignore[reportCallIssue]
    return float((features.amax(0) <= 0).double().mean())


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("model", ["mlp", "mlp:norm=true,width=32"])
def test_it_fits_the_training_labels_like_cross_entropy(model, seed):
    run, accuracy = trained(model, "ldam", seed)
    assert "cosine_head" in run.facts
    assert accuracy > trained(model, "ce", seed)[1] - 0.03
    assert dead_share(run) < 0.4
    if "norm" in model:
        assert dead_share(run) < 0.05


def test_a_smaller_scale_and_a_lower_rate_save_a_network_without_batch_normalisation():
    """What the page of the method advises there: it gets well beyond the share of the largest class."""
    run, accuracy = trained("cnn_small:norm=group", "ldam:scale=10", 0, lr=0.01)
    largest = float(run.train.class_counts.max()) / len(run.train)
    assert accuracy > 2 * largest
