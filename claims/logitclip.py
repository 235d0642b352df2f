"""Claim: capping the norm of the logits keeps a network from memorising wrong labels (LogitClip, ICML 2023)."""

from dataclasses import replace

from common import MEMORISED, accuracy, memorised, perceptron, split_digits
from weathered.core.fit import fit
from weathered.core.rng import generator
from weathered.core.roles import Loss
from weathered.core.run import Run
from weathered.core.settings import Settings
from weathered.data.makers.symmetric_noise import SymmetricNoise
from weathered.losses.cross_entropy import CrossEntropy
from weathered.losses.logitclip import LogitClip
from weathered.verification import Measured

SLUG = "logitclip"
SENTENCE = (
    "With half of the training labels wrong, a network trained with cross entropy on logits whose norm is capped at "
    "0.5 is more accurate at the end of training than one trained with cross entropy."
)
DATA = "scikit-learn digits, 1000 train images with 50 % symmetric label noise, 797 clean test images"
METRIC = "test accuracy after the last epoch, in [0, 1]"
BASELINE = "cross entropy"
MAIN = "tau 0.5"
ARMS = ("cross entropy", "tau 4", "tau 0.5", "tau 1.5, delta 1/1.5")
HIGHER_IS_BETTER = True
ALSO = (MEMORISED,)

TRAIN = 1000
NOISE = 0.5
SETTINGS = Settings(epochs=100, batch_size=50, lr=0.1, momentum=0.9, weight_decay=5e-4, schedule="cosine")


def measure(seed: int) -> Measured:
    """Last test accuracy of each arm, and the share of wrong labels it memorised.

    The seed draws the split, the noise, the weights and the order of the rows.
    """
    clean, test = split_digits(SLUG, seed, TRAIN)
    train = SymmetricNoise(NOISE)(clean, generator(seed, "noise", SLUG))
    losses: dict[str, Loss] = {
        "cross entropy": CrossEntropy(),
        "tau 4": LogitClip(4.0),
        "tau 0.5": LogitClip(0.5),
        "tau 1.5, delta 1/1.5": LogitClip(1.5, 1 / 1.5),
    }
    values, learned_by_heart = {}, {}
    for name, loss in losses.items():
        run = fit(Run(perceptron(train, (512, 512)), train, loss=loss, settings=replace(SETTINGS, seed=seed)))
        values[name] = accuracy(run.predict(test), test.labels)
        learned_by_heart[name] = memorised(run.predict(train), train)
    return Measured(values, {MEMORISED: learned_by_heart})
