"""Claim: one number fitted on held-out data makes confidence mean something (temperature scaling, ICML 2017)."""

import torch
from torch import Tensor
from torch.nn import functional as F

from common import LateDrop, accuracy, noisy_pixel_rows, perceptron
from weathered.audit.calibration import expected_calibration_error, top_label
from weathered.core.fit import fit
from weathered.core.predict import predict_logits
from weathered.core.run import Run
from weathered.procedures.temperature_scaling import TemperatureScaledTraining
from weathered.verification import Measured

SLUG = "temperature-scaling"
SENTENCE = (
    "On test data, the confidences of a trained network lie closer to its accuracy once its logits are divided by the "
    "temperature that suits 200 held-out images best."
)
DATA = "scikit-learn digits with Gaussian pixel noise of 0.3: 50 train, 20 validation and 60 test images of each class"
METRIC = "expected calibration error on the test set, 15 bins, in [0, 1]"
BASELINE = "as trained"
MAIN = "temperature"
ARMS = ("as trained", "temperature")
HIGHER_IS_BETTER = False
SEEDS = 8
NLL = "mean cross entropy on the test set, in nats, lower is better"
ACCURACY = "accuracy on the test set, in [0, 1]"
ALSO = (NLL, ACCURACY)

VALIDATION, TEST = 20, 60


def measure(seed: int) -> Measured:
    """Calibration of one network without and with its temperature. The seed draws images, noise, weights and order."""
    train, held = noisy_pixel_rows(SLUG, seed, torch.full((10,), 50), VALIDATION + TEST)
    place = torch.arange(len(held)) % (VALIDATION + TEST)
    validation, test = held.select(place < VALIDATION), held.select(place >= VALIDATION)
    settings = LateDrop(epochs=60, batch_size=32, lr=0.05, momentum=0.9, weight_decay=2e-4, seed=seed)
    procedure = TemperatureScaledTraining()
    run = Run(perceptron(train, (128, 32)), train, procedure=procedure, validation=validation, settings=settings)
    fit(run)
    logits = {"as trained": predict_logits(run.model, test), "temperature": run.predict(test)}
    return Measured(
        {arm: calibration_error(found, test.labels) for arm, found in logits.items()},
        {
            NLL: {arm: float(F.cross_entropy(found, test.labels)) for arm, found in logits.items()},
            ACCURACY: {arm: accuracy(found, test.labels) for arm, found in logits.items()},
        },
    )


def calibration_error(logits: Tensor, labels: Tensor) -> float:
    """Of the most probable class."""
    confidence, correct = top_label(logits.double().softmax(1), labels)
    return expected_calibration_error(confidence, correct)
