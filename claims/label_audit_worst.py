"""Claim: the label audit's default score ranks the wrong labels of CIFAR-10N better than the self-confidence."""

import time
from dataclasses import replace
from typing import NamedTuple

import numpy as np
from sklearn.metrics import average_precision_score, precision_recall_curve

from common import shared_file
from weathered.audit.labels.quality import label_quality
from weathered.audit.labels.scores import Score
from weathered.core.fit import fit
from weathered.core.settings import Settings
from weathered.data.prepare import prepare
from weathered.recipe import DataOptions, Recipe
from weathered.training import build_run
from weathered.verification import Measured

SLUG = "label-audit-worst"
SENTENCE = (
    "On the same out-of-sample probabilities, the corrected confidence ranks the wrong labels of one annotator before "
    "the right ones better than the self-confidence, which is cleanlab's default."
)
DATA = (
    "CIFAR-10N, column label_worst against the labels of CIFAR-10, 10,000 images drawn by the seed, judged on "
    "those outside the 10,000 on which the score was chosen; probabilities of two folds, a narrow cnn_small trained "
    "for 12 epochs each with cross entropy, or with self-adaptive training"
)
METRIC = "average precision of the ranking by the score, in [0, 1]"
MAIN = "corrected confidence"
BASELINE = "self-confidence"
SCORES: dict[str, Score] = {
    BASELINE: "self_confidence",
    MAIN: "corrected_confidence",
    "normalised margin": "normalised_margin",
    "confidence-weighted entropy": "confidence_weighted_entropy",
}
RECIPES: dict[str, tuple[str, ...]] = {"": (), ", self-adaptive training": ("self-adaptive-training",)}
ARMS = tuple(score + recipe for recipe in RECIPES for score in SCORES)
RECALLS = tuple(round(0.05 * step, 2) for step in range(1, 21))
PRECISIONS = tuple(f"precision where {recall:.0%} of the wrong labels are found, in [0, 1]" for recall in RECALLS)
SECONDS = "seconds of training behind the probabilities, on one core, lower is better"
ALSO = (*PRECISIONS, SECONDS)

ROWS, FOLDS = 10_000, 2
DEVELOPMENT_SEED = 100
"""Draws the 10,000 images on which the scores were compared before one became the default."""


def measure(seed: int) -> Measured:
    """Average precision of each score on the probabilities of each recipe.

    The seed draws the images, the folds, the weights and the order of the rows.
    """
    return measure_column("label_worst", seed)


def measure_column(column: str, seed: int) -> Measured:
    values: dict[str, float] = {}
    also: dict[str, dict[str, float]] = {name: {} for name in ALSO}
    seen = development_rows()
    for recipe, use in RECIPES.items():
        probabilities, labels, wrong, rows, seconds = out_of_sample(column, seed, use)
        unseen = ~np.isin(rows, seen)
        for name, score in SCORES.items():
            suspicion, arm = -label_quality(probabilities, labels, score)[unseen], name + recipe
            values[arm] = float(average_precision_score(wrong[unseen], suspicion))
            also[SECONDS][arm] = seconds
            precision, recall, _ = precision_recall_curve(wrong[unseen], suspicion)
            for named, share in zip(PRECISIONS, RECALLS, strict=True):
                # rounding of the share must not ask for one label more
                also[named][arm] = float(precision[recall >= share - 1e-9][-1])
    return Measured(values, also)


class OutOfSample(NamedTuple):
    """What two folds say: probabilities (N, C), labels (N,), which are wrong (N,), their rows in the source (N,), and
    the seconds of training.
    """

    probabilities: np.ndarray
    labels: np.ndarray
    wrong: np.ndarray
    source_rows: np.ndarray
    seconds: float


def cifar10n(column: str, seed: int) -> DataOptions:
    """Images drawn by the seed under the labels of a column, and all test images under their right ones."""
    return DataOptions(
        train=shared_file("cifar10-train.parquet"),
        test=shared_file("cifar10-test.parquet"),
        label_column=column,
        test_label_column="label",
        clean_column="label",
        limit=ROWS,
        seed=seed,
    )


def development_rows() -> np.ndarray:
    """Rows of the images on which the default score was chosen. No ranking is judged on them."""
    draws = (prepare(Recipe(cifar10n(column, DEVELOPMENT_SEED))) for column in ("label_worst", "label_aggregate"))
    return np.unique(np.concatenate([draw.train.rows_in_source.numpy() for draw in draws]))


def out_of_sample(column: str, seed: int, use: tuple[str, ...]) -> OutOfSample:
    """Predictions of models that did not see the row."""
    settings = Settings(epochs=12, evaluations=1, seed=seed)
    parts, seconds = [], 0.0
    for fold in range(FOLDS):
        data = replace(cifar10n(column, seed), fold=f"{fold + 1}/{FOLDS}")
        recipe = Recipe(data, model="cnn_small:width=16", use=use, settings=settings)
        splits = prepare(recipe)
        begun = time.monotonic()
        run = fit(build_run(recipe, splits))
        seconds += time.monotonic() - begun
        held = splits.test
        assert held.clean_labels is not None
        wrong = held.labels != held.clean_labels
        columns = run.predict(held).softmax(1), held.labels, wrong, held.rows_in_source
        parts.append([values.numpy() for values in columns])
    probabilities, labels, wrong, rows = (np.concatenate(column) for column in zip(*parts, strict=True))
    return OutOfSample(probabilities, labels, wrong, rows, seconds)
