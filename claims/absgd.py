"""Claim: weights that fall with the loss withstand wrong labels (ABSGD, TMLR 2023)."""

import torch

from common import LateDrop, accuracy, noisy_pixel_rows, perceptron
from weathered.core.fit import fit
from weathered.core.rng import generator
from weathered.core.run import Run
from weathered.data.makers.symmetric_noise import SymmetricNoise
from weathered.weighting.absgd import ABSGD

SLUG = "absgd"
SENTENCE = (
    "With 36 % of the training labels wrong, a network whose samples weigh in proportion to exp(-loss) from the sixth "
    "epoch on is more accurate at the end of training than one that weighs all samples alike."
)
DATA = (
    "scikit-learn digits with Gaussian pixel noise of 0.3, 100 train images of each class with 36 % symmetric label "
    "noise (40 % redrawn from all classes), 60 clean test images of each class"
)
METRIC = "accuracy on the balanced test set after the last epoch, in [0, 1]"
BASELINE = "cross entropy"
MAIN = "temperature -1"
ARMS = ("cross entropy", "temperature -5", "temperature -2", "temperature -1", "temperature -0.5")
HIGHER_IS_BETTER = True

EPOCHS = 60
FIRST_EPOCH = 5
NOISE = 0.36


def measure(seed: int) -> dict[str, float]:
    """Balanced accuracy of each arm. The seed draws images, both kinds of noise, weights and the order of the rows."""
    clean, test = noisy_pixel_rows(SLUG, seed, torch.full((10,), 100), test=60)
    train = SymmetricNoise(NOISE)(clean, generator(seed, "noise", SLUG))
    settings = LateDrop(epochs=EPOCHS, batch_size=32, lr=0.05, momentum=0.9, weight_decay=2e-4, seed=seed)
    arms = {"cross entropy": None}
    arms |= {f"temperature {t:g}": ABSGD(t, start=FIRST_EPOCH / EPOCHS) for t in (-5.0, -2.0, -1.0, -0.5)}
    values = {}
    for name, reweight in arms.items():
        run = fit(Run(perceptron(train, (128, 32)), train, reweight=reweight, settings=settings))
        values[name] = accuracy(run.predict(test), test.labels)
    return values
