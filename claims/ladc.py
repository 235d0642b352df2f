"""Claim: features drawn for rare classes serve a classifier better than repeated ones (LADC, arXiv 2111.04901)."""

from typing import NamedTuple

import torch
from torch import Tensor

from common import LONG_TAIL, RAREST, accuracy, long_tailed_digits, perceptron, rarest_accuracy
from weathered.core.fit import fit
from weathered.core.procedure import Procedure
from weathered.core.roles import Sampler
from weathered.core.run import Run
from weathered.core.settings import Settings
from weathered.procedures.classifier_retraining import ClassifierRetraining
from weathered.procedures.ladc import LADC
from weathered.verification import Measured
from weathered.weighting.class_balanced_sampling import ClassBalancedSampling

SLUG = "ladc"
SENTENCE = (
    "After training on classes whose sizes differ by a factor of 50, a classifier trained again on features drawn for "
    "rare classes, with a mean four fifths their own and the covariance of the two nearest frequent classes, is more "
    "accurate on balanced data than one trained again on rows drawn from all classes alike."
)
DATA = LONG_TAIL
METRIC = "accuracy on the balanced test set after the last epoch, in [0, 1]"
BASELINE = "classifier re-training"
MAIN = "delta 0.8"
ARMS = (
    "cross entropy",
    "cross entropy, as many steps",
    "classifier re-training",
    "delta 0.5",
    "delta 0.8",
    "delta 1, covariance alone",
)
HIGHER_IS_BETTER = True
SEEDS = 6
LARGEST = "accuracy on the three largest classes, in [0, 1]"
ALSO = (LARGEST, RAREST)

FIRST, SECOND, BATCH = 40, 30, 32
"""Passes over the training rows in the first stage, and over the balanced features in the second."""


class Arm(NamedTuple):
    """What tells the arms apart."""

    procedure: Procedure | None
    sampler: Sampler | None
    epochs: int


def measure(seed: int) -> Measured:
    """Balanced accuracy of each arm. The seed draws sizes, images, noise, weights, features and the order of rows."""
    counts, train, _, test = long_tailed_digits(SLUG, seed)
    balanced = len(counts) * int(counts.max())
    epochs = FIRST + round(SECOND * (balanced // BATCH) / (len(train) // BATCH))
    start = FIRST / epochs
    arms = {
        "cross entropy": Arm(None, None, FIRST),
        "cross entropy, as many steps": Arm(None, None, epochs),
        "classifier re-training": Arm(ClassifierRetraining(start), ClassBalancedSampling(start=start), epochs),
        "delta 0.5": Arm(LADC(start, delta=0.5), None, epochs),
        "delta 0.8": Arm(LADC(start), None, epochs),
        "delta 1, covariance alone": Arm(LADC(start, delta=1.0), None, epochs),
    }
    values: dict[str, float] = {}
    also: dict[str, dict[str, float]] = {name: {} for name in ALSO}
    for name, arm in arms.items():
        settings = Settings(
            epochs=arm.epochs, batch_size=BATCH, lr=0.05, weight_decay=2e-4, schedule="constant", seed=seed
        )
        model = perceptron(train, (128, 32))
        logits = fit(Run(model, train, procedure=arm.procedure, sampler=arm.sampler, settings=settings)).predict(test)
        values[name] = accuracy(logits, test.labels)
        also[LARGEST][name] = largest_accuracy(logits, test.labels, counts)
        also[RAREST][name] = rarest_accuracy(logits, test.labels, counts)
    return Measured(values, also)


def largest_accuracy(logits: Tensor, labels: Tensor, counts: Tensor) -> float:
    """Accuracy on the rows of the three classes with the most training rows, in [0, 1]. logits (N, C)."""
    frequent = torch.isin(labels, counts.argsort(descending=True, stable=True)[:3])
    return accuracy(logits[frequent], labels[frequent])
