"""Claim: training on blended pairs keeps a network from memorising wrong labels (mixup, ICLR 2018)."""

from dataclasses import replace

from common import accuracy, perceptron, split_digits
from weathered.core.fit import fit
from weathered.core.rng import generator
from weathered.core.run import Run
from weathered.core.settings import Settings
from weathered.data.makers.symmetric_noise import SymmetricNoise
from weathered.mixing.mixup import MixUp

SLUG = "mixup"
SENTENCE = (
    "With 40 % of the training labels wrong, a network trained on blends of pairs of images and of their labels, the "
    "shares from Beta(8, 8), is more accurate at the end of training than one trained on the images themselves."
)
DATA = "scikit-learn digits, 1000 train images with 40 % symmetric label noise, 797 clean test images"
METRIC = "test accuracy after the last epoch, in [0, 1]"
BASELINE = "cross entropy"
MAIN = "mixup alpha 8"
ARMS = ("cross entropy", "mixup alpha 1", "mixup alpha 8")
HIGHER_IS_BETTER = True

TRAIN = 1000
NOISE = 0.4
SETTINGS = Settings(epochs=150, batch_size=64, optimizer="adam", lr=1e-3, weight_decay=0.0, schedule="constant")


def measure(seed: int) -> dict[str, float]:
    """Last test accuracy of each arm. The seed draws the split, the noise, the weights and the order of the rows."""
    clean, test = split_digits(SLUG, seed, TRAIN)
    train = SymmetricNoise(NOISE)(clean, generator(seed, "noise", SLUG))
    arms = {"cross entropy": [], "mixup alpha 1": [MixUp(1.0)], "mixup alpha 8": [MixUp(8.0)]}
    values = {}
    for name, transforms in arms.items():
        model, settings = perceptron(train, (256, 256, 64)), replace(SETTINGS, seed=seed)
        run = fit(Run(model, train, transforms=transforms, settings=settings))
        values[name] = accuracy(run.predict(test), test.labels)
    return values
