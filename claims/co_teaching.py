"""Claim: two networks that pick each other's samples withstand wrong labels (Co-teaching, NeurIPS 2018)."""

from dataclasses import replace

from common import MEMORISED, accuracy, memorised, perceptron, split_digits
from weathered.core.fit import fit
from weathered.core.procedure import Procedure
from weathered.core.rng import generator
from weathered.core.run import Run
from weathered.core.settings import Settings
from weathered.data.makers.symmetric_noise import SymmetricNoise
from weathered.procedures.co_teaching import CoTeaching
from weathered.procedures.supervised import Supervised
from weathered.verification import Measured

SLUG = "co-teaching"
SENTENCE = (
    "With half of the training labels wrong, one of two networks that train on each other's small losses is more "
    "accurate at the end of training than a network trained with cross entropy."
)
DATA = "scikit-learn digits, 1000 train images with 50 % symmetric label noise, 797 clean test images"
METRIC = "test accuracy after the last epoch, in [0, 1]"
BASELINE = "cross entropy"
MAIN = "co-teaching"
ARMS = ("cross entropy", "co-teaching")
HIGHER_IS_BETTER = True
ALSO = (MEMORISED,)

TRAIN, NOISE, RAMP = 1000, 0.5, 9 / 60
SETTINGS = Settings(epochs=60, batch_size=100, optimizer="adam", lr=1e-3, weight_decay=0.0, schedule="constant")


def measure(seed: int) -> Measured:
    """Last test accuracy of each arm, and the share of wrong labels it memorised.

    The seed draws the split, the noise, the weights and the order of the rows.
    """
    clean, test = split_digits(SLUG, seed, TRAIN)
    train = SymmetricNoise(NOISE)(clean, generator(seed, "noise", SLUG))
    arms: dict[str, Procedure] = {"cross entropy": Supervised(), "co-teaching": CoTeaching(NOISE, RAMP)}
    values, learned_by_heart = {}, {}
    for name, procedure in arms.items():
        run = fit(Run(perceptron(train, (256, 256)), train, procedure=procedure, settings=replace(SETTINGS, seed=seed)))
        values[name] = accuracy(run.predict(test), test.labels)
        learned_by_heart[name] = memorised(run.predict(train), train)
    return Measured(values, {MEMORISED: learned_by_heart})
