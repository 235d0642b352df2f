"""Claim: a reviewer's time spent on the audit's suspects raises accuracy more than spent on random labels."""

from dataclasses import replace

import numpy as np
import torch

from common import accuracy
from label_audit_worst import ROWS, cifar10n, out_of_sample
from weathered.audit.labels.quality import label_quality
from weathered.core.fit import fit
from weathered.core.rng import generator
from weathered.core.settings import Settings
from weathered.data.dataset import Dataset
from weathered.data.prepare import prepare
from weathered.recipe import Recipe
from weathered.training import build_run
from weathered.verification import Measured

SLUG = "find-fix-retrain"
SENTENCE = (
    "Correcting the tenth of the labels that the audit suspects most raises the accuracy of the last epoch more than "
    "correcting a random tenth."
)
DATA = (
    "CIFAR-10N, column label_worst, 10,000 training images drawn by the seed, about a fifth of them among those on "
    "which the score was chosen, all 10,000 test images with their right labels; a narrow cnn_small trained for 10 "
    "epochs; the reviewer gives the 1,000 labels looked at their true class"
)
METRIC = "test accuracy after the last epoch, in [0, 1]"
MAIN = "most suspected tenth corrected"
BASELINE = "random tenth corrected"
UNTOUCHED, DROPPED = "nothing corrected", "most suspected tenth left out"
ARMS = (BASELINE, MAIN, UNTOUCHED, DROPPED)
CHANGED = "labels that the reviewer changed or left out"
ALSO = (CHANGED,)

LOOKED_AT = ROWS // 10


def measure(seed: int) -> Measured:
    """Test accuracy after the last epoch for each way to spend the review, and how many labels it changed.

    The seed draws the images, the folds, the random tenth, the weights and the order of the rows.
    """
    found = out_of_sample("label_worst", seed, ())
    recipe = Recipe(
        cifar10n("label_worst", seed),
        model="cnn_small:width=16",
        settings=Settings(epochs=10, evaluations=1, seed=seed),
    )
    splits = prepare(recipe)
    train = splits.train
    ranked = found.source_rows[np.argsort(label_quality(found.probabilities, found.labels), kind="stable")]
    suspected = torch.isin(train.rows_in_source, torch.from_numpy(ranked[:LOOKED_AT].copy()))
    random = torch.zeros(ROWS, dtype=torch.bool)
    random[torch.randperm(ROWS, generator=generator(seed, "random tenth"))[:LOOKED_AT]] = True
    trained_on = {
        BASELINE: corrected(train, random),
        MAIN: corrected(train, suspected),
        UNTOUCHED: train,
        DROPPED: train.select(~suspected),
    }
    values = {}
    for arm, data in trained_on.items():
        run = fit(build_run(recipe, splits._replace(train=data)))
        values[arm] = accuracy(run.predict(splits.test), splits.test.labels)
    assert train.clean_labels is not None
    wrong = train.labels != train.clean_labels
    changed = {BASELINE: int((wrong & random).sum()), MAIN: int((wrong & suspected).sum()), UNTOUCHED: 0}
    return Measured(values, {CHANGED: {**changed, DROPPED: int(suspected.sum())}})


def corrected(train: Dataset, looked_at: torch.Tensor) -> Dataset:
    """The data with the true labels in the rows looked at, (N,) bool."""
    assert train.clean_labels is not None
    return replace(train, labels=torch.where(looked_at, train.clean_labels, train.labels))
