"""Claim: penalties learned for each class calibrate without a search for their weight (CALS, CVPR 2023)."""

from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

from common import accuracy, perceptron
from weathered.audit.calibration import expected_calibration_error, top_label
from weathered.core.batch import Batch
from weathered.core.fit import fit
from weathered.core.rng import generator
from weathered.core.roles import Loss, Output, Term
from weathered.core.run import Run
from weathered.core.settings import Settings
from weathered.data.dataset import Dataset
from weathered.data.sources.load import load
from weathered.losses.cross_entropy import CrossEntropy, LabelSmoothing
from weathered.terms.cals import CALS, constraint
from weathered.verification import Measured

SLUG = "cals"
SENTENCE = (
    "On noisy digits a network trained with cross entropy and a penalty on logits more than 4 below the largest, whose "
    "weights for the classes are learned on 100 validation images, has a lower calibration error than one trained with "
    "cross entropy alone."
)
DATA = (
    "scikit-learn digits with Gaussian pixel noise of 0.6: 100 train images, 10 validation images without labels and "
    "60 test images of each class"
)
METRIC = "expected calibration error on the test set with 15 bins, in [0, 1], lower is better"
BASELINE = "cross entropy"
MAIN = "margin 4"
ARMS = ("cross entropy", "label smoothing 0.05", "fixed penalty, margin 6", "margin 4", "margin 6", "margin 10")
HIGHER_IS_BETTER = False
SEEDS = 4
NLL = "negative log likelihood on the test set, in nats, lower is better"
ACCURACY = "accuracy on the test set, in [0, 1], higher is better"
DISTANCE = "mean distance of a test logit from the largest"
MULTIPLIER = "mean of the learned multipliers, 0 without any"
LARGEST = "largest of the learned multipliers, 0 without any"
ALSO = (NLL, ACCURACY, DISTANCE, MULTIPLIER, LARGEST)

TRAIN, VALIDATION, TEST = 100, 10, 60
SETTINGS = Settings(epochs=80, batch_size=32, lr=0.05, momentum=0.9, weight_decay=0.0, schedule="constant")


def measure(seed: int) -> Measured:
    """Calibration error of each arm. The seed draws images, noise, weights and the order of the rows."""
    train, validation, test = noisy_digits(seed)
    arms: dict[str, tuple[Loss, Sequence[Term]]] = {
        "cross entropy": (CrossEntropy(), ()),
        "label smoothing 0.05": (LabelSmoothing(0.05), ()),
        "fixed penalty, margin 6": (CrossEntropy(), [fixed_penalty]),
        **{f"margin {margin}": (CrossEntropy(), [CALS(10, float(margin))]) for margin in (4, 6, 10)},
    }
    values: dict[str, float] = {}
    also: dict[str, dict[str, float]] = {name: {} for name in ALSO}
    for arm, (loss, terms) in arms.items():
        model, settings = perceptron(train, (256, 64)), replace(SETTINGS, seed=seed)
        logits = fit(Run(model, train, loss=loss, terms=terms, validation=validation, settings=settings)).predict(test)
        values[arm] = expected_calibration_error(*top_label(logits.double().softmax(1), test.labels))
        also[NLL][arm] = float(cross_entropy(logits, test.labels))
        also[ACCURACY][arm] = accuracy(logits, test.labels)
        also[DISTANCE][arm] = float(constraint(logits, 1.0).mean()) + 1
        learned = [term.multipliers for term in terms if isinstance(term, CALS)]
        also[MULTIPLIER][arm] = float(learned[0].mean()) if learned else 0.0
        also[LARGEST][arm] = float(learned[0].max()) if learned else 0.0
    return Measured(values, also)


def fixed_penalty(run: Run, batch: Batch, output: Output) -> Tensor:
    """The margin-based label smoothing of Liu et al., CVPR 2022, with its own weight."""
    return 0.1 * constraint(output.logits, 6.0, normalize=False).relu().mean(1)


def noisy_digits(seed: int) -> tuple[Dataset, Dataset, Dataset]:
    """Train, validation and test rows of 64 noisy pixels, of each class as many."""
    digits, rng = load("digits"), generator(seed, "claim", SLUG)
    shuffled = torch.randperm(len(digits), generator=rng)
    of_class = [shuffled[digits.labels[shuffled] == label] for label in range(10)]
    pixels = digits.floats(torch.arange(len(digits))).flatten(1)
    noisy = pixels + 0.6 * torch.randn(pixels.shape, generator=rng)
    table = Dataset.of(noisy, digits.labels, digits.class_names, name="digits with noisy pixels")
    train, validation, test, _ = zip(
        *(rows.tensor_split((TRAIN, TRAIN + VALIDATION, TRAIN + VALIDATION + TEST)) for rows in of_class), strict=True
    )
    return table.select(torch.cat(train)), table.select(torch.cat(validation)), table.select(torch.cat(test))
