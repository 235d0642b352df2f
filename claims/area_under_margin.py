"""Claim: margins during training tell wrong labels better than margins after it (AUM, NeurIPS 2020)."""

from dataclasses import replace

import torch
from sklearn.metrics import average_precision_score
from torch import Tensor

from common import perceptron, split_digits
from weathered.core.fit import fit
from weathered.core.rng import generator
from weathered.core.run import Run
from weathered.core.settings import Settings
from weathered.data.makers.symmetric_noise import SymmetricNoise
from weathered.terms.area_under_margin import AreaUnderMargin, margin
from weathered.verification import Measured

SLUG = "area-under-margin"
SENTENCE = (
    "With two fifths of the training labels wrong, the margins averaged over training rank the wrong labels before the "
    "right ones better than the margins of the trained network, which knows them by heart."
)
DATA = "scikit-learn digits, 1000 train images with 40 % symmetric label noise"
METRIC = "average precision of the ranking by low margin, in [0, 1]"
BASELINE = "margin after training"
MAIN = "area under the margin"
ARMS = ("margin after training", "area under the margin", "loss after training")
HIGHER_IS_BETTER = True

TRAIN = 1000
NOISE = 0.4
SETTINGS = Settings(epochs=40, batch_size=50, lr=0.1, momentum=0.9, weight_decay=1e-4, schedule="constant")


def measure(seed: int) -> Measured:
    """Average precision of each ranking of one run. The seed draws the split, the noise, the weights and the order."""
    clean, _ = split_digits(SLUG, seed, TRAIN)
    train = SymmetricNoise(NOISE)(clean, generator(seed, "noise", SLUG))
    term = AreaUnderMargin()
    run = fit(Run(perceptron(train, (512, 512)), train, terms=[term], settings=replace(SETTINGS, seed=seed)))
    assert train.clean_labels is not None
    wrong, logits = train.labels != train.clean_labels, run.predict(train)

    def precision(suspicion: Tensor) -> float:
        return float(average_precision_score(wrong, suspicion))

    return Measured(
        {
            BASELINE: precision(-margin(logits, train.labels)),
            MAIN: precision(-term.area),
            "loss after training": precision(torch.nn.functional.cross_entropy(logits, train.labels, reduction="none")),
        }
    )
